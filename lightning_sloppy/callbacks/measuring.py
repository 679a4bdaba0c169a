"""Base class of callbacks that measure: guard, measure, publish, call the subscribers."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_sloppy.callbacks.awaiting import AwaitingCallback
from lightning_sloppy.callbacks.base import SloppyCallback, gather_facts, peers, warnings_of
from lightning_sloppy.callbacks.picturing import draw_after
from lightning_sloppy.callbacks.recording import keep_record, light
from lightning_sloppy.curvature.memory import peak_bytes
from lightning_sloppy.display import Shown
from lightning_sloppy.errors import CAUSES, ConfigurationError, Note, UnsupportedError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.probing.error_words import in_words, note_of
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.origin import notice_earlier_fits
from lightning_sloppy.quantities import (
    Declaration,
    Detail,
    Quantity,
    SpectrumHistogram,
    check_attributes,
    checked_detail,
    name_of_class,
    require_name,
)
from lightning_sloppy.records import Cost, Measurement, Status
from lightning_sloppy.reporting.phrases import brief, paragraphs_of
from lightning_sloppy.reporting.tags import undeclared
from lightning_sloppy.reporting.writers import publish
from lightning_sloppy.runs.run import InstrumentRun
from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class MeasurementSubscriber(SloppyCallback):
    """A callback that receives the measurements of another one."""

    needs_eigenvectors: ClassVar[bool] = False

    fixed_steps: ClassVar[bool] = False
    """Whether it needs measurements at all steps of the schedule and of constant size, for any cost."""

    @abstractmethod
    def listens_to(self, callback: MeasuringCallback, trainer: Trainer) -> bool:
        """Whether this callback receives the measurements of ``callback`` in this fit."""

    @abstractmethod
    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, measurement: Measurement) -> None:
        """Called once after every measurement, after its numbers are published."""


class MeasuringCallback(AwaitingCallback):
    """Takes measurements, publishes them, and passes them to its subscribers, for any order of the callbacks.

    An error in a measurement causes one warning and a gap in the curves, but does not end the training;
    ``strict=True`` raises it. The same holds for an error while a measurement is published, and for one in a
    subscriber, unless the subscriber is strict or there are several processes: if only one of them failed, the others
    would wait for it.

    Args:
        name: Name of the instrument, in its tags and its state. None: ``default_name``, followed by all settings that
            are not defaults.
        seed: Seed of the samples and draws. None: that of the SloppyMonitor, if any, else 0.
        strict: Raise errors of measurements. None: as in the SloppyMonitor, if any, else false.

    Attributes:
        default_name: Name of an instrument with default settings; by default the name of the class.
        title: The same in words; by default the name of the class.
        quantities: The scalars that it reports.
        histograms: The histograms that it reports.
        costs: Which costs of a measurement are logged: "seconds", "products", "peak_bytes".
        reads_parameters: Whether every process must hold all parameters, which excludes sharded strategies.
        cost_advice: One sentence on how to reduce the cost.
        measures_once: Whether it measures once in a run, so that there is no curve of it.
        detail: Which scalars loggers get: "main", those that show something that a person acts on, or "all". Set it
            before the fit, or use ``SloppyMonitor(detail=)``.
        measurements: All measurements of this fit, in order, on every rank.
    """

    default_name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    quantities: ClassVar[Sequence[Quantity]] = ()
    histograms: ClassVar[Sequence[SpectrumHistogram]] = ()
    costs: ClassVar[Sequence[str]] = ("seconds",)
    reads_parameters: ClassVar[bool] = True
    cost_advice: ClassVar[str] = ""
    measures_once: ClassVar[bool] = False

    seed: int
    strict: bool
    detail: Detail

    def __init__(self, *, name: str | None = None, seed: int | None = None, strict: bool | None = None) -> None:
        super().__init__()
        self._given_name = None if name is None else require_name(name, f"{type(self).__name__}'s name")
        self._defaults: dict[str, Any] = {}
        self._settle(seed=(seed, 0), strict=(strict, False), detail=(None, "main"))
        self.measurements: list[Measurement] = []

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the declarations of a class when it is defined.

        Raises:
            ConfigurationError: For quantities or costs of another type.
        """
        super().__init_subclass__(**options)
        check_attributes(cls)

    def __setattr__(self, attribute: str, value: Any) -> None:
        """Refuse attributes that would replace a method of the package.

        Raises:
            ConfigurationError: For such a name.
        """
        method = getattr(type(self), attribute, None)
        if callable(method) and getattr(method, "__module__", "").startswith("lightning_sloppy.callbacks."):
            raise ConfigurationError(
                f"{type(self).__name__} sets self.{attribute}, a method of its base class; choose another name."
            )
        super().__setattr__(attribute, value)

    def _settle(self, **settings: tuple[Any, Any]) -> None:
        """Set attributes from (given value, default). Values that were not given can come from a monitor."""
        for setting, (given, default) in settings.items():
            setattr(self, setting, default if given is None else given)
            if given is None:
                self._defaults[setting] = default

    def adopt(self, settings: Mapping[str, Any]) -> None:
        """Use the settings of the SloppyMonitor that contains this callback, if they were not set in it."""
        for setting, default in self._defaults.items():
            given = settings.get(setting)
            setattr(self, setting, default if given is None else given)

    def differences(self) -> dict[str, Any]:
        """The arguments that determine what is measured, if they are not the defaults.

        They become part of the name and of the key of the state, so that one fit can have several such callbacks.
        """
        return {}

    @property
    def name(self) -> str:
        """Name in tags (``sloppy_<name>/...``), logs and the summary.

        Raises:
            ConfigurationError: When a subclass has not called ``super().__init__()``.
        """
        if "_given_name" not in vars(self):
            raise ConfigurationError(
                f"{type(self).__name__}.__init__ does not call super().__init__(); call it first, with the options "
                "of the base class."
            )
        if self._given_name is not None:
            return self._given_name
        words = " ".join(map(str, self.differences().values())).lower()
        return "_".join([self.default_name or name_of_class(type(self).__name__), *re.findall("[a-z0-9]+", words)])

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: callbacks that measure different things have separate states."""
        differing = {"name": self._given_name} if self.name == self._given_name else self.differences()
        return self._generate_state_key(**differing) if differing else type(self).__qualname__

    @property
    def declaration(self) -> Declaration:
        """Everything that this callback reports.

        Raises:
            ConfigurationError: For inconsistent quantities.
        """
        once, detail, costs = self.measures_once, checked_detail(self.detail), tuple(self.costs)
        return Declaration(
            self.name, self._heading(), self.quantities, self.histograms, costs, self.cost_advice, once, detail
        )

    def _heading(self) -> str:
        title = self.title or name_of_class(type(self).__name__).replace("_", " ").capitalize()
        plain = self._given_name is None and not self.differences()
        return title if plain else f"{title} ({self.name})"

    @property
    def latest(self) -> Measurement | None:
        """The latest measurement that did not fail, or None."""
        return next((m for m in reversed(self.measurements) if m.status.ok), None)

    @abstractmethod
    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Take one measurement; called inside the guard."""

    def paragraphs(self) -> list[str]:
        """Text of the closing summary about the measurements; by default the headlines of the latest one."""
        return paragraphs_of(self.measurements, self.declaration)

    @property
    def has_measured(self) -> bool:
        """Whether a measurement was attempted in this fit."""
        return bool(self.measurements)

    def instrument_run(self) -> InstrumentRun:
        """The measurements of this fit, and their paragraphs."""
        try:
            paragraphs = self.paragraphs()
        except Exception as error:  # keep the sections of the others
            paragraphs = [f"This section could not be written, because of an error: {error}"]
        # A note with a cause was given as a warning, which the summary repeats in one place.
        return replace(self.run_so_far(), paragraphs=tuple(map(brief, paragraphs)))

    def run_so_far(self) -> InstrumentRun:
        """The measurements of this fit so far, without the text about them."""
        kind = self.default_name or name_of_class(type(self).__name__)
        return InstrumentRun(kind, self.declaration, tuple(self.measurements))

    def _shown(self) -> Shown:
        try:
            if not self.has_measured:
                return super()._shown()
            rows = [("", self.run_so_far().in_brief())]
            return Shown(type(self).__name__, self.name, rows)
        except Exception:  # a text for the prompt, and of objects that errors name
            return Shown(type(self).__name__, "", ())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear the state of the last fit, and refuse unsupported configurations."""
        if stage != "fit":
            return
        if self.reads_parameters and not trainer_internals.strategy_is_supported(trainer):
            raise UnsupportedError(
                f"{type(self).__name__} needs all parameters on every device, but the strategy is "
                f"{type(trainer.strategy).__name__}; use strategy='auto' or 'ddp', or measure the "
                "inputs only: SloppyMonitor(jacobian=None, hessian=None, fisher=None), or InputSpectrum alone."
            )
        name = self.declaration.name
        twins = [peer for peer in peers(trainer) if isinstance(peer, MeasuringCallback) and peer.name == name]
        if len(twins) > 1:
            raise ConfigurationError(
                f"{' and '.join(type(twin).__name__ for twin in twins)} would write the same curves sloppy_{name}/...; "
                "keep one of them, or give each a different name= if it takes one."
            )
        notice_earlier_fits(pl_module)
        self.measurements = []
        self.begin_anew()
        self._forget_held()

    def subscribers(self, trainer: Trainer) -> list[MeasurementSubscriber]:
        """The callbacks that receive these measurements."""
        return [
            peer
            for peer in peers(trainer)
            if isinstance(peer, MeasurementSubscriber) and peer.listens_to(self, trainer)
        ]

    def run(self, trainer: Trainer, pl_module: LightningModule, *, step: int, epoch: int | None = None) -> None:
        """Measure, publish at the x-value ``step``, and call the subscribers.

        A measurement with a guessed loss is held back until a training step has confirmed the guess. It is made here,
        before the step changes weights and buffers, and published within the step.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            step: The x-value.
            epoch: Epoch of the step, if it is no longer the Trainer's current one.
        """
        trainer_internals.wait_for_device(trainer)
        start = time.perf_counter()
        context: FitContext | None = None
        try:
            context = fit_context(trainer, pl_module)
            context.losses.on_a_guess = False
            measurement = self.attempt(trainer, pl_module, context, step)
        except Exception as error:
            self._tell_of_loss(trainer, context)  # why the error arose, if the loss is not that of outputs and targets
            if self.strict:
                raise
            note = note_of(error, self.mode)
            self.warn_once(
                f"The {self.name} measurement failed; training continues. {note} (strict=True raises this error.)",
                trainer=trainer,
                key=note.cause,
            )
            measurement = Measurement(
                step, trainer.current_epoch, self.name, None, {}, Cost(), Status.FAILED, notes=(note,)
            )
        self._tell_of_loss(trainer, context)
        seconds = time.perf_counter() - start
        peak = peak_bytes(trainer_internals.root_device(trainer))
        cost = replace(measurement.cost, seconds=seconds, peak_bytes=peak)
        epoch = measurement.epoch if epoch is None else epoch
        measurement = replace(measurement, cost=cost, epoch=epoch)
        if context is not None:
            context.clock.measuring_seconds += seconds
            if context.losses.on_a_guess and measurement.status is not Status.FAILED:
                self._hold(measurement)
                return
        self._report(trainer, pl_module, context, measurement)

    def _tell_of_loss(self, trainer: Trainer, context: FitContext | None) -> None:
        """Warn if only the whole step is known as the loss, whichever callback needs it first."""
        note = None if context is None else context.losses.note
        if note is not None:
            self.warn_once(note, trainer=trainer, key=note.cause)
            family = peers(trainer) or [self]
            if note.short == CAUSES["loss"] and not any("loss" in peer.warned for peer in family):
                # Its cause may be an error of forward: that the loss is not known then needs no warning of its own.
                self.warned["loss"] = warnings_of(family)[note.cause]

    def _report(
        self, trainer: Trainer, pl_module: LightningModule, context: FitContext | None, measurement: Measurement
    ) -> None:
        """Publish a measurement and call the subscribers."""
        for note in measurement.notes:
            if isinstance(note, Note) and note.cause:
                self.warn_once(note, trainer=trainer, key=note.cause)
        start = time.perf_counter()
        self._publish(trainer, context, measurement)
        self.measurements.append(light(measurement))
        if context is not None:
            with self._tolerating(trainer, f"A measurement of {self.name} is missing in the record of the run"):
                keep_record(trainer, context, self.facts, measurement.step)
            context.clock.measuring_seconds += time.perf_counter() - start
        listening: list[MeasurementSubscriber] = []
        with self._tolerating(trainer, f"The subscribers of {self.name} were not called"):
            listening = self.subscribers(trainer)
        for subscriber in listening:
            self._tell(trainer, pl_module, measurement, subscriber)
        if context is not None and trainer.is_global_zero:
            draw_after(trainer, context, peers(trainer), measurement.step, self.overhead(context, measurement.step))

    def _tell(
        self, trainer: Trainer, pl_module: LightningModule, measurement: Measurement, subscriber: MeasurementSubscriber
    ) -> None:
        try:
            subscriber.on_measurement(trainer, pl_module, measurement)
        except Exception as error:
            # If only one of several processes failed, the others would wait for it in a reduction.
            if self.strict or getattr(subscriber, "strict", False) or trainer.world_size > 1:
                raise
            who, cause = type(subscriber).__name__, in_words(error)
            self.warn_once(
                f"{who} failed on a measurement of {self.name}; training continues. {cause}",
                trainer=trainer,
                key=f"{who} {cause}"[:90],
            )

    def _publish(self, trainer: Trainer, context: FitContext | None, measurement: Measurement) -> None:
        declaration = self.declaration
        with self._tolerating(trainer, f"A measurement of {self.name} could not be published"):
            overhead = None if context is None else self.overhead(context, measurement.step)
            publish(trainer, measurement, declaration, overhead=overhead, prefix_of=trainer_internals.logger_prefix)
            if trainer.is_global_zero:
                gather_facts(trainer, context)
        with self._tolerating(trainer, f"Some values of {self.name} are not logged"):
            unknown = undeclared(measurement, declaration)
            if unknown:
                raise ConfigurationError(
                    f"{type(self).__name__} measured {', '.join(unknown)}, which is not among its quantities; declare "
                    "it. The declared values are logged."
                )

    @contextmanager
    def _tolerating(self, trainer: Trainer, what: str) -> Iterator[None]:
        """Turn any error into one warning, unless strict, so that it does not end the training."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            cause = in_words(error)
            self.warn_once(f"{what}; training continues. {cause}", trainer=trainer, key=f"{what} {cause}"[:90])

    def attempt(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Take one measurement, on all ranks or on none. Subclasses may retry."""

        def guarded() -> Measurement:
            with measuring(pl_module, self.mode), trainer.profiler.profile(f"sloppy/{self.name}"):
                return self.take(trainer, pl_module, context, step)

        return context.ranks.together(guarded)

    def overhead(self, context: FitContext, step: int) -> float | None:
        """Seconds of measuring per second of training, if this callback publishes them."""
        return None

    def warn_once(self, message: str, *, trainer: Trainer, key: str | None = None) -> None:
        """Warn on rank 0, once per fit and cause for all callbacks together; the cause is ``key``, or the message."""
        if not any((key or message) in peer.warned for peer in peers(trainer) or [self]):
            self.warned[key or message] = message
            warn_user(message)
