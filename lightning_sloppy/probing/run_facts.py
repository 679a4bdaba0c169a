"""Facts about a fit from its Trainer, for the record of the run."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.schedule import Schedule
from lightning_sloppy.runs.run import RunFacts
from lightning_sloppy.version import __version__

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def run_facts(
    trainer: Trainer,
    context: FitContext | None,
    *,
    schedule: Schedule | None = None,
    end: str = "",
    sentences: Sequence[str] = (),
) -> RunFacts:
    """Facts about the fit of a Trainer so far. Call it on rank 0.

    Args:
        trainer: The Trainer.
        context: What the callbacks of the fit share, or None.
        schedule: Schedule of an instrument, for the limit on the cost, or None.
        end: How the training ended; "" while it is running.
        sentences: Sentences about the end.
    """
    facts = RunFacts(
        module=type(trainer.lightning_module).__name__,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        epoch_steps=trainer_internals.steps_of_an_epoch(trainer),
        end=end,
        end_sentences=tuple(sentences),
        grace_seconds=None if schedule is None else schedule.grace_seconds,
        max_overhead=None if schedule is None else schedule.max_overhead,
        metrics=_metrics(trainer),
        loggers=tuple(
            (type(logger).__name__, _read(logger_place, logger))
            for logger in trainer.loggers
            if not isinstance(logger, DummyLogger)  # of a fast_dev_run, which logs nothing
        ),
        prefix=next((prefix for logger in trainer.loggers if (prefix := trainer_internals.logger_prefix(logger))), ""),
        folder=next((folder for logger in trainer.loggers if (folder := _read(_folder_here, logger))), ""),
        software=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"lightning {lightning.__version__}, lightning_sloppy {__version__}",
    )
    if context is None:
        return facts
    started = datetime.now().astimezone() - timedelta(seconds=context.clock.fit_seconds)
    return replace(
        facts,
        num_parameters=context.layout.dim,
        num_training_samples=context.samples.train_size(trainer),
        measuring_seconds=context.clock.measuring_seconds,
        earlier_seconds=context.clock.earlier_seconds,
        training_seconds=context.clock.training_seconds,
        started=started.isoformat(timespec="seconds"),
    )


def _metrics(trainer: Trainer) -> dict[str, float]:
    """The user's metrics that are numbers; callbacks may put anything there."""
    found: dict[str, float] = {}
    for name, value in trainer_internals.metrics_so_far(trainer).items():
        if not str(name).startswith("sloppy_"):
            with suppress(TypeError, ValueError, RuntimeError):
                found[str(name)] = float(value)
    return found


def _read(fact: Callable[[Any], str], logger: Any) -> str:
    """A fact about a logger; "" if the logger raises: what it could not log, a warning of its own says."""
    with suppress(Exception):
        return fact(logger)
    return ""


def logger_place(logger: Any) -> str:
    """Where the values of a logger are: a file, a folder or an address; "" if not known."""
    experiment = getattr(logger, "experiment", None)
    for named in ("metrics_file_path", "url"):  # of a CSV file; of a page on a server
        found = getattr(experiment, named, None)
        if isinstance(found, str) and found:
            return found
    return logger_folder(logger)


def logger_folder(logger: Any) -> str:
    """Folder of a logger's run on this machine, whether it exists yet or not; "" if there is none.

    A logger with ``save_dir`` but without ``log_dir`` gets ``save_dir/name/version``, as for Lightning's
    ModelCheckpoint.
    """
    folder = getattr(logger, "log_dir", None)
    if isinstance(folder, (str, os.PathLike)):
        return os.fspath(folder)
    root = getattr(logger, "save_dir", None)
    if not isinstance(root, (str, os.PathLike)) or not logger.name or logger.version is None:
        return ""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(root, str(logger.name), version)


def _folder_here(logger: Any) -> str:
    """Folder of a logger's run, unless it is an address of another machine or store."""
    folder = logger_folder(logger)
    return "" if "://" in folder else folder
