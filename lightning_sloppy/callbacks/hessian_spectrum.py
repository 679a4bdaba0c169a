"""Hessian of the training loss: its ends, its trace, and the effective dimension of its Gauss-Newton part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_sloppy.analysis import Quadrature, Solve, checked_counts, gauss_newton_of, hessian_of
from lightning_sloppy.callbacks.directions import Directions
from lightning_sloppy.callbacks.scale import Scale, ScaledCallback
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures import brackets
from lightning_sloppy.measures import effective_dimension as dimension
from lightning_sloppy.probing.context import FitContext, ProbeKind
from lightning_sloppy.probing.objective import ObjectiveChoice
from lightning_sloppy.probing.schedule import Budget, Schedule, Work
from lightning_sloppy.records import Cost, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

STOP_AT = 0.02
"""Quadrature stops when the bracket of N_eff is this narrow: a fifth of what makes a value unresolved."""

MOST_START_BYTES = 256 * 1024**2
"""Larger weights are not kept in checkpoints; the displacement of a resumed run then counts from where it resumed."""


class HessianSpectrum(ScaledCallback):
    """Track the spectrum of the Hessian of the training loss on a fixed probe.

    Top-k eigenpairs by magnitude with residuals (Lanczos, full reorthogonalisation), the trace by Rademacher probe
    vectors, and of the Gauss-Newton part, by stochastic Lanczos quadrature with brackets, the effective dimension
    ``N_eff(z) = sum lambda/(lambda + z)`` and the count ``p(n, epsilon) = #{lambda >= z}``, both with standard error
    and truncation error. ``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022, arXiv 2110.14163).

    Args:
        k: Eigenpairs, at least 1. Ten: about one for each class of the usual data sets.
        probes: Rademacher probe vectors for trace and effective dimension, at least 2. Four: a standard error of
            about a tenth.
        num_samples: Probe samples N, drawn once from the training data.
        steps: Greatest depth of the quadrature; it stops earlier when the brackets are narrow.
        tol: Residual relative to the largest magnitude; null: 1e-3 in float32, 1e-8 in float64.
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
        seed: Of the probe samples and vectors; the same ones serve at every measurement.
        strict: Raise errors of measurements instead of warning.

    Raises:
        ConfigurationError: For k < 1, fewer than 2 probes, or other numbers out of range.

    Example:
        >>> callback = HessianSpectrum(k=5)
        >>> callback.latest is None
        True
    """

    group = "hessian"

    def __init__(
        self,
        k: int = 10,
        probes: int = 4,
        *,
        num_samples: int = 1024,
        steps: int = 100,
        tol: float | None = None,
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
            work=Work(num_samples, probes, k),
            strict=strict,
        )
        checked_counts(k, probes)
        if probes < 2 or num_samples < 1 or steps < 2 or (tol is not None and not 0 < tol < 1):
            raise ConfigurationError(
                f"HessianSpectrum got probes={probes}, num_samples={num_samples}, steps={steps}, tol={tol}; pass at "
                "least 2 probes, 1 sample and 2 steps, and a tol between 0 and 1 or null."
            )
        self.k = k
        self.probes = probes
        self.num_samples = num_samples
        self.steps = steps
        self.tol = tol
        self._vectors: Tensor | None = None
        self._directions = Directions()
        self._start: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the directions of the last fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._directions = Directions()
            self._start = None

    def settings(self) -> dict[str, Any]:
        """Also the pairs and the quadrature."""
        return {**super().settings(), "k": self.k, "probes": self.probes, "steps": self.steps, "tol": self.tol}

    def state_dict(self) -> dict[str, Any]:
        """Also the weights at the start, from which displacements are measured.

        A tensor of the model's size: a seed would not tell them where somebody loads weights, and files beside a
        checkpoint get lost. The bound keeps the same tensor, and a checkpoint holds a tensor once.
        """
        start = self._start
        kept = {} if start is None or start.numel() * start.element_size() > MOST_START_BYTES else {"start": start}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the scale, the clock and the start of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._start = state_dict.get("start")

    def gradients(self, work: Work) -> float:
        """A product costs about two; networks take 2 k + 5 of them for the pairs, and half the depth for the rest."""
        return 2.0 * (2 * work.k + 5 + work.probes * (1 + self.steps / 2))

    def measure(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Hessian first, then its Gauss-Newton part, on the same probe and the same probe vectors."""
        self._start = context.started_from(self._start)
        choice, batches = self.probe(trainer, context)
        scale, sentence = self.scale(trainer, context)
        dim = ParameterLayout.of(pl_module).dim
        if self._vectors is None or self._vectors.shape != (self.work.probes, dim):
            self._vectors = rademacher(dim, self.work.probes, generator(self.seed + 1))
        notes = [note for note in (choice.note, sentence) if note]
        if choice.note:
            self.warn_once(choice.note, trainer=trainer)
        title = f"Hessian: measuring on {sum(map(sample_count, batches)):,} samples"
        choice, batches = self.shared(context, choice, batches)
        with progress(trainer, title) as bar:
            hessian = hessian_of(
                choice.objective,
                batches,
                quadrature=Quadrature(self._vectors, steps=1),
                solve=Solve(
                    self.work.k,
                    tol=self.tol,
                    eigenvectors=Directions.affordable(dim, self.work.k, choice.objective.dtype)
                    or any(listener.needs_eigenvectors for listener in self.subscribers(trainer)),
                ),
                rng=generator(self.seed),
                on_product=bar.advance,
            )
            gauss_newton = None
            if scale is not None and choice.objective.has_outputs and hessian.status.ok:
                gauss_newton = self._gauss_newton(choice, batches, scale, bar.advance)
        if not hessian.status.ok:
            self.warn_once(f"Hessian at step {step}: {hessian.status.value}", trainer=trainer)
        if gauss_newton is not None and not gauss_newton.status.ok:
            notes.append(f"Gauss-Newton part: {gauss_newton.status.value}")
        estimates = self._estimates(hessian, gauss_newton, scale)
        if hessian.status.ok:
            estimates |= self._directions.estimates(trainer, context, choice.objective, batches, hessian)
        notes += [str(hessian.detail[name]) for name in ("fallback", "unsteady") if name in hessian.detail]
        notes += _unresolved(estimates)
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            matrix=self.group,
            spectrum=hessian,
            estimates=estimates,
            cost=_joint_cost(hessian, gauss_newton),
            status=hessian.status,
            num_samples=hessian.num_samples,
            precision=str(choice.objective.dtype).removeprefix("torch."),
            notes=tuple(notes),
            companions={} if gauss_newton is None else {"gauss_newton": gauss_newton},
        )

    def _gauss_newton(self, choice: ObjectiveChoice, batches: list[Batch], scale: Scale, tick: Any) -> Spectrum:
        assert self._vectors is not None
        scales, dim = (scale.z / 10, scale.z, scale.z * 10), self._vectors.shape[1]
        return gauss_newton_of(
            choice.objective,
            batches,
            quadrature=Quadrature(
                self._vectors,
                self.steps,
                lambda diagonal, off: (
                    brackets.density_is_resolved(diagonal, off, scales, STOP_AT)
                    and brackets.count_is_resolved(diagonal, off, scale.z, dim)
                ),
            ),
            rng=generator(self.seed),
            on_product=tick,
        )

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
        if gauss_newton is not None and scale is not None and gauss_newton.status.ok:
            found["effective_dimension"] = dimension.effective_dimension(gauss_newton, scale.z)
            found["effective_dimension_fine"] = dimension.effective_dimension(gauss_newton, scale.z / 10)
            found["effective_dimension_coarse"] = dimension.effective_dimension(gauss_newton, scale.z * 10)
            found["eigenvalue_count"] = dimension.eigenvalue_count(gauss_newton, scale.z)
            if gauss_newton.trace is not None:
                found["gauss_newton_trace"] = gauss_newton.trace
        return found


def _unresolved(estimates: dict[str, Estimate]) -> list[str]:
    """A sentence for every value that must not be shown."""
    return [
        f"{name}: {estimate.status.value}"
        for name, estimate in estimates.items()
        if estimate.status in (Status.UNRESOLVED, Status.UNAVAILABLE)
    ]


def _joint_cost(hessian: Spectrum, gauss_newton: Spectrum | None) -> Cost:
    parts = [hessian.cost] + ([] if gauss_newton is None else [gauss_newton.cost])
    return Cost(
        products=sum(part.products for part in parts),
        product_seconds=sum(part.product_seconds for part in parts),
        method=", ".join(dict.fromkeys(part.method for part in parts)),
    )
