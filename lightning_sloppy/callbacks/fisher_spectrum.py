"""Fisher information of the training loss: all its eigenvalues on the probe samples, exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lightning_sloppy.analysis import Fisher, Solve, fisher_of
from lightning_sloppy.callbacks.curvature_instrument import CurvatureInstrument, Scale
from lightning_sloppy.callbacks.dimension_quantities import (
    quantities_at_prior,
    quantities_of_dimension,
    quantities_of_shape,
)
from lightning_sloppy.curvature.cotangents import checked_kind
from lightning_sloppy.curvature.fisher_spectra import ROW_LIMIT
from lightning_sloppy.curvature.parameters import Patterns
from lightning_sloppy.errors import ConfigurationError, Note
from lightning_sloppy.evaluation.batches import BatchSize
from lightning_sloppy.evaluation.precision import Precision, checked_precision
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.measures import effective_dimension as dimension
from lightning_sloppy.measures.dimensions import degrees_of_freedom, stable_rank
from lightning_sloppy.measures.relative_dimension import relative_estimates
from lightning_sloppy.measures.sloppiness import effective_rank, entropy_rank, participation_ratio, shape_estimates
from lightning_sloppy.probing.loss_choice import LossArgument
from lightning_sloppy.probing.probe import MeasureOn, Probe
from lightning_sloppy.probing.schedule import MeasurementSize, Schedule
from lightning_sloppy.quantities import Quantity, SpectrumHistogram
from lightning_sloppy.records import Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting import phrases

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

AT_ONCE = (
    "The loss of a batch is not the mean over its samples, so there are no per-sample gradients. The part of the "
    "gradient that passes through the outputs of a sample is used instead, and the batches may be larger than in "
    "training."
)
"""Note for a loss that compares the samples of a batch."""

QUANTITIES = (
    Quantity(
        "largest",
        "Largest eigenvalue of the Fisher matrix on the probe samples: how precisely the data determine the "
        "best-determined direction. A sudden jump often comes from a few samples with very large gradients.",
        chart="Largest eigenvalue and trace",
    ),
    Quantity(
        "trace",
        "Sum of all eigenvalues. For the empirical kind it is the mean squared norm of the per-sample gradients, which "
        "falls to zero as the samples are fitted.",
        chart="Largest eigenvalue and trace",
    ),
    *quantities_of_dimension(
        "Effective number of directions of the parameters, exact on the probe samples: an eigenvalue that is a "
        "thousandth of the trace counts 1/2. It falls if few samples dominate, as when most samples are fitted.",
        chart="Effective dimension",
        fine="Near N it is limited by the number of samples: increase `num_samples`.",
        half="If it is far below the value on all samples, the value still grows with N: increase `num_samples`.",
    ),
    Quantity(
        "effective_dimension_at_prior_half_samples",
        "The dimension at z on the first half of the probe samples. It shows how much the value depends on N.",
        whole_spectrum=True,
        expert=True,
    ),
    Quantity(
        "eigenvalue_count_half_samples",
        "The count at z on the first half of the probe samples. It shows how much the value depends on N.",
        chart="Eigenvalues above z",
        whole_spectrum=True,
        expert=True,
    ),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2, a dimension without a scale z. Only the largest eigenvalues affect it: use it "
        "to compare shapes of spectra, not to count parameters.",
        chart="Dimensions without a scale",
        expert=True,
    ),
    *quantities_of_shape("Fisher matrix"),
    Quantity(
        "effective_rank",
        "Trace over largest eigenvalue. Near 1, the gradients of all samples are parallel.",
        chart="Dimensions without a scale",
        expert=True,
    ),
    Quantity(
        "entropy_rank",
        "exp(-sum q log q) with q = lambda / trace. It lies between the participation ratio and the rank, and the "
        "largest eigenvalues affect it less than the participation ratio.",
        expert=True,
    ),
    Quantity(
        "stable_rank",
        "Squared Frobenius norm over squared largest eigenvalue. Near 1, one direction dominates.",
        expert=True,
    ),
    Quantity(
        "degrees_of_freedom_2",
        "sum (lambda / (lambda + z))^2, at most N_eff(z): number of directions that the data determine almost fully. "
        "If it is much smaller than N_eff(z), many directions are only partly determined.",
        expert=True,
    ),
    Quantity(
        "num_samples",
        "Number of probe samples N. The rank is at most N (times the classes for the exact kind).",
        once=True,
    ),
)

HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Non-zero eigenvalues of the Fisher matrix on the probe samples, as log10. There are at most N of them (times "
        "the classes for the exact kind), for any number of parameters.",
    ),
)


class FisherSpectrum(CurvatureInstrument):
    """Track the spectrum of the Fisher information of the training loss on fixed probe samples.

    Computes all non-zero eigenvalues from the N x N Gram matrix of per-sample gradients. The effective dimension, the
    trace and the participation ratio therefore have no estimation error on the probe samples. They grow with N, so N
    and the values at N/2 are reported as well. In the effective dimension, an eigenvalue that is a thousandth of the
    trace counts 1/2. ``N_eff(z) = sum lambda/(lambda + z)`` and the count ``p(n, epsilon) = #{lambda >= z}`` are
    reported at the scale of the prior, ``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022, arXiv
    2110.14163).

    Args:
        kind: "empirical" (gradients at the targets of the data), "sampled" (at targets drawn from the model) or "exact"
            (the Gauss-Newton matrix; N times the number of outputs rows, so for few samples only).
        parameters: Shell-style patterns of parameter names, such as "head.*": measure the block of these parameters.
            null: all trainable parameters.
        num_samples: Number of probe samples N, drawn once from the training data.
        precision: "float64": resolves eigenvalues below the rounding errors of float32, at two to three times the cost.
            null: that of the parameters.
        epsilon: Prior precision. null: p / ||w0||^2 of all initial weights, constant for the whole run.
        schedule: When to measure, and the limit on the cost of all measuring. null: after every epoch.
        loss_fn: Mean-reduced loss of (outputs, targets). null: found from the module and compared with the first loss
            of the training. "training_step": the loss that ``training_step`` returns.
        measure_on: "fixed_samples": the same samples at every measurement, so that curves change with the network only;
            if samples cannot be read by index (iterable data, several loaders), the first batches of the training.
            "current_batch": the last training batch. null: "fixed_samples".
        batch_size: Function that returns the number of samples in a batch. null: found from its tensors and outputs.
        mode: "eval", or "train" with the flags of the fit and a fixed random stream. null: "eval".
        name: Name in the tags ``sloppy_<name>/...``. null: "fisher", followed by the kind unless it is empirical, and
            by the patterns of ``parameters``.
        seed: Seed of the probe samples and sampled targets. null: 0.
        strict: Raise errors of measurements instead of warning. null: false.

    Inside a SloppyMonitor, null means the monitor's value of ``schedule``, ``loss_fn``, ``measure_on``, ``batch_size``,
    ``mode``, ``epsilon``, ``seed`` and ``strict``.

    Raises:
        ConfigurationError: For an unknown kind or numbers out of range; in ``setup`` for patterns that match no
            parameter.

    Example:
        >>> FisherSpectrum().name, FisherSpectrum(kind="exact").name
        ('fisher', 'fisher_exact')
    """

    default_name = "fisher"
    title = "Fisher matrix"
    quantities = (*QUANTITIES, *quantities_at_prior())
    histograms = HISTOGRAMS
    costs = ("seconds", "products", "peak_bytes")
    cost_advice = "They grow with the square of `num_samples`."

    def __init__(
        self,
        kind: Literal["empirical", "sampled", "exact"] = "empirical",
        *,
        parameters: Patterns = None,
        num_samples: int = 1024,
        precision: Precision | None = None,
        epsilon: float | None = None,
        schedule: Schedule | None = None,
        loss_fn: LossArgument | None = None,
        measure_on: MeasureOn | None = None,
        batch_size: BatchSize | None = None,
        mode: Mode | None = None,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        if num_samples < 2:
            raise ConfigurationError(f"FisherSpectrum got num_samples={num_samples}; pass at least 2 probe samples.")
        self.kind = checked_kind(kind)
        self.precision = checked_precision(precision)
        super().__init__(
            parameters=parameters,
            epsilon=epsilon,
            num_samples=num_samples,
            schedule=schedule,
            loss_fn=loss_fn,
            measure_on=measure_on,
            batch_size=batch_size,
            mode=mode,
            name=name,
            seed=seed,
            strict=strict,
        )

    def differences(self) -> dict[str, Any]:
        """Also the kind, unless it is the default."""
        return {**({} if self.kind == "empirical" else {"kind": self.kind}), **super().differences()}

    def settings(self) -> dict[str, Any]:
        """Also the kind."""
        return {**super().settings(), "kind": self.kind, "precision": self.precision}

    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """Two passes, plus the inner products; ten times as much for the columns of the exact kind."""
        return 80.0 if self.kind == "exact" else 8.0

    def measure(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> Measurement:
        """Compute one Gram matrix, its eigenvalues, and those of the first half."""
        probe = probe.at(self.precision)
        scale, sentence = self.scale(trainer, probe.context)
        spectrum = fisher_of(
            probe.choice.objective,
            probe.batches,
            fisher=Fisher(self.kind, seed=self.seed),
            solve=Solve(k=10, eigenvectors=any(peer.needs_eigenvectors for peer in self.subscribers(trainer))),
            parameters=self.parameters,
            ranks=probe.context.ranks,
            rng=probe.generator(),
        )
        estimates = {} if spectrum.status is Status.NON_FINITE else fisher_estimates(spectrum, scale)
        notes = [note for note in (probe.choice.note, sentence) if note]
        notes += self.status_notes(probe, probe.choice.objective, probe.batches, spectrum)
        notes += [AT_ONCE] if probe.choice.batchwise else []
        said = ("beside_outputs", "constants", "unsteady")
        notes += [str(spectrum.detail[name]) for name in said if name in spectrum.detail]
        if estimates and "rows" in spectrum.detail and not estimates["effective_dimension"].status.ok:
            notes.append(self._too_many_rows(spectrum))
        return self.measurement(
            trainer,
            probe,
            estimates,
            spectrum=spectrum,
            notes=tuple(notes),
        )

    def _too_many_rows(self, spectrum: Spectrum) -> Note:
        """Why there is no effective dimension, and how many samples are possible."""
        rows, samples = int(spectrum.detail["rows"]), max(spectrum.num_samples, 1)
        return Note(
            f"{self._heading()}: the Gram matrix of {samples:,} samples would have {rows:,} rows, above {ROW_LIMIT:,}, "
            f"so there is no effective dimension; pass num_samples={max(2, ROW_LIMIT * samples // rows)}.",
            cause=f"rows {self.name}",
            short="no effective dimension, for the Gram matrix would be too large",
        )

    def paragraphs(self) -> list[str]:
        """Largest eigenvalue, trace and effective dimension."""
        event = phrases.last_reported(self.measurements)
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        sentences = [
            phrases.when(event),
            phrases.on_samples(event, "probe samples"),
            phrases.named(event, {"largest": "Largest eigenvalue", "trace": "trace"}),
            phrases.relative_dimension(event),
            phrases.on_half(event),
            phrases.dimension_at_prior(event),
        ]
        return [" ".join(filter(None, sentences)), *event.notes]


def fisher_estimates(spectrum: Spectrum, scale: Scale | None) -> dict[str, Estimate]:
    """The named numbers of a Fisher spectrum."""
    found = {
        "largest": Estimate(spectrum.largest),
        "participation_ratio": participation_ratio(spectrum),
        "effective_rank": effective_rank(spectrum),
        "entropy_rank": entropy_rank(spectrum),
        "stable_rank": stable_rank(spectrum),
        "num_parameters": Estimate(float(spectrum.dim)),
        "num_samples": Estimate(float(spectrum.num_samples)),
    }
    if spectrum.trace is not None:
        found["trace"] = spectrum.trace
    found |= relative_estimates(spectrum)
    if not spectrum.truncated:
        found |= shape_estimates(spectrum)
    if scale is None:
        return found
    found |= scale.estimates()
    found |= scale.dimensions(spectrum)
    found["degrees_of_freedom_2"] = degrees_of_freedom(spectrum, scale.z, 2)
    half = dimension.of_half_the_samples(spectrum)
    if half is not None:
        found["effective_dimension_at_prior_half_samples"] = dimension.effective_dimension(half, scale.z)
        found["eigenvalue_count_half_samples"] = dimension.eigenvalue_count(half, scale.z)
    return found
