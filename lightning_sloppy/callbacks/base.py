"""Base class of all callbacks: supports both copies of Lightning, saves settings, and prints the closing summary."""

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
        """Accepted by both copies of Lightning; a type checker sees the first only, because their types differ."""


NOT_THEIRS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
"""Folders of torch and of this package: an error is reported at the last line of code outside them."""


class SloppyCallback(Callback, ABC):
    """A callback for the Trainers of both ``lightning`` and ``pytorch_lightning``, which share no classes."""

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
            rank_zero_warn(
                f"{type(self).__name__} resumes with {', '.join(changed)}; its curves may jump here. To avoid this, "
                "pass the settings with which the checkpoint was written."
            )

    def summary_sentences(self) -> list[str]:
        """Sentences for the closing summary about how the training ended; usually none."""
        return []

    @property
    def has_measured(self) -> bool:
        """Whether there are measurements to report."""
        return False

    def section(self) -> Section | None:
        """Section of the closing summary about the measurements; None for a callback that does not measure."""
        return None

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
            _close(self, trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the summary, because ``teardown`` is not called after an exception."""
        _close(self, trainer)


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


def in_words(error: BaseException) -> str:
    """An error as text, with its type and place unless it is an error of this package, which says what to do.

    >>> in_words(KeyError("conf"))
    "KeyError: 'conf'"
    """
    if isinstance(error, (SloppyError, MemoryError)):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return said
    # The last line of the user's code, not the line of torch or of this package that raised.
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    place = (theirs or frames)[-1]
    return f"{said} ({Path(place.filename).name}:{place.lineno})"


def peers(trainer: Trainer) -> list[SloppyCallback]:
    """All callbacks of this package in the fit, including those inside a monitor."""
    return [part for callback in trainer.callbacks if isinstance(callback, SloppyCallback) for part in callback.parts]


def _close(callback: SloppyCallback, trainer: Trainer) -> None:
    """The first callback of the fit prints the summary for all, if anything was measured, and clears the context."""
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
    except Exception as error:  # an error here must not end a run or hide its own exception
        rank_zero_warn(f"The closing summary could not be written: {in_words(error)}")


def _event_folder(logger: Any) -> str:
    """Folder of the logger's event files; empty if it writes none."""
    folder = getattr(logger, "log_dir", None)
    return str(folder) if folder and any(Path(folder).glob("events.out.tfevents.*")) else ""


def _end(trainer: Trainer) -> str:
    how = "was interrupted" if trainer.interrupted else "ended"
    epochs, steps = trainer.current_epoch, trainer.global_step
    return f"Training {how} after {_counted(epochs, 'epoch')} and {_counted(steps, 'optimiser step')}."


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
