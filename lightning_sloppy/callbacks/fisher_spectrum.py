"""Fisher information of the training loss: all its eigenvalues on the probe, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_sloppy.analysis import Fisher, Solve, fisher_of
from lightning_sloppy.callbacks.scale import Scale, ScaledCallback
from lightning_sloppy.curvature.cotangents import checked_kind
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import sample_count
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.measures import effective_dimension as dimension
from lightning_sloppy.measures.dimensions import degrees_of_freedom, stable_rank
from lightning_sloppy.measures.sloppiness import effective_rank, entropy_rank, participation_ratio
from lightning_sloppy.probing.context import FitContext, ProbeKind
from lightning_sloppy.probing.schedule import Budget, Schedule, Work
from lightning_sloppy.records import Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FisherSpectrum(ScaledCallback):
    """Track the spectrum of the Fisher information of the training loss on a fixed probe.

    All non-zero eigenvalues through the N x N Gram matrix of per-sample gradients, hence the effective dimension
    ``N_eff(z) = sum lambda/(lambda + z)``, the count ``p(n, epsilon) = #{lambda >= z}``, the trace and the
    participation ratio without estimation error on the probe. They grow with N, so N and the values at N/2 stand
    beside them. ``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022, arXiv 2110.14163).

    Args:
        kind: "empirical" (gradients at the data's targets), "sampled" (at targets drawn from the model) or "exact"
            (the Gauss-Newton matrix; N times the outputs rows, so small probes only).
        num_samples: Probe samples N, drawn once from the training data.
        epsilon: Prior precision; null: p / ||w0||^2 of the weights at the start, kept for the whole run.
        objective: Mean-reduced loss of (outputs, targets); null: found from the module and checked.
        probe: "fixed": the same samples every time, so that curves show the network and not the draw; where samples
            cannot be read by index (iterable data, several loaders), the first batches of the training. "batch": the
            batch just trained on.
        every_n_epochs: Measure at the end of every so-manieth epoch; null: 1 where no other interval is given.
        every_n_steps: Measure behind every so-manieth effective batch.
        at_steps: Measure behind these effective batches, counted from 1.
        per_decade: Measure behind so many effective batches in every tenfold, evenly spaced in the logarithm.
        max_overhead: Limit of (seconds of measuring - grace_seconds) / (seconds of training without measuring), all
            callbacks of the fit together; measurements come less often where they would be over it, and where a
            whole run would have fewer than ten, each does less. Said once, and seen in ``sloppy_cost/share``. null: no
            limit.
        grace_seconds: Measuring that is free, so that short runs are measured as asked.
        seed: Of the probe samples and sampled targets.
        strict: Raise errors of measurements instead of warning.

    Raises:
        ConfigurationError: For an unknown kind or numbers out of range.

    Example:
        >>> FisherSpectrum(kind="empirical").kind
        'empirical'
    """

    group = "fisher"

    def __init__(
        self,
        kind: Literal["empirical", "sampled", "exact"] = "empirical",
        *,
        num_samples: int = 1024,
        epsilon: float | None = None,
        objective: Loss | None = None,
        probe: ProbeKind = "fixed",
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        at_steps: Sequence[int] = (),
        per_decade: int | None = None,
        max_overhead: float | None = 0.1,
        grace_seconds: float = 60.0,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            objective=objective,
            seed=seed,
            probe=probe,
            schedule=Schedule(every_n_epochs, every_n_steps, at_steps, per_decade),
            budget=Budget(max_overhead, grace_seconds),
            work=Work(num_samples),
            strict=strict,
        )
        if num_samples < 2:
            raise ConfigurationError(f"FisherSpectrum got num_samples={num_samples}; pass at least 2 probe samples.")
        self.kind = checked_kind(kind)
        self.num_samples = num_samples

    def settings(self) -> dict[str, Any]:
        """Also the kind."""
        return {**super().settings(), "kind": self.kind}

    def gradients(self, work: Work) -> float:
        """Two passes, and the inner products; ten times that for the columns of the exact kind."""
        return 80.0 if self.kind == "exact" else 8.0

    def measure(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """One Gram matrix, one eigenvalue decomposition, and those of the leading half."""
        choice, batches = self.probe(trainer, context)
        scale, sentence = self.scale(trainer, context)
        with progress(trainer, f"Fisher: measuring on {sum(sample_count(batch) for batch in batches):,} samples"):
            spectrum = fisher_of(
                choice.objective,
                batches,
                fisher=Fisher(self.kind, seed=self.seed),
                solve=Solve(
                    k=10, eigenvectors=any(listener.needs_eigenvectors for listener in self.subscribers(trainer))
                ),
                ranks=context.ranks,
                rng=generator(self.seed),
            )
        if spectrum.status is Status.NON_FINITE:
            self.warn_once(f"Fisher at step {step}: {spectrum.status.value}", trainer=trainer)
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            matrix=self.group,
            spectrum=spectrum,
            estimates={} if spectrum.status is Status.NON_FINITE else fisher_estimates(spectrum, scale),
            cost=spectrum.cost,
            status=spectrum.status,
            num_samples=spectrum.num_samples,
            precision=str(choice.objective.dtype).removeprefix("torch."),
            notes=(sentence,) if sentence else (),
        )


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
    if scale is None:
        return found
    found |= scale.estimates()
    found["effective_dimension"] = dimension.effective_dimension(spectrum, scale.z)
    found["effective_dimension_fine"] = dimension.effective_dimension(spectrum, scale.z / 10)
    found["effective_dimension_coarse"] = dimension.effective_dimension(spectrum, scale.z * 10)
    found["degrees_of_freedom_2"] = degrees_of_freedom(spectrum, scale.z, 2)
    found["eigenvalue_count"] = dimension.eigenvalue_count(spectrum, scale.z)
    half = dimension.of_half_the_samples(spectrum)
    if half is not None:
        found["effective_dimension_half_samples"] = dimension.effective_dimension(half, scale.z)
        found["eigenvalue_count_half_samples"] = dimension.eigenvalue_count(half, scale.z)
    return found
