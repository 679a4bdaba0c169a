"""Pass a measurement to every logger at one step, and its scalars to Lightning's monitors.

The abilities of a logger are determined from the methods of its experiment, not from its class: the classes of
``lightning`` and ``pytorch_lightning`` differ, and third parties write their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.histograms import RawHistogram, histograms
from lightning_sloppy.reporting.tags import curve_tags, curves, scalars
from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def no_prefix(_: object) -> str:
    """The prefix of a logger without one."""
    return ""


def publish(
    trainer: Trainer,
    measurement: Measurement,
    declaration: Declaration,
    *,
    overhead: float | None = None,
    prefix_of: Callable[[object], str] = no_prefix,
) -> None:
    """Publish a measurement: all scalars to the monitors, then the curves to each logger, at ``measurement.step``.

    Call this function on every rank. If a logger raises, a warning is issued once and the logger is skipped; the other
    loggers and the training continue. Without a logger, the monitors still work.

    Args:
        trainer: The running Trainer.
        measurement: The measurement. Values that are not loggable are skipped, so monitors keep the last finite ones.
        declaration: Declaration of the instrument.
        overhead: Seconds of measuring per second of training so far; None: not logged.
        prefix_of: The prefix that a logger puts before the names of scalars, for its histograms.
    """
    values = scalars(measurement, declaration, overhead=overhead)
    _update_monitors(trainer, values)
    if not trainer.is_global_zero:
        return
    drawn = curves(values, declaration)
    shapes = histograms(measurement, declaration)
    for logger in trainer.loggers:
        with attempt(trainer, logger, "log a measurement"):
            experiment = getattr(logger, "experiment", None)  # the base class of loggers does not guarantee one
            if drawn:
                logger.log_metrics(_complete(experiment, drawn, declaration), step=measurement.step)
            if hasattr(experiment, "add_histogram_raw"):
                named = {f"{prefix_of(logger)}{name}": shape for name, shape in shapes.items()}
                _write_histograms(experiment, named, measurement.step)


@contextmanager
def attempt(trainer: Trainer, logger: object, deed: str) -> Iterator[None]:
    """Turn any error of a logger into one warning for each Trainer, logger class and cause; the training continues."""
    try:
        yield
    except Exception as error:
        name, seen = type(logger).__name__, _warned.setdefault(trainer, set())
        # A full disk shows in everything that is written: the same error is one cause, whatever was to be done.
        keys = {f"{name}: {deed}", f"{name}: {type(error).__name__}: {error}"}
        known = bool(keys & seen)
        seen |= keys
        if not known:
            warn_user(
                f"{type(logger).__name__} could not {deed}: {type(error).__name__}: {error}. Training and the other "
                "loggers continue. This warning is shown once; check the logger's settings and its connection."
            )


def _update_monitors(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Write scalars to the metrics that ModelCheckpoint, EarlyStopping and the schedulers read.

    They must be tensors (EarlyStopping squeezes them) without a graph (ModelCheckpoint deep-copies them), on the same
    device as Lightning's own entries, so that they can be compared.
    """
    device = trainer.strategy.root_device
    trainer.callback_metrics.update(
        {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in values.items()}
    )


def _complete(experiment: object, values: dict[str, float], declaration: Declaration) -> dict[str, float]:
    """Pad the scalars with NaN for a logger that keeps a list of columns.

    A CSV file is rewritten completely when a column is added, so all columns of an instrument are written from its
    first measurement on. Other loggers would plot the NaN, so they get the measured values only.
    """
    # A dummy experiment returns a function for every attribute, hence the check of the type.
    if not isinstance(getattr(experiment, "metrics_keys", None), list):
        return values
    return {**dict.fromkeys(curve_tags(declaration), math.nan), **values}


def _write_histograms(experiment: Any, shapes: Mapping[str, RawHistogram], step: int) -> None:
    for name, shape in shapes.items():
        experiment.add_histogram_raw(
            name,
            min=shape.minimum,
            max=shape.maximum,
            num=shape.num,
            sum=shape.total,
            sum_squares=shape.sum_squares,
            bucket_limits=list(shape.bucket_limits),
            bucket_counts=list(shape.bucket_counts),
            global_step=step,
        )
