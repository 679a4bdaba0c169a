"""Base class of callbacks that measure repeatedly: when they measure, and how much each measurement may cost."""

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
"""A smaller measurement must reduce the cost to this fraction: with a quadrature, fewer pairs save little."""


def check_schedule(schedule: object) -> None:
    """Check that the argument is a Schedule or None.

    Raises:
        ConfigurationError: For any other type.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ConfigurationError(
            f"schedule={schedule!r} is not a Schedule; pass lightning_sloppy.Schedule(...), for instance "
            "Schedule(every_n_steps=100)."
        )


class PeriodicCallback(MeasuringCallback):
    """Measures at train start, at the steps of the schedule, and at the end of the fit, at a limited cost.

    All measurements that are due at the same step form a round. Rank 0 decides whether a round is measured or skipped
    as a whole. The first and the last measurement always happen; a gradient is timed before the first one so that it
    takes at most half of ``grace_seconds``. A round that the limit does not allow yet is skipped, so the interval
    grows. If a whole run would have fewer than 10 rounds, each round measures less: fewer probe vectors, then fewer
    samples, then a smaller k.

    Args:
        size: Size of a measurement that is not limited by its cost.
        schedule: When to measure, and the limit on the cost of all measuring. None: after every epoch.
        name: Name in the tags.
        seed: Seed of the samples and draws.
        strict: Raise errors of measurements.

    Attributes:
        size: Size of the next measurement.
        expected_seconds: Its expected time, estimated from the latest one, including subscribers.
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
        """Approximate cost of a measurement, in gradients of the mean loss over the probe samples."""

    @abstractmethod
    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Wall-clock seconds of one such gradient; called inside the guard."""

    @abstractmethod
    def has_samples(self, trainer: Trainer, context: FitContext) -> bool:
        """Whether the samples to measure on are available."""

    @abstractmethod
    def wants_batch(self, trainer: Trainer) -> bool:
        """Whether the next batch will be measured on."""

    @property
    def measured_at(self) -> int | None:
        """Number of effective batches before the latest measurement; None before the fit."""
        return self._measured_at

    def cheaper(self, size: MeasurementSize) -> tuple[MeasurementSize, float] | None:
        """The next smaller size, and its cost as a fraction of this one's; None if it would save little."""
        smaller = size.smaller()
        if smaller is None:
            return None
        fraction = (self._cost(smaller) * smaller.num_samples) / (self._cost(size) * size.num_samples)
        return (smaller, fraction) if fraction <= SAVING else None

    def _cost(self, size: MeasurementSize) -> float:
        """Cost in gradients, or 1 if it is unknown, so that sizes are compared by their number of samples only."""
        try:
            return max(float(self.cost_in_gradients(size)), 1e-9)
        except Exception:
            return 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear the state of the last fit."""
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
        """Make the first measurement, so that monitors exist before any check; data are not ready in ``on_fit_start``.

        If the probe samples are streamed batches, the first measurement is made when enough of them have been seen.
        """
        self._measured_at = trainer_internals.effective_batches(trainer)
        self._waiting = not self._ready(trainer, pl_module)
        if not self._waiting:
            self._resume_clock(trainer, pl_module)
            self.run(trainer, pl_module, step=self._measured_at)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copy the batch if it will be measured on, before the step can change it."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.wants_batch(trainer):
            with suppress(ConfigurationError):  # without a context the measurement reports the error
                wanted = max(peer.size.num_samples for peer in _periodic(trainer) if peer.wants_batch(trainer))
                samples, number = fit_context(trainer, pl_module).samples, trainer_internals.batch_number(trainer)
                said = (getattr(peer, "batch_size", None) for peer in _periodic(trainer))
                batch_size = next((each for each in said if each is not None), None)
                samples.streamed.see(batch, number, samples.own(wanted), module=pl_module, batch_size=batch_size)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after a batch if due: before validation, at the x-value of the metrics of this batch."""
        self._epoch = trainer.current_epoch
        if self._waiting and trainer_internals.batch_steps(trainer):
            # After a whole epoch there are no new batches to wait for.
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
        """Make the last measurement, if there was a step since the previous one."""
        self._end_of_steps(trainer, pl_module)
        done = trainer_internals.effective_batches(trainer)
        if self._measured_at is not None and done > self._measured_at:
            self._measured_at = done
            self._waiting = False
            self._publishes_overhead = not any((peer._measured_at or 0) < done for peer in self._later(trainer))
            # The Trainer already counts the epoch that has just ended.
            self.run(trainer, pl_module, step=done - 1, epoch=self._epoch)
        super().on_train_end(trainer, pl_module)

    def due(self, trainer: Trainer) -> bool:
        """Whether the schedule has a measurement after the batch that has just ended."""
        return trainer_internals.batch_steps(trainer) and self.schedule.due(
            trainer_internals.effective_batches(trainer) + 1,
            epoch=trainer.current_epoch,
            ends_epoch=trainer_internals.is_last_batch(trainer),
        )

    def run(self, trainer: Trainer, pl_module: LightningModule, *, step: int, epoch: int | None = None) -> None:
        """Measure, and record the cost, including subscribers."""
        trainer_internals.wait_for_device(trainer)
        start = time.perf_counter()
        super().run(trainer, pl_module, step=step, epoch=epoch)
        self._note_cost(trainer, time.perf_counter() - start)

    def _release(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> None:
        """Publish the held measurements. The time of their subscribers is added to the cost."""
        if not self._held:
            return
        trainer_internals.wait_for_device(trainer)
        start, before, confirmed = time.perf_counter(), self.expected_seconds, context.losses.is_confirmed(self.mode)
        super()._release(trainer, pl_module, context)
        if confirmed:  # otherwise it was measured again, and that has recorded its cost
            self._note_cost(trainer, before + time.perf_counter() - start)

    def _note_cost(self, trainer: Trainer, seconds: float) -> None:
        self.expected_seconds = seconds
        context = known_context(trainer) if self.latest is not None else None
        if context is not None:
            self._clock = (context.clock.measuring_seconds, context.clock.training_seconds)
            self._own_seconds += self.expected_seconds
            self._say_costly(trainer, context)

    def attempt(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Measure. If the device runs out of memory, empty its cache and retry with a smaller size."""
        first = self.size
        while True:
            try:
                found = super().attempt(trainer, pl_module, context, step)
            except torch.OutOfMemoryError as error:
                smaller = self.size.smaller()
                if smaller is None:
                    raise MemoryError(
                        f"The device does not have enough memory, even for {self.size}. Lower num_samples, k or "
                        f"probes, or remove the callback. torch says: {str(error).splitlines()[0]}"
                    ) from error
            else:
                if self.size != first:
                    self._say_resized(
                        first, f"the device does not have enough memory for {first}", "pass these numbers"
                    )
                return found
            torch.cuda.empty_cache()
            self.size = smaller

    def overhead(self, context: FitContext, step: int) -> float | None:
        """The overhead, if this is the last callback of the round and there was training to compare with."""
        return context.clock.overhead if self._publishes_overhead and step > 0 else None

    def settings(self) -> dict[str, Any]:
        """Number of samples, seed and schedule."""
        asked = {"num_samples": self._size_asked_for.num_samples, "seed": self.seed}
        return {**asked, **dataclasses.asdict(self.schedule)}

    def state_dict(self) -> dict[str, Any]:
        """Also the cost of measuring so far, and the size of a measurement."""
        measuring_seconds, training_seconds = self._clock
        return {
            **super().state_dict(),
            "measuring_seconds": measuring_seconds,
            "training_seconds": training_seconds,
            "size": dataclasses.asdict(self.size),
            "size_asked_for": dataclasses.asdict(self._size_asked_for),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the clock and, if the arguments are the same, the size of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._clock = (state_dict.get("measuring_seconds", 0.0), state_dict.get("training_seconds", 0.0))
        if state_dict.get("size_asked_for") == dataclasses.asdict(self._size_asked_for):
            self.size = MeasurementSize(**state_dict["size"])

    def _ready(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the samples are available; also True if there are none, because the measurement then says why."""
        try:
            return self.has_samples(trainer, fit_context(trainer, pl_module))
        except ConfigurationError:
            return True

    def _resume_clock(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the clock of a resumed run; otherwise limit the cost of the first measurement."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return  # the measurement itself reports the error
        if self._clock != (0.0, 0.0):
            context.clock.resume(*self._clock)
        elif self.schedule.max_overhead is not None and not self._is_fixed(trainer):
            size = trainer.strategy.broadcast(self._affordable(trainer, pl_module, context))
            self._resize(size, "a timed gradient shows that they would take too long")

    def _affordable(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> MeasurementSize:
        """The size whose predicted time is at most half of ``grace_seconds``: the last measurement needs time, too."""
        trainer_internals.wait_for_device(trainer)
        start, size = time.perf_counter(), self.size

        def timed() -> float:
            with measuring(pl_module):
                return self.seconds_of_a_gradient(trainer, context)

        try:
            seconds = context.ranks.together(timed)
        except Exception:
            return size  # the measurement itself reports the error, and other ranks wait for an answer
        context.clock.measuring_seconds += time.perf_counter() - start
        seconds *= self._cost(size)
        while seconds > self.schedule.grace_seconds / 2 and (cheaper := self.cheaper(size)) is not None:
            size, fraction = cheaper
            seconds *= fraction
        return size

    def _resize(self, size: MeasurementSize, reason: str) -> None:
        """Change the size of the measurements, and report it."""
        if size != self.size:
            before, self.size = self.size, size
            limit = f"max_overhead={self.schedule.max_overhead} or grace_seconds={self.schedule.grace_seconds:g}"
            self._say_resized(before, reason, f"pass these numbers, or increase {limit}")

    def _say_resized(self, before: MeasurementSize, reason: str, remedy: str) -> None:
        rank_zero_info(f"The {self.name} measurements use {self.size} instead of {before}, because {reason}; {remedy}.")

    def _is_fixed(self, trainer: Trainer) -> bool:
        """Whether a subscriber needs every measurement of the schedule, with the requested number of samples."""
        return any(listener.fixed_steps for listener in self.subscribers(trainer))

    def _say_costly(self, trainer: Trainer, context: FitContext) -> None:
        """Report once if measurements that may not be skipped exceed the limit on their own."""
        if self._said_costly or not self._is_fixed(trainer):
            return
        training = context.clock.training_seconds
        if not self.schedule.allows(0.0, measuring=self._own_seconds, training=training):
            self._said_costly = True
            rank_zero_info(
                f"The {self.name} measurements, which early stopping uses, took {self._own_seconds:.1f} s for "
                f"{training:.1f} s of training, above max_overhead={self.schedule.max_overhead}. None of them is "
                "skipped, so that the stop does not depend on the machine; measure less often (schedule=), lower "
                "num_samples, or increase max_overhead."
            )

    def _later(self, trainer: Trainer) -> list[PeriodicCallback]:
        """The callbacks that come later in a round."""
        family = _periodic(trainer)
        return family[family.index(self) + 1 :]

    def _admitted(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether this round is measured: decided by its first callback, on rank 0, for all of them."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return True  # the measurement reports the error
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
                peer._resize(size, "otherwise the limit would allow only few measurements")
                peer.expected_seconds = cost
            context.decision = (step, taken)
            if not taken and not context.stretched:
                context.stretched = True
                rank_zero_info(
                    f"From step {step} on, measurements are less frequent than requested: so far they took "
                    f"{context.clock.measuring_seconds:.1f} s, and training took "
                    f"{context.clock.training_seconds:.1f} s. See the curve sloppy_cost/overhead; max_overhead and "
                    "grace_seconds set the limit."
                )
        return context.decision[1]


def _periodic(trainer: Trainer) -> list[PeriodicCallback]:
    return [peer for peer in peers(trainer) if isinstance(peer, PeriodicCallback)]
