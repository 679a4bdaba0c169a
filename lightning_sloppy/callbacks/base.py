"""guard -> measure -> publish -> subscribers: the life of every measuring callback."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from lightning_sloppy.callbacks.closing import close
from lightning_sloppy.curvature.memory import peak_bytes
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context, notice_earlier_fits
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.records import Cost, Measurement, Status
from lightning_sloppy.reporting.layout import write_layout
from lightning_sloppy.reporting.writers import publish

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    import lightning.pytorch
    import pytorch_lightning

    class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):
        """Accepted by both copies of Lightning; a type checker sees the first alone, for their types differ."""


class SloppyCallback(Callback, ABC):
    """A callback for the Trainers of both ``lightning`` and ``pytorch_lightning``, which share no classes."""

    @property
    def parts(self) -> list[SloppyCallback]:
        """The callbacks that do the work: itself, or what it is made of."""
        return [self]

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain values; a checkpoint keeps it, so that a resumed run can say what differs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers, words and tensors."""
        settings = self.settings()
        return {"settings": settings} if settings else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of the run that wrote the checkpoint, and say what is asked for otherwise now."""
        now = self.settings()
        changed = [
            f"{name}={now[name]!r} instead of {value!r}"
            for name, value in state_dict.get("settings", {}).items()
            if name in now and now[name] != value
        ]
        if changed:
            rank_zero_warn(
                f"{type(self).__name__} resumes with {', '.join(changed)}; its curves may jump here. Pass what the "
                "checkpoint was written with to go on as before."
            )

    def summary_sentences(self) -> list[str]:
        """What the closing summary should say about how the training ended; usually nothing."""
        return []

    def after_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once at the end of the training, when every callback of the fit has made its last measurement."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last callback of the fit lets all do what comes after the last measurements."""
        family = peers(trainer)
        if family and self.parts[-1] is family[-1]:
            for peer in family:
                peer.after_training(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say the summary once, after every callback has made its last measurement."""
        if stage == "fit":
            _close(self, trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """``teardown`` is not called after an exception, and what was measured is worth a summary."""
        _close(self, trainer)


class MeasurementSubscriber(SloppyCallback):
    """A callback that is told of the measurements of another one."""

    needs_eigenvectors: ClassVar[bool] = False

    @abstractmethod
    def listens_to(self, callback: MeasuringCallback, trainer: Trainer) -> bool:
        """Whether this callback wants to hear of ``callback``'s measurements in this fit."""

    @abstractmethod
    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, measurement: Measurement) -> None:
        """Called once after every measurement, when its numbers are already published."""


class MeasuringCallback(SloppyCallback):
    """Takes measurements, publishes them, and tells its subscribers, whatever the order of the callbacks.

    An error inside a measurement becomes one warning with its cause and a gap in the curves, never the end of a
    training; ``strict=True`` raises it.

    Args:
        strict: Raise errors of measurements.

    Attributes:
        measurements: All measurements of this fit, in order, on every rank.
    """

    group: ClassVar[str]

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self.measurements: list[Measurement] = []
        self._warned: set[str] = set()

    @property
    def latest(self) -> Measurement | None:
        """The latest measurement that did not fail, or None."""
        return next((m for m in reversed(self.measurements) if m.status.ok), None)

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Take one measurement; called inside the guard."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit, refuse what can never work."""
        if stage != "fit":
            return
        if not trainer_internals.strategy_is_supported(trainer):
            raise UnsupportedError(
                f"{type(self).__name__} needs all parameters on every device, but the strategy is "
                f"{type(trainer.strategy).__name__}; use strategy='auto' or 'ddp', or leave the callback out."
            )
        twins = [peer for peer in peers(trainer) if isinstance(peer, MeasuringCallback) and peer.group == self.group]
        if len(twins) > 1:
            raise ConfigurationError(
                f"{len(twins)} callbacks measure {self.group!r} and would write the same curves; keep one of them "
                "(SloppyMonitor holds one of each, switched off by None)."
            )
        notice_earlier_fits(pl_module)
        self.measurements = []
        self._warned = set()

    def subscribers(self, trainer: Trainer) -> list[MeasurementSubscriber]:
        """Who wants to hear of these measurements."""
        return [
            peer
            for peer in peers(trainer)
            if isinstance(peer, MeasurementSubscriber) and peer.listens_to(self, trainer)
        ]

    def take(self, trainer: Trainer, pl_module: LightningModule, *, step: int) -> None:
        """Measure, publish under the x-value ``step``, tell the subscribers."""
        start = time.perf_counter()
        context: FitContext | None = None
        try:
            context = fit_context(trainer, pl_module)
            if not context.layout_written:
                context.layout_written = True
                write_layout(trainer)
            measurement = self.attempt(trainer, pl_module, context, step)
        except Exception as error:
            if self.strict:
                raise
            self.warn_once(
                f"The {self.group} measurement failed; training goes on. {error}", trainer=trainer, key=str(error)[:60]
            )
            measurement = Measurement(
                step, trainer.current_epoch, self.group, None, {}, Cost(), Status.FAILED, notes=(str(error),)
            )
        seconds = time.perf_counter() - start
        peak = peak_bytes(trainer_internals.root_device(trainer))
        cost = dataclasses.replace(measurement.cost, seconds=seconds, peak_bytes=peak)
        measurement = dataclasses.replace(measurement, cost=cost)
        if context is not None:
            context.measuring_seconds += seconds
        publish(trainer, measurement, share=None if context is None else self.share(trainer, context, step))
        self.measurements.append(_light(measurement))
        for subscriber in self.subscribers(trainer):
            subscriber.on_measurement(trainer, pl_module, measurement)

    def attempt(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """One measurement, of all ranks or of none; with second tries where a callback knows any."""

        def guarded() -> Measurement:
            with measuring(pl_module), trainer.profiler.profile(f"sloppy/{self.group}"):
                return self.measure(trainer, pl_module, context, step)

        return context.ranks.together(guarded)

    def share(self, trainer: Trainer, context: FitContext, step: int) -> float | None:
        """Seconds of measuring per second of training, when it is this callback that publishes them."""
        return None

    def warn_once(self, message: str, *, trainer: Trainer, key: str | None = None) -> None:
        """Warn on rank 0, once in a fit for each key, whichever callback comes first."""
        family = [peer for peer in peers(trainer) if isinstance(peer, MeasuringCallback)] or [self]
        if not any((key or message) in peer._warned for peer in family):
            self._warned.add(key or message)
            rank_zero_warn(message)


def peers(trainer: Trainer) -> list[SloppyCallback]:
    """All callbacks of this package in the fit, those inside a monitor included."""
    return [part for callback in trainer.callbacks if isinstance(callback, SloppyCallback) for part in callback.parts]


def _close(callback: SloppyCallback, trainer: Trainer) -> None:
    family = peers(trainer)
    if family and callback.parts[0] is family[0]:
        try:
            groups = {peer.group: peer.measurements for peer in family if isinstance(peer, MeasuringCallback)}
            close(trainer, groups, [sentence for peer in family for sentence in peer.summary_sentences()])
        except Exception as error:  # a summary is no reason to lose a run, or to hide its own exception
            rank_zero_warn(f"The closing summary could not be written: {error}")


def _light(measurement: Measurement) -> Measurement:
    """Without the eigenvectors: k copies of the model for every measurement would fill the memory."""
    if measurement.spectrum is None or measurement.spectrum.eigenvectors is None:
        return measurement
    return dataclasses.replace(measurement, spectrum=dataclasses.replace(measurement.spectrum, eigenvectors=None))
