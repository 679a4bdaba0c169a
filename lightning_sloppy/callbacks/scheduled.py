"""Measurements that come again and again: when, and how much each may cost."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.callbacks.base import MeasuringCallback, peers
from lightning_sloppy.callbacks.rounds import decide
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.schedule import Budget, Schedule, Work
from lightning_sloppy.records import Measurement

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

WORTH_IT = 0.8
"""Share of the cost to which a smaller work must come down: fewer pairs save nothing where the quadrature is dear."""


class ScheduledCallback(MeasuringCallback):
    """Measures at train start, whenever the schedule says, and at the end of the fit, within a budget.

    What is due at one step is one round, taken or left out as a whole by one decision of rank 0. The first and the last
    measurement always happen; one before the first product is timed so that it does not take longer than half the
    grace. A round that the budget does not allow yet is left out, so that the interval stretches as far as it must;
    where a whole run would have fewer than 10 rounds, each one does less: probe vectors, then samples, then k.

    Args:
        schedule: When.
        budget: What all measuring of the fit may cost; None of the callbacks of a round may be over its own.
        work: How much one measurement does, unless it must do less.
        strict: Raise errors of measurements.

    Attributes:
        work: How much the next measurement does.
        expected_seconds: What it will take, by the latest one, subscribers included.
    """

    def __init__(self, *, schedule: Schedule, budget: Budget, work: Work, strict: bool = False) -> None:
        super().__init__(strict=strict)
        self.schedule = schedule
        self.budget = budget
        self.work = self._asked = work
        self._measured_at: int | None = None
        self._waiting = False
        self._tells_share = False
        self.expected_seconds = 0.0
        self._clock = (0.0, 0.0)

    @property
    def measured_at(self) -> int | None:
        """Effective batches that were done at the latest measurement; None before the fit."""
        return self._measured_at

    @abstractmethod
    def gradients(self, work: Work) -> float:
        """About how many gradients of the mean loss over the probe one measurement costs."""

    @abstractmethod
    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Wall-clock seconds of one on the probe; called inside the guard."""

    @abstractmethod
    def has_probe(self, trainer: Trainer, context: FitContext) -> bool:
        """Whether the samples to measure on are there."""

    @abstractmethod
    def wants_batch(self, trainer: Trainer) -> bool:
        """Whether the batch that comes now will be measured on."""

    def cheaper(self, work: Work) -> tuple[Work, float] | None:
        """The next smaller work, and its cost as a share of this one's; None when it would hardly save anything."""
        less = work.less()
        if less is None:
            return None
        share = self.gradients(less) * less.num_samples / (self.gradients(work) * work.num_samples)
        return (less, share) if share <= WORTH_IT else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._measured_at = None
            self._waiting = False
            self._tells_share = False
            self.expected_seconds = 0.0
            self._clock = (0.0, 0.0)
            self.work = self._asked

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """First measurement, so that monitors exist before any check; ``on_fit_start`` would be too early for data.

        A probe of batches that pass by is not there yet; then the first measurement comes when it is.
        """
        self._measured_at = trainer_internals.effective_batches(trainer)
        self._waiting = not self._ready(trainer, pl_module)
        if not self._waiting:
            self._go_on_from(trainer, pl_module)
            self.take(trainer, pl_module, step=self._measured_at)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copy the batch where it will be measured on, before the step can change it."""
        if self.wants_batch(trainer):
            with suppress(ConfigurationError):  # without a context the measurement says what is wrong
                wanted = max(peer.work.num_samples for peer in _scheduled(trainer))
                context, number = fit_context(trainer, pl_module), trainer_internals.batch_number(trainer)
                context.passing.see(batch, number, context.own(wanted))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure behind a batch that is due: before validation, at the x-value of the batch's own metrics."""
        if self._waiting and trainer_internals.batch_steps(trainer):
            # After a whole epoch there is nothing new to wait for.
            ready = self._ready(trainer, pl_module) or trainer_internals.is_last_batch(trainer)
            self._waiting = not trainer.strategy.reduce_boolean_decision(ready)
            now = not self._waiting
            if now:
                self._go_on_from(trainer, pl_module)
        else:
            now = self.due(trainer) and not self._waiting and self._admitted(trainer, pl_module)
        if now:
            step = trainer_internals.effective_batches(trainer)
            self._measured_at = step + 1
            self._tells_share = not any(peer.due(trainer) and not peer._waiting for peer in self._behind(trainer))
            self.take(trainer, pl_module, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Last measurement, if training went on since the one before."""
        done = trainer_internals.effective_batches(trainer)
        if self._measured_at is not None and done > self._measured_at:
            self._measured_at = done
            self._waiting = False
            self._tells_share = not any((peer._measured_at or 0) < done for peer in self._behind(trainer))
            self.take(trainer, pl_module, step=done - 1)
        super().on_train_end(trainer, pl_module)

    def due(self, trainer: Trainer) -> bool:
        """Whether the schedule wants a measurement behind the batch that just ended."""
        return trainer_internals.batch_steps(trainer) and self.schedule.due(
            trainer_internals.effective_batches(trainer) + 1,
            epoch=trainer.current_epoch,
            ends_epoch=trainer_internals.is_last_batch(trainer),
        )

    def take(self, trainer: Trainer, pl_module: LightningModule, *, step: int) -> None:
        """Measure, and remember what it cost, subscribers included."""
        start = time.perf_counter()
        super().take(trainer, pl_module, step=step)
        self.expected_seconds = time.perf_counter() - start
        context = fit_context(trainer, pl_module) if self.latest is not None else None
        if context is not None:
            self._clock = (context.measuring_seconds, context.training_seconds)

    def attempt(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Measure; out of memory, free what is cached and do less until it fits."""
        while True:
            try:
                return super().attempt(trainer, pl_module, context, step)
            except torch.OutOfMemoryError as error:
                less = self.work.less()
                if less is None:
                    raise MemoryError(
                        f"The device has no memory left, even for {self.work}; lower num_samples, k or probes, or "
                        f"leave the callback out. {str(error).splitlines()[0]}"
                    ) from error
                message = f"the device has no memory for {self.work}"
            torch.cuda.empty_cache()
            self._do(less, message)

    def share(self, trainer: Trainer, context: FitContext, step: int) -> float | None:
        """Told once in a round, by its last callback, and not before there was anything to share the time with."""
        return context.share if self._tells_share and step > 0 else None

    def _behind(self, trainer: Trainer) -> list[ScheduledCallback]:
        """Those that come later in a round."""
        family = _scheduled(trainer)
        return family[family.index(self) + 1 :]

    def settings(self) -> dict[str, Any]:
        """Samples, schedule and budget."""
        schedule, budget = dataclasses.asdict(self.schedule), dataclasses.asdict(self.budget)
        return {"num_samples": self._asked.num_samples, **schedule, **budget}

    def state_dict(self) -> dict[str, Any]:
        """Also what measuring has cost so far, and how much a measurement does."""
        measuring_seconds, training_seconds = self._clock
        return {
            **super().state_dict(),
            "measuring_seconds": measuring_seconds,
            "training_seconds": training_seconds,
            "work": dataclasses.asdict(self.work),
            "asked": dataclasses.asdict(self._asked),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the clock and the work of the run that wrote the checkpoint, if the same work was asked for."""
        super().load_state_dict(state_dict)
        self._clock = (state_dict.get("measuring_seconds", 0.0), state_dict.get("training_seconds", 0.0))
        if state_dict.get("asked") == dataclasses.asdict(self._asked):
            self.work = Work(**state_dict["work"])

    def _go_on_from(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the clock of a resumed run; else see that the first measurement is within reason."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return  # the measurement itself says what is wrong
        if self._clock != (0.0, 0.0):
            context.resume_clock(*self._clock)
        elif self.budget.max_overhead is not None:
            work = trainer.strategy.broadcast(self._affordable(trainer, pl_module, context))
            self._do(work, "a timed gradient says that it would take long")

    def _ready(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the probe is there; True also where nothing is, for then the measurement says why."""
        try:
            return self.has_probe(trainer, fit_context(trainer, pl_module))
        except ConfigurationError:
            return True

    def _affordable(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> Work:
        """The work whose predicted time is half the grace at most, for there is a last measurement as well."""
        start, work = time.perf_counter(), self.work

        def timed() -> float:
            with measuring(pl_module):
                return self.seconds_of_a_gradient(trainer, context)

        try:
            seconds = context.ranks.together(timed)
        except Exception:
            return work  # the measurement itself says what is wrong, and other ranks wait for an answer
        context.measuring_seconds += time.perf_counter() - start
        seconds *= self.gradients(work)
        while seconds > self.budget.grace_seconds / 2 and (cheaper := self.cheaper(work)) is not None:
            work, share = cheaper
            seconds *= share
        return work

    def _do(self, work: Work, reason: str) -> None:
        """Change the work, and say so."""
        if work != self.work:
            rank_zero_info(
                f"The {self.group} measurements use {work} instead of {self.work}, for {reason}; pass these numbers, "
                f"or raise max_overhead={self.budget.max_overhead} or grace_seconds={self.budget.grace_seconds:g}."
            )
            self.work = work

    def _admitted(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """The decision about this round: made by the first callback of it, on rank 0, and the same for all."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return True  # the measurement says what is wrong
        step = trainer_internals.effective_batches(trainer)
        if context.decision is None or context.decision[0] != step:
            family = _scheduled(trainer)
            due = [peer for peer in family if peer.due(trainer)]
            taken, works, costs = trainer.strategy.broadcast(decide(trainer, context, due, family))
            for peer, work, cost in zip(due, works, costs, strict=True):
                peer._do(work, "within the budget there would be few measurements")
                peer.expected_seconds = cost
            context.decision = (step, taken)
            if not taken and not context.stretched:
                context.stretched = True
                rank_zero_info(
                    f"From step {step} on measurements come less often than asked for: so far they took "
                    f"{context.measuring_seconds:.1f} s, training {context.training_seconds:.1f} s. The curve "
                    "sloppy_cost/share shows it; max_overhead and grace_seconds set the limit."
                )
        return context.decision[1]


def _scheduled(trainer: Trainer) -> list[ScheduledCallback]:
    return [peer for peer in peers(trainer) if isinstance(peer, ScheduledCallback)]
