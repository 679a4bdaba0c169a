"""What all callbacks of this package have in common: two copies of Lightning, settings in checkpoints, the summary."""

from __future__ import annotations

import os
import traceback
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_sloppy.errors import SloppyError
from lightning_sloppy.probing.context import close_context
from lightning_sloppy.reporting.summary import Section, summarise

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    import lightning.pytorch
    import pytorch_lightning

    class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):
        """Accepted by both copies of Lightning; a type checker sees the first alone, for their types differ."""


NOT_THEIRS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
"""Folders of torch and of this package, in which nobody mends an error of their own."""


class SloppyCallback(Callback, ABC):
    """A callback for the Trainers of both ``lightning`` and ``pytorch_lightning``, which have no classes in common."""

    @property
    def parts(self) -> list[SloppyCallback]:
        """The callbacks that do the work: itself, or what it is made of."""
        return [self]

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain values; a checkpoint keeps it, so that a resumed run can say what differs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers, words and tensors."""
        settings = plain(self.settings())
        return {"settings": settings} if settings else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of the run that wrote the checkpoint, and say what is asked for otherwise now."""
        now = plain(self.settings())
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

    @property
    def has_measured(self) -> bool:
        """Whether there is anything to say about measurements."""
        return False

    def section(self) -> Section | None:
        """What the closing summary should say about what was measured; None for a callback that does not measure."""
        return None

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


def plain(value: Any) -> Any:
    """The same value of plain types alone, which a checkpoint may hold; words for what is none.

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


def in_words(error: BaseException) -> str:
    """An error as a person needs it: its kind and place too, unless it is one of ours, which say what to do.

    >>> in_words(KeyError("conf"))
    "KeyError: 'conf'"
    """
    if isinstance(error, (SloppyError, MemoryError)):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return said
    # Where a person can do something about it, not where torch or this package noticed.
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    place = (theirs or frames)[-1]
    return f"{said} ({Path(place.filename).name}:{place.lineno})"


def peers(trainer: Trainer) -> list[SloppyCallback]:
    """All callbacks of this package in the fit, those inside a monitor included."""
    return [part for callback in trainer.callbacks if isinstance(callback, SloppyCallback) for part in callback.parts]


def _close(callback: SloppyCallback, trainer: Trainer) -> None:
    """The first callback of the fit prints the summary for all, when anything was measured, and forgets the fit."""
    family = peers(trainer)
    if not family or callback.parts[0] is not family[0]:
        return
    try:
        context = close_context(trainer)
        if trainer.is_global_zero and any(peer.has_measured for peer in family):
            sections = [section for peer in family if (section := peer.section()) is not None]
            sentences = [sentence for peer in family for sentence in peer.summary_sentences()]
            rank_zero_info(
                summarise(
                    sections,
                    stop=" ".join([_end(trainer), *sentences]),
                    log_dirs=[folder for logger in trainer.loggers if (folder := _event_folder(logger))],
                    fit_seconds=None if context is None else context.clock.fit_seconds,
                )
            )
    except Exception as error:  # a summary is no reason to lose a run, or to hide its own exception
        rank_zero_warn(f"The closing summary could not be written: {in_words(error)}")


def _event_folder(logger: Any) -> str:
    """Where the logger writes event files; empty when it writes none."""
    folder = getattr(logger, "log_dir", None)
    return str(folder) if folder and any(Path(folder).glob("events.out.tfevents.*")) else ""


def _end(trainer: Trainer) -> str:
    how = "was interrupted" if trainer.interrupted else "ended"
    epochs, steps = trainer.current_epoch, trainer.global_step
    return f"Training {how} after {_counted(epochs, 'epoch')} and {_counted(steps, 'optimiser step')}."


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
