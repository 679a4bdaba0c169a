"""The end of a fit: one summary for all callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.probing.context import close_context
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.summary import summarise

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def close(trainer: Trainer, groups: Mapping[str, Sequence[Measurement]], sentences: Sequence[str]) -> None:
    """Print the summary when anything was measured, and forget the fit.

    Args:
        trainer: The Trainer of the fit.
        groups: For each matrix its measurements.
        sentences: What callbacks say about how the training ended.
    """
    context = close_context(trainer)
    if any(groups.values()) and trainer.is_global_zero:
        rank_zero_info(
            summarise(
                groups,
                stop=" ".join([_end(trainer), *sentences]),
                log_dirs=[folder for logger in trainer.loggers if (folder := _event_folder(logger))],
                training_seconds=None if context is None else context.fit_seconds,
            )
        )


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
