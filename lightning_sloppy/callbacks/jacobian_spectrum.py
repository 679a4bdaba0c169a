"""Jacobian of the outputs with respect to the parameters: how many directions of the parameters change the outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.analysis import Quadrature, jacobian_of
from lightning_sloppy.callbacks.curvature_instrument import refuse_unmatched
from lightning_sloppy.callbacks.dimension_quantities import quantities_of_dimension, quantities_of_shape
from lightning_sloppy.callbacks.instrument import Instrument
from lightning_sloppy.curvature.fisher_spectra import ROW_LIMIT
from lightning_sloppy.curvature.jacobian import Outputs, jacobian_objective, weighted, width_of
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.display import percent
from lightning_sloppy.errors import ConfigurationError, Note
from lightning_sloppy.evaluation.batches import Batch, BatchSize, picked, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.precision import Precision, checked_precision
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.brackets import density_is_resolved
from lightning_sloppy.measures.relative_dimension import THOUSANDTH, relative_estimates
from lightning_sloppy.measures.sloppiness import entropy_rank, shape_estimates
from lightning_sloppy.measures.verdict import sloppiness_verdict, verdict_in_words
from lightning_sloppy.probing.probe import MOST, MOST_ROWS, MeasureOn, Probe, first_samples, small_probe
from lightning_sloppy.probing.samples import probe_indices
from lightning_sloppy.probing.schedule import MeasurementSize, Schedule
from lightning_sloppy.quantities import Quantity, SpectrumHistogram
from lightning_sloppy.records import Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting import phrases

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

QUANTITIES = (
    *quantities_of_dimension(
        "Effective number of directions of the parameters, the number to quote: an eigenvalue that is a thousandth of "
        "the trace counts 1/2. It falls in the first epochs, then grows slowly with memorisation. At most 1,000.",
        chart="Effective dimension",
        fine="If the band is wide, no clear threshold separates directions that count from those that do not.",
        half="If it is far below the value on all samples, increase `num_samples`.",
    ),
    Quantity(
        "entropy_rank",
        "exp(-sum q log q) with q = lambda / trace. It lies between the participation ratio and the rank. Growth above "
        "its minimum is a sign of memorisation.",
    ),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2. On images the mean image dominates it, so values near 1 say little.",
        expert=True,
    ),
    *quantities_of_shape("Jacobian's spectrum"),
    Quantity(
        "null_effective_dimension",
        "With `null=True`: effective dimension of the untrained network on Gaussian inputs. The network is sloppy if "
        "its own value is at most half of this, and its slope times rank more negative by at least 1.",
        chart="Effective dimension",
        once=True,
    ),
    Quantity(
        "null_slope_times_rank",
        "Slope times rank of the untrained network on Gaussian inputs.",
        chart="Slope times rank",
        once=True,
    ),
    Quantity(
        "largest_fraction",
        "Largest eigenvalue divided by the trace. Near 1, one direction changes all outputs in the same way.",
        expert=True,
    ),
    Quantity(
        "largest_sample_fraction",
        "Largest contribution of a single sample to the trace, before the samples are normalised. Above 0.1, a warning "
        "names the sample: inspect it, and do not quote values of matrices without this normalisation.",
        expert=True,
    ),
    Quantity(
        "num_outputs",
        "Number of outputs per sample, including the positions of a sequence.",
        once=True,
    ),
    Quantity(
        "num_parameters",
        "Number of trainable parameters p. Compare the dimensions of this group with it.",
        once=True,
    ),
    Quantity(
        "num_samples",
        "Number of probe samples N. The default is 1,280 / (outputs per sample), at least 64 and at most 256.",
        once=True,
    ),
)
HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Eigenvalues of the Jacobian's spectrum above the rounding floor, as log10 (their sum is 1). A sloppy model "
        "has a few values on the right and an even spread over many decades on the left.",
    ),
)

NULL = "the network at the start on Gaussian inputs"
"""Null for the verdict on a trained network."""

DOMINATES = 0.1
"""A sample with a larger fraction of the trace is named in a warning."""

STOP_AT = 0.02
"""Quadrature stops at this width of the bracket of the dimension: a fifth of what makes a value unresolved."""


class JacobianSpectrum(Instrument):
    """Track the spectrum of the Jacobian of the outputs with respect to the parameters, with normalised samples.

    Computes the eigenvalues of ``K_ij / sqrt(tr K_ii tr K_jj)`` with ``K_ij = J_i J_j^T`` (the neural tangent kernel of
    the probe samples) and their effective number: an eigenvalue that is a thousandth of their sum counts 1/2. It needs
    no targets and no loss, and does not vanish when the samples are fitted. At 64 to 256 samples it changes little with
    N, and a single sample with a very large gradient has little effect. Of all dimensions in this package it correlates
    best with the generalisation gap. Among networks trained on clean labels only, no dimension ranks generalisation
    well. It depends on the preprocessing of the inputs: compare runs with the same preprocessing.

    Args:
        outputs: Which outputs of a sample to use: a key of the mapping that ``forward`` returns, or a function of the
            return value. null: all floating-point tensors with a row for each sample. For classifiers: the logits.
        normalize: Whether to give each sample equal weight. false: the Fisher matrix of outputs of unit variance.
        parameters: Shell-style patterns of parameter names, such as "head.*". null: all trainable parameters.
        num_samples: Number of probe samples N. null: ``min(256, max(64, 1280 // outputs))``.
        probes: Number of probe vectors, at least 2. They are used if samples times outputs exceed 8,192, or 2,560 if
            ``num_samples`` is null.
        steps: Maximum depth of the quadrature with probe vectors.
        null: Also measure the untrained network on Gaussian inputs with the shape and mean square of the probe samples,
            and report whether the network is sloppy compared with this null. Inputs must be one floating-point tensor.
        precision: "float64": resolves eigenvalues below the rounding errors of float32, at two to three times the cost.
            null: that of the parameters.
        schedule: When to measure, and the limit on the cost of all measuring. null: after every epoch.
        measure_on: "fixed_samples", or "current_batch" for the last training batch. null: "fixed_samples".
        batch_size: Function that returns the number of samples in a batch. null: found from its tensors and outputs.
        mode: "eval", or "train" with the flags of the fit and a fixed random stream. null: "eval".
        name: Name in the tags ``sloppy_<name>/...``. null: "jacobian", followed by all settings that are not defaults.
        seed: Seed of the probe samples and vectors. null: 0.
        strict: Raise errors of measurements instead of warning. null: false.

    Raises:
        ConfigurationError: For numbers out of range.

    Example:
        >>> JacobianSpectrum().name, JacobianSpectrum(normalize=False).name
        ('jacobian', 'jacobian_raw')
    """

    default_name = "jacobian"
    title = "Jacobian"
    quantities = QUANTITIES
    histograms = HISTOGRAMS
    costs = ("seconds",)
    cost_advice = "To reduce them, lower `num_samples`, or select fewer outputs with `outputs`."
    writes_nothing = True

    def __init__(
        self,
        outputs: Outputs | None = None,
        *,
        normalize: bool = True,
        parameters: Patterns = None,
        num_samples: int | None = None,
        probes: int = 4,
        steps: int = 100,
        null: bool = False,
        precision: Precision | None = None,
        schedule: Schedule | None = None,
        measure_on: MeasureOn | None = None,
        batch_size: BatchSize | None = None,
        mode: Mode | None = None,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        if probes < 2 or steps < 2 or (num_samples is not None and num_samples < 2):
            raise ConfigurationError(
                f"JacobianSpectrum got probes={probes}, steps={steps}, num_samples={num_samples}; pass at least 2 of "
                "each."
            )
        super().__init__(
            num_samples=MOST if num_samples is None else num_samples,
            schedule=schedule,
            measure_on=measure_on,
            batch_size=batch_size,
            mode=mode,
            name=name,
            seed=seed,
            strict=strict,
        )
        self.outputs = outputs
        self.normalize = normalize
        self.parameters = parameters if isinstance(parameters, str | None) else list(parameters)
        self.probes = probes
        self.steps = steps
        self.null = null
        self.precision = checked_precision(precision)
        self._null: Spectrum | None = None
        self._by_rule = num_samples is None
        self._vectors: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse patterns that match nothing, if the layers exist already."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._null = None
            refuse_unmatched(pl_module, self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Also the eigenvalues of the null, which belongs to the initial weights."""
        null = {} if self._null is None else {"null": self._null.eigenvalues, "null_floor": self._null.floor}
        return {**super().state_dict(), **null}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the null of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._null = _known_null(state_dict["null"], state_dict["null_floor"]) if "null" in state_dict else None

    def differences(self) -> dict[str, Any]:
        """Normalisation, outputs and parameters, unless they are the defaults."""
        raw = {} if self.normalize else {"normalize": "raw"}
        outputs = {"outputs": self.outputs} if isinstance(self.outputs, str) else {}
        return {**raw, **outputs, **({} if self.parameters is None else {"parameters": self.parameters})}

    def settings(self) -> dict[str, Any]:
        """Also the settings of the matrix."""
        matrix = {
            "normalize": self.normalize,
            "parameters": self.parameters,
            "probes": self.probes,
            "steps": self.steps,
            "null": self.null,
            "precision": self.precision,
        }
        return {**super().settings(), **matrix}

    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """Two passes for each output, plus the inner products."""
        return 60.0

    def measure(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> Measurement:
        """Compute one kernel, its eigenvalues, and those of its first half."""
        probe, seed = probe.at(self.precision), self.seed if self.mode == "train" else None
        objective = jacobian_objective(probe.module, self.outputs, seed=seed).at(probe.dtype)
        layout = ParameterLayout.of(probe.module, self.parameters)
        batches, width = self._batches(probe, objective, layout)
        rows = sum(map(sample_count, batches)) * width
        by_products = rows > (MOST_ROWS if self._by_rule else ROW_LIMIT)

        def spectrum_on(samples: list[Batch]) -> Spectrum:
            return jacobian_of(
                objective,
                samples,
                rng=generator(self.seed),
                normalize=self.normalize,
                quadrature=self._quadrature(layout.dim) if by_products else None,
                method="products" if by_products else "gram",
                parameters=self.parameters,
                ranks=probe.context.ranks,
                on_product=probe.advance,
            )

        spectrum = spectrum_on(batches)
        notes = self.status_notes(probe, objective, batches, spectrum)
        notes += self._dominating(trainer, probe, spectrum)
        notes += [str(spectrum.detail[name]) for name in ("unsteady",) if name in spectrum.detail]
        fresh = probe.context.origin.fresh and not self.measurements
        if self.null and self._null is None and fresh and not by_products:
            self._null = spectrum_on(_without_structure(batches, self.seed))
        found = self.measurement(
            trainer,
            probe,
            jacobian_estimates(spectrum) if spectrum.status.ok else {},
            spectrum=spectrum,
            notes=tuple(notes),
        )
        return self._judged(found)

    def _judged(self, measurement: Measurement) -> Measurement:
        """The measurement with the verdict from the null, if there is one."""
        spectrum, null = measurement.spectrum, self._null
        if null is None or spectrum is None or spectrum.truncated or not spectrum.status.ok:
            return measurement
        verdict = sloppiness_verdict(spectrum, null, NULL, by="effective dimension")
        beside = {
            "null_effective_dimension": Estimate(verdict.null_dimension),
            "null_slope_times_rank": Estimate(-verdict.null_spread),
        }
        return replace(
            measurement,
            estimates={**measurement.estimates, **beside},
            verdicts={spectrum.matrix: verdict},
            companions={**measurement.companions, "null": null},
        )

    def _batches(self, probe: Probe, objective: Objective, layout: ParameterLayout) -> tuple[list[Batch], int]:
        """As many probe samples as the number of outputs allows, and that number."""
        given = weighted(objective.located(probe.batches))
        few = [picked(batch, torch.arange(min(2, sample_count(batch)))) for batch in given]
        width = max(width_of(objective, layout, batch) for batch in few)  # sequences may differ in length
        if self._by_rule:
            return small_probe(given, width, self.size.num_samples), width
        return first_samples(given, min(self.num_samples, self.size.num_samples)), width

    def _quadrature(self, dim: int) -> Quadrature:
        if self._vectors is None or self._vectors.shape != (self.probes, dim):
            self._vectors = rademacher(dim, self.probes, generator(self.seed + 1))

        def enough(diagonal: Tensor, off: Tensor) -> bool:
            trace = dim * float(diagonal[0])  # of one probe vector of unit length
            return density_is_resolved(diagonal, off, (THOUSANDTH * trace, 10 * THOUSANDTH * trace), STOP_AT)

        return Quadrature(self._vectors, self.steps, enough)

    def _dominating(self, trainer: Trainer, probe: Probe, spectrum: Spectrum) -> list[str]:
        """A sentence about a sample that contributes more than a tenth of the trace."""
        fraction = float(spectrum.detail.get("largest_sample_fraction", 0.0))
        if fraction <= max(DOMINATES, 5 / max(spectrum.num_samples, 1)):  # few samples have large fractions anyway
            return []
        number, which = int(spectrum.detail["largest_sample"]), "of the probe"
        if self.measure_on == "fixed_samples" and probe.context.samples.indexable(trainer):
            source = probe.context.samples.source(trainer)
            number = int(probe_indices(len(source), self.size.num_samples, self.seed)[number])
            which = "of the training data"
        sentence = Note(
            f"Sample {number:,} {which} contributes {percent(fraction)} of the trace of the Jacobian before the "
            "samples are normalised; inspect its inputs.",
            cause=f"dominating {number}",
            short=f"sample {number:,} dominates the trace",
        )
        return [sentence]

    def paragraphs(self) -> list[str]:
        """Effective dimension with band, error, number of samples and number of parameters."""
        event = phrases.last_reported(self.measurements)
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        samples, outputs = phrases.on_samples(event, "probe samples"), phrases.value(event, "num_outputs")
        sentences = [phrases.relative_dimension(event), phrases.when(event), samples]
        if outputs is not None:
            sentences.append(f"Outputs per sample: {phrases.number(outputs)}.")
        sentences.append(phrases.on_half(event))
        n90 = phrases.value(event, "n90")
        if n90 is not None:
            sentences.append(f"{phrases.number(n90)} directions together contribute 90 % of the trace.")
        sentences += [verdict_in_words("The network", verdict) for verdict in event.verdicts.values()]
        return [" ".join(filter(None, sentences)), *event.notes]


def _without_structure(batches: list[Batch], seed: int) -> list[Batch]:
    """Gaussian inputs of the same shape and mean square, with the same weights.

    Raises:
        ConfigurationError: If the inputs are not a single floating-point tensor.
    """
    rng, found = generator(seed), []
    for batch in batches:
        inputs, weights = batch
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise ConfigurationError(
                f"null=True needs inputs that are one floating-point tensor, but they are "
                f"{getattr(inputs, 'dtype', type(inputs).__name__)}; use null=False."
            )
        noise = torch.randn(inputs.shape, generator=rng, dtype=torch.float64).to(inputs)
        found.append(batch.of(noise * inputs.square().mean().sqrt(), weights))
    return found


def _known_null(values: Tensor, floor: float) -> Spectrum:
    """A null restored from its eigenvalues."""
    return Spectrum(values, len(values), 0, "jacobian", floor, Status.EXACT, 0 * values, float(values[0]), 0.0)


def jacobian_estimates(spectrum: Spectrum) -> dict[str, Estimate]:
    """The named numbers of a Jacobian's spectrum."""
    found = {
        **relative_estimates(spectrum),
        "num_parameters": Estimate(float(spectrum.dim)),
        "num_samples": Estimate(float(spectrum.num_samples)),
    }
    for name, value in (("num_outputs", "outputs"), ("largest_sample_fraction", "largest_sample_fraction")):
        if value in spectrum.detail:
            found[name] = Estimate(float(spectrum.detail[value]))
    if spectrum.trace is not None and spectrum.trace.value > 0:
        fraction = spectrum.largest / spectrum.trace.value
        relative = spectrum.trace.standard_error / spectrum.trace.value
        found["largest_fraction"] = Estimate(fraction, relative * fraction, status=spectrum.trace.status)
    if not spectrum.truncated and spectrum.status is not Status.NON_FINITE:
        found |= {"entropy_rank": entropy_rank(spectrum), **shape_estimates(spectrum)}
    return found
