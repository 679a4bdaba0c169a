"""The curvature scale of a run: chosen once, kept in the state, so that curves can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from lightning_sloppy.callbacks.scheduled import ScheduledCallback
from lightning_sloppy.curvature.shares import own_samples
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.loss_checks import checked_loss
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.measures.effective_dimension import curvature_scale
from lightning_sloppy.probing.context import FitContext, ProbeKind
from lightning_sloppy.probing.objective import ObjectiveChoice, seconds_of_a_gradient
from lightning_sloppy.probing.schedule import Budget, Schedule, Work
from lightning_sloppy.records import Estimate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Scale:
    """Prior precision ``epsilon`` and ``z = epsilon / (2 (n - 1))``."""

    epsilon: float
    z: float

    def estimates(self) -> dict[str, Estimate]:
        """Both as named numbers: an effective dimension without its scale says nothing."""
        return {"epsilon": Estimate(self.epsilon), "z": Estimate(self.z)}


class ScaledCallback(ScheduledCallback):
    """A scheduled measurement whose numbers need a curvature scale.

    Args:
        epsilon: Prior precision; None for ``p / ||w0||^2``, a prior as wide as the weights with which training began.
        objective: The user's loss, or None.
        seed: Of the probe.
        probe: "fixed" or "batch".
        schedule: When.
        budget: What all measuring of the fit may cost.
        work: How much one measurement does.
        strict: Raise errors of measurements.
    """

    def __init__(
        self,
        *,
        epsilon: float | None,
        objective: Loss | None,
        seed: int,
        probe: ProbeKind,
        schedule: Schedule,
        budget: Budget,
        work: Work,
        strict: bool,
    ) -> None:
        super().__init__(schedule=schedule, budget=budget, work=work, strict=strict)
        if epsilon is not None and not epsilon > 0:
            raise ConfigurationError(f"epsilon={epsilon} was asked for; pass a positive prior precision, or None.")
        self.epsilon = epsilon
        self._kept_epsilon: float | None = None
        checked_loss(objective)
        self.objective = objective
        self.seed = seed
        if probe not in get_args(ProbeKind):
            raise ConfigurationError(f"probe={probe!r} is unknown; choose one of {', '.join(get_args(ProbeKind))}.")
        self.probe_kind = probe

    def has_probe(self, trainer: Trainer, context: FitContext) -> bool:
        """Whether the samples to measure on are there."""
        if self.probe_kind == "fixed" and context.indexable(trainer):
            return True
        return context.passing.num_samples >= (context.own(self.work.num_samples) if self.probe_kind == "fixed" else 1)

    def wants_batch(self, trainer: Trainer) -> bool:
        """Whether the batch that comes now will be measured on."""
        return self._waiting or (self.probe_kind == "batch" and self.due(trainer))

    def probe(self, trainer: Trainer, context: FitContext) -> tuple[ObjectiveChoice, list[Batch]]:
        """The loss of the fit, and the samples to measure on."""
        choice = context.objective(trainer, self.objective)
        return choice, choice.objective.prepare(
            context.probe(trainer, self.work.num_samples, self.seed, self.probe_kind)
        )

    def shared(
        self, context: FitContext, choice: ObjectiveChoice, batches: list[Batch]
    ) -> tuple[ObjectiveChoice, list[Batch]]:
        """This rank's part of the probe, and the loss that adds up over the ranks; of one process, what was given."""
        mine, _ = own_samples(context.ranks, choice.objective, batches)
        return replace(choice, objective=choice.objective.over(context.ranks)), mine

    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Of the mean loss over the probe."""
        return seconds_of_a_gradient(*self.shared(context, *self.probe(trainer, context)))

    def scale(self, trainer: Trainer, context: FitContext) -> tuple[Scale | None, str]:
        """The scale of this run, or None and a sentence that says what to give."""
        if context.fresh and not self.measurements:
            self._kept_epsilon = None  # a new run; one that goes on with trained weights keeps its scale
        epsilon = self.epsilon or self._kept_epsilon or context.prior_precision()
        n = context.train_size(trainer)
        if epsilon is None:
            return None, "All weights are zero at the start, so no scale follows from them; pass epsilon=."
        if n is None:
            return None, (
                "Nobody knows how many training samples there are (several loaders, or an iterable data set without "
                "__len__), so there is no scale z = epsilon / (2 (n - 1)) and no effective dimension; give the data "
                "set a __len__."
            )
        if n < 2:
            return None, "With a single training sample there is no effective dimension; train on more."
        self._kept_epsilon = epsilon
        return Scale(epsilon, curvature_scale(epsilon, n)), ""

    def settings(self) -> dict[str, Any]:
        """Also the scale that was asked for, and which samples are measured on."""
        return {**super().settings(), "epsilon": self.epsilon, "probe": self.probe_kind, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """The prior precision of the run: a resumed curve keeps its scale."""
        kept = {} if self._kept_epsilon is None else {"epsilon": self._kept_epsilon}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the scale of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._kept_epsilon = state_dict.get("epsilon")
