"""Measurements that come again and again: when, and how much each may cost."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context, known_context
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.schedule import Candidate, MeasurementSize, Schedule, decide_round
from lightning_sloppy.records import Measurement

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

SAVING = 0.8
"""A smaller measurement must come down to this fraction of the cost: fewer pairs save little beside the quadrature."""


def check_schedule(schedule: object) -> None:
    """Check that a schedule is one.

    Raises:
        ConfigurationError: For anything else but None.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ConfigurationError(
            f"schedule={schedule!r} was asked for; pass lightning_sloppy.Schedule(...), for instance "
            "Schedule(every_n_steps=100)."
        )


class PeriodicCallback(MeasuringCallback):
    """Measures at train start, whenever the schedule says, and at the end of the fit, at a limited cost.

    What is due at one step is one round, taken or left out as a whole by one decision of rank 0. The first and the last
    measurement always happen; one before the first product is timed so that it does not take longer than half the
    grace. A round that the limit does not allow yet is left out, so that the interval stretches as far as it must;
    where a whole run would have fewer than 10 rounds, each one measures less: probe vectors, then samples, then k.

    Args:
        size: How much one measurement does, unless it must do less.
        schedule: When to measure, and what all measuring of the fit may cost; None: after every epoch.
        name: Name in the tags.
        seed: Of the samples and draws.
        strict: Raise errors of measurements.

    Attributes:
        size: How much the next measurement does.
        expected_seconds: What it will take, by the latest one, subscribers included.
    """

    schedule: Schedule

    def __init__(
        self,
        *,
        size: MeasurementSize,
        schedule: Schedule | None = None,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        super().__init__(name=name, seed=seed, strict=strict)
        check_schedule(schedule)
        self._settle(schedule=(schedule, Schedule()))
        self.size = self._size_asked_for = size
        self._measured_at: int | None = None
        self._epoch: int | None = None
        self._waiting = False
        self._publishes_overhead = False
        self.expected_seconds = 0.0
        self._clock = (0.0, 0.0)
        self._own_seconds = 0.0
        self._said_costly = False

    @abstractmethod
    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """About how many gradients of the mean loss over the probe one measurement costs."""

    @abstractmethod
    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Wall-clock seconds of one on the probe; called inside the guard."""

    @abstractmethod
    def has_samples(self, trainer: Trainer, context: FitContext) -> bool:
        """Whether the samples to measure on are there."""

    @abstractmethod
    def wants_batch(self, trainer: Trainer) -> bool:
        """Whether the batch that comes now will be measured on."""

    @property
    def measured_at(self) -> int | None:
        """Effective batches that were done at the latest measurement; None before the fit."""
        return self._measured_at

    def cheaper(self, size: MeasurementSize) -> tuple[MeasurementSize, float] | None:
        """The next smaller size, and its cost as a fraction of this one's; None when it would hardly save anything."""
        smaller = size.smaller()
        if smaller is None:
            return None
        fraction = (self._cost(smaller) * smaller.num_samples) / (self._cost(size) * size.num_samples)
        return (smaller, fraction) if fraction <= SAVING else None

    def _cost(self, size: MeasurementSize) -> float:
        """In gradients; one where nobody knows, so that sizes are compared by their samples alone."""
        try:
            return max(float(self.cost_in_gradients(size)), 1e-9)
        except Exception:
            return 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._measured_at = self._epoch = None
            self._waiting = False
            self._publishes_overhead = False
            self.expected_seconds = 0.0
            self._clock = (0.0, 0.0)
            self._own_seconds = 0.0
            self._said_costly = False
            self.size = self._size_asked_for

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """First measurement, so that monitors exist before any check; ``on_fit_start`` would be too early for data.

        A probe of streamed batches is not there yet; then the first measurement comes when it is.
        """
        self._measured_at = trainer_internals.effective_batches(trainer)
        self._waiting = not self._ready(trainer, pl_module)
        if not self._waiting:
            self._resume_clock(trainer, pl_module)
            self.run(trainer, pl_module, step=self._measured_at)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copy the batch where it will be measured on, before the step can change it."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.wants_batch(trainer):
            with suppress(ConfigurationError):  # without a context the measurement says what is wrong
                wanted = max(peer.size.num_samples for peer in _periodic(trainer))
                samples, number = fit_context(trainer, pl_module).samples, trainer_internals.batch_number(trainer)
                said = (getattr(peer, "batch_size", None) for peer in _periodic(trainer))
                batch_size = next((each for each in said if each is not None), None)
                samples.streamed.see(batch, number, samples.own(wanted), module=pl_module, batch_size=batch_size)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after a batch that is due: before validation, at the x-value of the batch's own metrics."""
        self._epoch = trainer.current_epoch
        if self._waiting and trainer_internals.batch_steps(trainer):
            # After a whole epoch there is nothing new to wait for.
            ready = self._ready(trainer, pl_module) or trainer_internals.is_last_batch(trainer)
            self._waiting = not trainer.strategy.reduce_boolean_decision(ready)
            now = not self._waiting
            if now:
                self._resume_clock(trainer, pl_module)
        else:
            now = self.due(trainer) and not self._waiting and self._admitted(trainer, pl_module)
        if now:
            step = trainer_internals.effective_batches(trainer)
            self._measured_at = step + 1
            later = self._later(trainer)
            self._publishes_overhead = not any(peer.due(trainer) and not peer._waiting for peer in later)
            self.run(trainer, pl_module, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Last measurement, if training went on since the one before."""
        self._end_of_steps(trainer, pl_module)
        done = trainer_internals.effective_batches(trainer)
        if self._measured_at is not None and done > self._measured_at:
            self._measured_at = done
            self._waiting = False
            self._publishes_overhead = not any((peer._measured_at or 0) < done for peer in self._later(trainer))
            # The Trainer counts the epoch that has just ended already.
            self.run(trainer, pl_module, step=done - 1, epoch=self._epoch)
        super().on_train_end(trainer, pl_module)

    def due(self, trainer: Trainer) -> bool:
        """Whether the schedule wants a measurement after the batch that just ended."""
        return trainer_internals.batch_steps(trainer) and self.schedule.due(
            trainer_internals.effective_batches(trainer) + 1,
            epoch=trainer.current_epoch,
            ends_epoch=trainer_internals.is_last_batch(trainer),
        )

    def run(self, trainer: Trainer, pl_module: LightningModule, *, step: int, epoch: int | None = None) -> None:
        """Measure, and remember what it cost, subscribers included."""
        trainer_internals.wait_for_device(trainer)
        start = time.perf_counter()
        super().run(trainer, pl_module, step=step, epoch=epoch)
        self._note_cost(trainer, time.perf_counter() - start)

    def _release(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> None:
        """What was held back; its subscribers are a part of its cost."""
        if not self._held:
            return
        trainer_internals.wait_for_device(trainer)
        start, before, confirmed = time.perf_counter(), self.expected_seconds, context.losses.is_confirmed(self.mode)
        super()._release(trainer, pl_module, context)
        if confirmed:  # else it was measured anew, and that has noted its own cost
            self._note_cost(trainer, before + time.perf_counter() - start)

    def _note_cost(self, trainer: Trainer, seconds: float) -> None:
        self.expected_seconds = seconds
        context = known_context(trainer) if self.latest is not None else None
        if context is not None:
            self._clock = (context.clock.measuring_seconds, context.clock.training_seconds)
            self._own_seconds += self.expected_seconds
            self._say_costly(trainer, context)

    def attempt(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Measure; out of memory, free what is cached and measure less until it fits."""
        while True:
            try:
                return super().attempt(trainer, pl_module, context, step)
            except torch.OutOfMemoryError as error:
                smaller = self.size.smaller()
                if smaller is None:
                    raise MemoryError(
                        f"The device has no memory left, even for {self.size}; lower num_samples, k or probes, or "
                        f"leave the callback out. {str(error).splitlines()[0]}"
                    ) from error
                message = f"the device has no memory for {self.size}"
            torch.cuda.empty_cache()
            self._resize(smaller, message)

    def overhead(self, context: FitContext, step: int) -> float | None:
        """Published once in a round, by its last callback, and not before there was any training to compare with."""
        return context.clock.overhead if self._publishes_overhead and step > 0 else None

    def settings(self) -> dict[str, Any]:
        """Samples and schedule."""
        asked = {"num_samples": self._size_asked_for.num_samples, "seed": self.seed}
        return {**asked, **dataclasses.asdict(self.schedule)}

    def state_dict(self) -> dict[str, Any]:
        """Also what measuring has cost so far, and how much a measurement does."""
        measuring_seconds, training_seconds = self._clock
        return {
            **super().state_dict(),
            "measuring_seconds": measuring_seconds,
            "training_seconds": training_seconds,
            "size": dataclasses.asdict(self.size),
            "size_asked_for": dataclasses.asdict(self._size_asked_for),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the clock and the size of the run that wrote the checkpoint, if the same size was asked for."""
        super().load_state_dict(state_dict)
        self._clock = (state_dict.get("measuring_seconds", 0.0), state_dict.get("training_seconds", 0.0))
        if state_dict.get("size_asked_for") == dataclasses.asdict(self._size_asked_for):
            self.size = MeasurementSize(**state_dict["size"])

    def _ready(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the samples are there; True also where nothing is, for then the measurement says why."""
        try:
            return self.has_samples(trainer, fit_context(trainer, pl_module))
        except ConfigurationError:
            return True

    def _resume_clock(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the clock of a resumed run; else see that the first measurement is within reason."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return  # the measurement itself says what is wrong
        if self._clock != (0.0, 0.0):
            context.clock.resume(*self._clock)
        elif self.schedule.max_overhead is not None and not self._is_fixed(trainer):
            size = trainer.strategy.broadcast(self._affordable(trainer, pl_module, context))
            self._resize(size, "a timed gradient says that it would take long")

    def _affordable(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> MeasurementSize:
        """The size whose predicted time is half the grace at most, for there is a last measurement as well."""
        trainer_internals.wait_for_device(trainer)
        start, size = time.perf_counter(), self.size

        def timed() -> float:
            with measuring(pl_module):
                return self.seconds_of_a_gradient(trainer, context)

        try:
            seconds = context.ranks.together(timed)
        except Exception:
            return size  # the measurement itself says what is wrong, and other ranks wait for an answer
        context.clock.measuring_seconds += time.perf_counter() - start
        seconds *= self._cost(size)
        while seconds > self.schedule.grace_seconds / 2 and (cheaper := self.cheaper(size)) is not None:
            size, fraction = cheaper
            seconds *= fraction
        return size

    def _resize(self, size: MeasurementSize, reason: str) -> None:
        """Change how much a measurement does, and say so."""
        if size != self.size:
            limit = f"max_overhead={self.schedule.max_overhead} or grace_seconds={self.schedule.grace_seconds:g}"
            rank_zero_info(
                f"The {self.name} measurements use {size} instead of {self.size}, for {reason}; pass these numbers, or "
                f"raise {limit}."
            )
            self.size = size

    def _is_fixed(self, trainer: Trainer) -> bool:
        """Whether somebody needs every measurement of the schedule, with the samples that were asked for."""
        return any(listener.fixed_steps for listener in self.subscribers(trainer))

    def _say_costly(self, trainer: Trainer, context: FitContext) -> None:
        """Once, where measurements that may not be left out exceed the limit by themselves."""
        if self._said_costly or not self._is_fixed(trainer):
            return
        training = context.clock.training_seconds
        if not self.schedule.allows(0.0, measuring=self._own_seconds, training=training):
            self._said_costly = True
            rank_zero_info(
                f"The {self.name} measurements, which early stopping watches, took {self._own_seconds:.1f} s beside "
                f"{training:.1f} s of training, above max_overhead={self.schedule.max_overhead}. They are not thinned "
                "out, so that the stop does not depend on the machine; measure less often (schedule=), lower "
                "num_samples, or raise max_overhead."
            )

    def _later(self, trainer: Trainer) -> list[PeriodicCallback]:
        """Those that come later in a round."""
        family = _periodic(trainer)
        return family[family.index(self) + 1 :]

    def _admitted(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """The decision about this round: made by the first callback of it, on rank 0, and the same for all."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return True  # the measurement says what is wrong
        step = trainer_internals.effective_batches(trainer)
        if self._is_fixed(trainer):
            return True
        if context.decision is None or context.decision[0] != step:
            family = _periodic(trainer)
            due = [peer for peer in family if peer.due(trainer) and not peer._is_fixed(trainer)]
            decision = decide_round(
                [Candidate(peer.schedule, peer.size, peer.expected_seconds, peer.cheaper) for peer in due],
                others=sum(peer.expected_seconds for peer in family if peer not in due),
                measuring=context.clock.measuring_seconds,
                training=context.clock.training_seconds,
                progress=trainer_internals.fraction_done(trainer),
            )
            taken, sizes, costs = trainer.strategy.broadcast(decision)
            for peer, size, cost in zip(due, sizes, costs, strict=True):
                peer._resize(size, "within the limit there would be few measurements")
                peer.expected_seconds = cost
            context.decision = (step, taken)
            if not taken and not context.stretched:
                context.stretched = True
                rank_zero_info(
                    f"From step {step} on measurements come less often than asked for: so far they took "
                    f"{context.clock.measuring_seconds:.1f} s, training {context.clock.training_seconds:.1f} s. The "
                    "curve sloppy_cost/overhead shows it; max_overhead and grace_seconds set the limit."
                )
        return context.decision[1]


def _periodic(trainer: Trainer) -> list[PeriodicCallback]:
    return [peer for peer in peers(trainer) if isinstance(peer, PeriodicCallback)]
