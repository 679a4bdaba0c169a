"""Hessian of the training loss: extreme eigenvalues, trace, and effective dimension of its Gauss-Newton part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_sloppy.analysis import Quadrature, Solve, checked_counts, hessian_of
from lightning_sloppy.callbacks.curvature_instrument import CurvatureInstrument, Scale
from lightning_sloppy.callbacks.directions import Directions
from lightning_sloppy.callbacks.gauss_newton_part import estimated_gauss_newton, exact_gauss_newton, unresolved
from lightning_sloppy.callbacks.hessian_quantities import HISTOGRAMS, QUANTITIES
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.errors import ConfigurationError, Note, UnsupportedError
from lightning_sloppy.evaluation.batches import BatchSize
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures import effective_dimension as dimension
from lightning_sloppy.measures.relative_dimension import relative_estimates
from lightning_sloppy.measures.sloppiness import shape_estimates
from lightning_sloppy.probing.error_words import note_of
from lightning_sloppy.probing.loss_choice import LossArgument
from lightning_sloppy.probing.probe import MeasureOn, Probe
from lightning_sloppy.probing.schedule import MeasurementSize, Schedule
from lightning_sloppy.records import Cost, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting import phrases

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

PROBES = 4
"""Default number of probe vectors: the standard error of the trace is about a tenth."""

MOST_START_BYTES = 256 * 1024**2
"""Larger weights are not saved in checkpoints; after a resume the displacement is measured from the resumed weights."""


class HessianSpectrum(CurvatureInstrument):
    """Track the spectrum of the Hessian of the training loss on fixed probe samples.

    Computes the top k eigenpairs by magnitude with residuals (Lanczos with full reorthogonalisation), the trace with
    Rademacher probe vectors, and effective dimensions of the Gauss-Newton part: one in which an eigenvalue that is a
    thousandth of the trace counts 1/2, and ``N_eff(z) = sum lambda/(lambda + z)`` with the count ``p(n, epsilon) =
    #{lambda >= z}`` at the scale of the prior, ``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022, arXiv
    2110.14163). They are exact on few samples. With ``probes`` they are estimated on all by Lanczos quadrature.

    Args:
        k: Number of eigenpairs, at least 1. The default of 10 is about one per class of common data sets.
        probes: Number of Rademacher probe vectors, at least 2, for the trace and, by quadrature on all probe samples,
            for the dimensions of the Gauss-Newton part. null: 4 vectors for the trace; the Gauss-Newton part is exact
            on the first ``min(256, max(64, 1280 // outputs))`` samples (on all if p <= 256), or estimated by quadrature
            with 4 vectors if samples times outputs exceed 2,560.
        parameters: Shell-style patterns of parameter names, such as "head.*": measure the block of the Hessian of
            these parameters. null: all trainable parameters.
        num_samples: Number of probe samples N, drawn once from the training data.
        steps: Maximum depth of the quadrature. It stops earlier when the brackets are narrow.
        tol: Residual relative to the largest magnitude. null: 1e-3 in float32, 1e-8 in float64.
        epsilon: Prior precision. null: p / ||w0||^2 of all initial weights, constant for the whole run.
        schedule: When to measure, and the limit on the cost of all measuring. null: after every epoch.
        loss_fn: Mean-reduced loss of (outputs, targets). null: found from the module and compared with the first loss
            of the training. "training_step": the loss that ``training_step`` returns.
        measure_on: "fixed_samples": the same samples at every measurement, so that curves change with the network only;
            if samples cannot be read by index (iterable data, several loaders), the first batches of the training.
            "current_batch": the last training batch. null: "fixed_samples".
        batch_size: Function that returns the number of samples in a batch. null: found from its tensors and outputs.
        mode: "eval", or "train" with the flags of the fit and a fixed random stream. null: "eval".
        name: Name in the tags ``sloppy_<name>/...``. null: "hessian", followed by the patterns of ``parameters``.
        seed: Seed of the probe samples and vectors, which are the same at every measurement. null: 0.
        strict: Raise errors of measurements instead of warning. null: false.

    Inside a SloppyMonitor, null means the monitor's value of ``schedule``, ``loss_fn``, ``measure_on``, ``batch_size``,
    ``mode``, ``epsilon``, ``seed`` and ``strict``.

    Raises:
        ConfigurationError: For k < 1, fewer than 2 probes, or other numbers out of range; in ``setup`` for patterns
            that match no parameter.

    Example:
        >>> HessianSpectrum(k=5).name, HessianSpectrum(parameters="head.*").name
        ('hessian', 'hessian_head')
    """

    default_name = "hessian"
    title = "Hessian"
    quantities = QUANTITIES
    histograms = HISTOGRAMS
    costs = ("seconds", "products", "peak_bytes")
    cost_advice = "To reduce them, lower `k`, `probes` or `num_samples`, or measure less often."

    def __init__(
        self,
        k: int = 10,
        probes: int | None = None,
        *,
        parameters: Patterns = None,
        num_samples: int = 1024,
        steps: int = 100,
        tol: float | None = None,
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
        vectors = PROBES if probes is None else probes
        if vectors < 2 or num_samples < 1 or steps < 2 or (tol is not None and not 0 < tol < 1):
            raise ConfigurationError(
                f"HessianSpectrum got probes={probes}, num_samples={num_samples}, steps={steps}, tol={tol}; pass at "
                "least 2 probes or null, 1 sample and 2 steps, and a tol between 0 and 1 or null."
            )
        checked_counts(k, vectors)
        self.k = k
        self.probes = probes
        self.steps = steps
        self.tol = tol
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
        self._vectors: Tensor | None = None
        self._directions = Directions()
        self._start: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear the directions of the previous fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._directions = Directions()
            self._start = None

    def settings(self) -> dict[str, Any]:
        """Also the number of pairs and the settings of the quadrature."""
        return {**super().settings(), "k": self.k, "probes": self.probes, "steps": self.steps, "tol": self.tol}

    def state_dict(self) -> dict[str, Any]:
        """Also the initial weights, from which displacements are measured.

        This is a tensor of the model's size. A seed would not reproduce loaded weights, and separate files get lost.
        The bound keeps the same tensor, and a checkpoint stores it once.
        """
        start = self._start
        kept = {} if start is None or start.numel() * start.element_size() > MOST_START_BYTES else {"start": start}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scale, the clock and the initial weights of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._start = state_dict.get("start")

    def full_size(self) -> MeasurementSize:
        """All probe vectors and pairs."""
        return MeasurementSize(self.num_samples, PROBES if self.probes is None else self.probes, self.k)

    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """A product costs about 2. The pairs of a network take 2 k + 5 products, a quadrature half its depth."""
        each = 2.0 if self.probes is None else 1 + self.steps / 2
        return 2.0 * (2 * size.k + 5 + size.probes * each)

    def measure(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> Measurement:
        """Measure the Hessian, then its Gauss-Newton part, on the same samples with the same probe vectors."""
        context, choice = probe.context, probe.choice
        self._start = context.origin.resumed(self._start)
        scale, sentence = self.scale(trainer, context)
        dim = ParameterLayout.of(pl_module, self.parameters).dim
        if self._vectors is None or self._vectors.shape != (self.size.probes, dim):
            self._vectors = rademacher(dim, self.size.probes, generator(self.seed + 1))
        notes = [note for note in (choice.note, sentence) if note]
        if not choice.objective.has_outputs and not choice.note:
            notes.append("There is no Gauss-Newton part, because training_step is known as a whole only.")
        choice, batches = self.partition(context, probe)
        hessian = hessian_of(
            choice.objective,
            batches,
            quadrature=Quadrature(self._vectors, steps=1),
            solve=Solve(
                self.size.k,
                tol=self.tol,
                eigenvectors=Directions.affordable(dim, self.size.k, choice.objective.dtype)
                or any(listener.needs_eigenvectors for listener in self.subscribers(trainer)),
            ),
            parameters=self.parameters,
            rng=generator(self.seed),
            on_product=probe.advance,
        )
        exact, seen = None, None
        if choice.objective.has_outputs and hessian.status.ok:
            try:
                if self.probes is None:
                    exact = exact_gauss_newton(probe, parameters=self.parameters, most=self.size.num_samples)
                seen = estimated_gauss_newton(
                    choice.objective,
                    batches,
                    vectors=self._vectors,
                    steps=self.steps if exact is None else 1,
                    z=None if scale is None else scale.z,
                    parameters=self.parameters,
                    seed=self.seed,
                    on_product=probe.advance,
                )
            except (ConfigurationError, UnsupportedError) as error:  # keep the Hessian
                note = note_of(error, self.mode)
                notes.append(Note(f"No Gauss-Newton part: {note}", cause=note.cause, short="no Gauss-Newton part"))
        gauss_newton = seen if exact is None else exact
        notes += self.status_notes(probe, probe.choice.objective, probe.batches, hessian)  # not of this rank alone
        if gauss_newton is not None and not gauss_newton.status.ok:
            notes.append(f"Gauss-Newton part: {gauss_newton.status.value}")
        estimates = self._estimates(hessian, gauss_newton, scale)
        if seen is not None and seen.status.ok and seen.trace is not None:
            estimates["gauss_newton_trace"] = seen.trace  # on the samples and vectors of the Hessian's
        if hessian.status.ok:
            estimates |= self._directions.estimates(trainer, probe, choice.objective, batches, hessian, self.parameters)
        notes += [str(hessian.detail[name]) for name in ("fallback", "unsteady", "constants") if name in hessian.detail]
        if gauss_newton is not None and "beside_outputs" in gauss_newton.detail:
            notes.append(f"Gauss-Newton part: {gauss_newton.detail['beside_outputs']}")
        notes += unresolved(estimates, gauss_newton)
        return self.measurement(
            trainer,
            probe,
            estimates,
            spectrum=hessian,
            cost=_joint_cost(hessian, exact, seen),
            notes=tuple(notes),
            companions={} if gauss_newton is None else {"gauss_newton": gauss_newton},
        )

    def paragraphs(self) -> list[str]:
        """Extreme eigenvalues, trace and effective dimension."""
        event = phrases.last_reported(self.measurements)
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        sentences = [
            phrases.when(event),
            phrases.on_samples(event, "probe samples"),
            phrases.named(event, {"largest": "Largest eigenvalue", "smallest": "smallest", "trace": "trace"}),
        ]
        smallest, residual = phrases.value(event, "smallest"), phrases.value(event, "smallest_residual")
        if smallest is not None and residual is not None and residual > abs(smallest) / 10:
            others = "The requested eigenpairs have converged. The smallest eigenvalue is not one of them and"
            what = others if event.status is Status.CONVERGED else "The smallest eigenvalue"
            sentences.append(f"{what} has not converged (residual {phrases.number(residual)}).")
        few = phrases.value(event, "gauss_newton_samples")
        of = " of the Gauss-Newton part" + ("" if few is None else f" on {phrases.number(few)} samples")
        sentences.append(phrases.relative_dimension(event, of))
        sentences.append(phrases.dimension_at_prior(event))
        return [" ".join(filter(None, sentences)), *event.notes]

    def _estimates(self, hessian: Spectrum, gauss_newton: Spectrum | None, scale: Scale | None) -> dict[str, Estimate]:
        if not hessian.status.ok:
            return {}
        found = {
            "largest": Estimate(hessian.largest),
            "largest_residual": Estimate(hessian.largest_residual),
            "smallest": Estimate(hessian.smallest),
            "smallest_residual": Estimate(hessian.smallest_residual),
            "loss": Estimate(float(hessian.detail["loss"])),
            "num_parameters": Estimate(float(hessian.dim)),
            "num_samples": Estimate(float(hessian.num_samples)),
        }
        if hessian.trace is not None:
            found["trace"] = hessian.trace
        if scale is not None:
            found |= scale.estimates()
            found["converged_above_z"] = dimension.converged_above(hessian, scale.z)
        if gauss_newton is not None and gauss_newton.status.ok:
            found |= relative_estimates(gauss_newton)
            if not gauss_newton.truncated:
                found |= shape_estimates(gauss_newton)
            found["gauss_newton_samples"] = Estimate(float(gauss_newton.num_samples))
            if scale is not None:
                found |= scale.dimensions(gauss_newton)
        return found


def _joint_cost(*spectra: Spectrum | None) -> Cost:
    parts = [spectrum.cost for spectrum in spectra if spectrum is not None]
    return Cost(
        products=sum(part.products for part in parts),
        product_seconds=sum(part.product_seconds for part in parts),
        method=", ".join(dict.fromkeys(part.method for part in parts)),
    )
