"""Base class of all callbacks: supports both copies of Lightning, saves settings, and prints the closing summary."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_sloppy.callbacks.picturing import draw_last, sentences_about_picture
from lightning_sloppy.display import Displayed, Shown
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, close_context
from lightning_sloppy.probing.error_words import in_words
from lightning_sloppy.probing.run_facts import run_facts
from lightning_sloppy.probing.schedule import Schedule
from lightning_sloppy.reporting.pages import introduce, read_me_first, write_final_numbers, write_text
from lightning_sloppy.reporting.picture import picture as draw_picture
from lightning_sloppy.reporting.run_html import write_report
from lightning_sloppy.reporting.summary import Length, summarise
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from lightning_sloppy.runs.run_writer import RunWriter
from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    import pandas
    from lightning.pytorch import Callback, LightningModule, Trainer
    from matplotlib.figure import Figure
else:
    import lightning.pytorch
    import pytorch_lightning

    class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):
        """Accepted by both copies of Lightning; a type checker sees the first only, because their types differ."""


Closing = Length | Literal[False]
"""Length of the summary at the end of the fit, or none."""


class SloppyCallback(Displayed, Callback, ABC):
    """A callback for the Trainers of both ``lightning`` and ``pytorch_lightning``, which share no classes.

    Attributes:
        warned: The warnings that it gave in this fit, by their cause.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warned: dict[str, str] = {}

    facts: RunFacts = RunFacts()
    """Facts about the latest fit, as of the latest measurement or its end; on rank 0."""

    closing: Closing = "full"
    """Length of the summary that is printed at the end of the fit; False: none."""

    hparams: bool = True
    """Whether the final numbers are logged with the hyperparameters, where a logger can."""

    report: bool = True
    """Whether the end of the fit writes report.html into the folder of the run; false in any callback prevents it."""

    picture: bool = True
    """Whether the picture of the fit is drawn; false in any callback of the fit prevents it."""

    @property
    def parts(self) -> list[SloppyCallback]:
        """The callbacks that do the work: itself, or its parts."""
        return [self]

    def settings(self) -> dict[str, Any]:
        """The arguments as plain values. A checkpoint stores them, so that a resumed run can report differences."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers, strings and tensors."""
        settings = plain(self.settings())
        return {"settings": settings} if settings else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the run that wrote the checkpoint, and warn about settings that differ now."""
        now = plain(self.settings())
        changed = [
            f"{name}={now[name]!r} instead of {value!r}"
            for name, value in state_dict.get("settings", {}).items()
            if name in now and now[name] != value
        ]
        if changed:
            warn_user(
                f"{type(self).__name__} resumes with {', '.join(changed)}; its curves may jump here. To avoid this, "
                "pass the settings with which the checkpoint was written."
            )

    def summary_sentences(self) -> list[str]:
        """Sentences for the closing summary about how the training ended; usually none."""
        return []

    def begin_anew(self) -> None:
        """Forget facts and warnings of an earlier fit; called when a fit is set up."""
        self.facts, self.warned = RunFacts(), {}

    @property
    def has_measured(self) -> bool:
        """Whether there are measurements to report."""
        return False

    def instrument_run(self) -> InstrumentRun | None:
        """What it measured in this fit; None for a callback that does not measure."""
        return None

    def run_so_far(self) -> InstrumentRun | None:
        """The same without the text about it."""
        return None

    def record(self) -> Run:
        """The record of the latest fit, or of the running one so far, for the parts of this callback."""
        return record_of(self.parts, next((part.facts for part in self.parts if part.facts.module), RunFacts()))

    def summary(self, length: Length = "full") -> str:
        """The closing summary of the latest fit, or of the running one so far, as text.

        Args:
            length: "short": the five answers, and where the values are. "full": also conditions and details.
        """
        return summarise(self.record(), length)

    def to_frame(self) -> pandas.DataFrame:
        """The numbers of the latest fit as a pandas frame: see :meth:`lightning_sloppy.runs.run.Run.to_frame`."""
        return self.record().to_frame()

    def _shown(self) -> Shown:
        given = {name: each for name, each in self.settings().items() if each not in (None, ())}
        return Shown(type(self).__name__, "", [(f"{name}=", str(each)) for name, each in given.items()])

    def plot(self) -> Figure:
        """The picture of the latest fit, or of the running one so far; a notebook shows it.

        Raises:
            MissingExtraError: Without matplotlib.
        """
        return draw_picture(self.record())

    def after_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once at the end of the training, after the last measurement of every callback of the fit."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last callback of the fit calls ``after_training`` of all callbacks."""
        family = peers(trainer)
        if family and self.parts[-1] is family[-1]:
            for peer in family:
                peer.after_training(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the summary once, after the last measurement of every callback."""
        if stage == "fit":
            _close(self, trainer, "ended")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the summary, because ``teardown`` is not called after an exception."""
        _close(self, trainer, "failed" if isinstance(exception, Exception) else "was interrupted")


def checked_closing(summary: object) -> Closing:
    """Return the argument if it is a length of the summary.

    Raises:
        ConfigurationError: For anything else.
    """
    if summary == "full" or summary == "short" or summary is False:
        return summary
    raise ConfigurationError(f"summary={summary!r} is unknown; pass 'full', 'short' or False.")


def plain(value: Any) -> Any:
    """The same value as plain types that a checkpoint may contain; other objects become strings.

    >>> import numpy, pathlib
    >>> plain({"bins": numpy.int64(3), "folder": pathlib.PurePosixPath("a/b"), "widths": (1, 2)})
    {'bins': 3, 'folder': 'a/b', 'widths': [1, 2]}
    """
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    return str(value)


def peers(trainer: Trainer) -> list[SloppyCallback]:
    """All callbacks of this package in the fit, including those inside a monitor."""
    return [part for callback in trainer.callbacks if isinstance(callback, SloppyCallback) for part in callback.parts]


def gather_facts(trainer: Trainer, context: FitContext | None, *, end: str = "") -> RunFacts:
    """Facts about the fit so far, also stored in all callbacks of the fit. Call it on rank 0."""
    family = peers(trainer)
    schedules = [found for part in family if isinstance(found := getattr(part, "schedule", None), Schedule)]
    sentences = [sentence for part in family for sentence in part.summary_sentences()]
    sentences += sentences_about_picture(family) if end else []
    facts = run_facts(trainer, context, schedule=next(iter(schedules), None), end=end, sentences=sentences)
    facts = replace(facts, warnings=tuple(dict.fromkeys(warnings_of(family).values())))
    for part in family:
        part.facts = facts
    return facts


def record_of(parts: Sequence[SloppyCallback], facts: RunFacts) -> Run:
    """The record of a fit from its callbacks."""
    measured = [each for part in parts if (each := part.instrument_run()) is not None]
    return Run({each.declaration.name: each for each in measured}, facts)


def warnings_of(family: Sequence[SloppyCallback]) -> dict[str, str]:
    """All warnings of the fit, by their cause, in the order of the callbacks; the summary has them in one place."""
    return {cause: message for peer in family for cause, message in peer.warned.items()}


def _close(callback: SloppyCallback, trainer: Trainer, end: str) -> None:
    """The first callback of the fit reports for all, if anything was measured, and clears the context."""
    family = peers(trainer)
    if not family or callback.parts[0] is not family[0]:
        return
    try:
        context = close_context(trainer)
        # An error after the end, as in a later trainer.validate, is not the end of the fit that was reported.
        if trainer.is_global_zero and any(peer.has_measured and not peer.facts.end for peer in family):
            gather_facts(trainer, context, end=end)
            draw_last(trainer, context, family)
            run = record_of(family, gather_facts(trainer, context, end=end))
            (RunWriter() if context is None else context.run_writer).end(run)
            _fill_pages(trainer, context, run, hparams=all(peer.hparams for peer in family))
            length = _length([peer.closing for peer in family])
            if length:
                rank_zero_info(summarise(run, length))
            if run.facts.folder and all(peer.report for peer in family):
                _write_report(run)
    except Exception as error:  # an error here must not end a run or hide its own exception
        warn_user(f"The closing summary could not be written: {in_words(error)}")


def _write_report(run: Run) -> None:
    try:
        rank_zero_info(f"Report: {write_report(run)}")
    except Exception as error:  # as for the summary
        warn_user(
            f"The report could not be written: {in_words(error)}. The record of the run is complete; try "
            f"lightning-sloppy report {run.facts.folder}"
        )


def _fill_pages(trainer: Trainer, context: FitContext | None, run: Run, *, hparams: bool) -> None:
    """Write what loggers with pages get at the end."""
    prefix_of, step = trainer_internals.logger_prefix, run.last_step
    if context is not None and not context.layout_written:
        introduce(trainer, run, step=step, prefix_of=prefix_of, at_once=True)
    write_text(trainer, read_me_first(run, begins=False), step=step, prefix_of=prefix_of)
    if hparams:
        write_final_numbers(trainer, run, step=step, prefix_of=prefix_of)


def _length(asked: Sequence[Closing]) -> Closing:
    """The shortest that was asked for, unless the level of the package's log asks for none or for everything."""
    level = logging.getLogger("lightning_sloppy").level
    if level >= logging.WARNING:
        return False
    if level == logging.DEBUG:
        return "full"
    return False if False in asked else "short" if "short" in asked else "full"
