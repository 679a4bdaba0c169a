"""Hands a measurement to every logger at one step, and its scalars to Lightning's monitors.

What a logger can do is found by asking its experiment for a method, never by its class: the classes of ``lightning``
and ``pytorch_lightning`` differ, and third parties write their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.histograms import RawHistogram, histograms
from lightning_sloppy.reporting.tags import expected_tags, scalars

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def publish(
    trainer: Trainer, measurement: Measurement, declaration: Declaration, *, overhead: float | None = None
) -> None:
    """Tell everyone about a measurement: monitors first, then each logger, all at ``measurement.step``.

    Call it on every rank. A logger that raises is warned about once and skipped; the others and the training go on.
    No logger at all is legal: the monitors still work. A logger's ``prefix`` applies to scalars only.

    Args:
        trainer: The running Trainer.
        measurement: What was measured; values that are not loggable are left out, so the last finite ones stay.
        declaration: Of the instrument that measured.
        overhead: Seconds of measuring per second of training so far, logged when given.
    """
    values = scalars(measurement, declaration, overhead=overhead)
    _update_monitors(trainer, values)
    if not trainer.is_global_zero:
        return
    shapes = histograms(measurement, declaration)
    for logger in trainer.loggers:
        with attempt(trainer, logger, "log a measurement"):
            experiment = getattr(logger, "experiment", None)  # the base class of loggers does not promise one
            logger.log_metrics(_complete(experiment, values, declaration), step=measurement.step)
            if hasattr(experiment, "add_histogram_raw"):
                _write_histograms(experiment, shapes, measurement.step)


@contextmanager
def attempt(trainer: Trainer, logger: object, deed: str) -> Iterator[None]:
    """Turn any error of a logger into one warning for each Trainer and logger class: curves are worth no training."""
    try:
        yield
    except Exception as error:
        key = f"{type(logger).__name__}: {deed}"
        seen = _warned.setdefault(trainer, set())
        if key not in seen:
            seen.add(key)
            rank_zero_warn(
                f"{type(logger).__name__} could not {deed}: {type(error).__name__}: {error}. Training and the other "
                "loggers go on; this is said once. Look at the logger's settings and at its connection."
            )


def _update_monitors(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Write detached scalars where ModelCheckpoint, EarlyStopping and the schedulers look.

    They must be tensors (EarlyStopping squeezes them) without a graph (ModelCheckpoint deep-copies them), on the
    device of Lightning's own entries so that two of them can be compared.
    """
    device = trainer.strategy.root_device
    trainer.callback_metrics.update(
        {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in values.items()}
    )


def _complete(experiment: object, values: dict[str, float], declaration: Declaration) -> dict[str, float]:
    """Pad the scalars with NaN for a logger that keeps a list of columns.

    A CSV file is rewritten as a whole whenever a new column appears, so from the first measurement of an instrument on
    every column that it may ever need is there. Other loggers would draw the NaN, so they get only what was measured.
    """
    # A dummy experiment answers every attribute with a function, hence the look at the type.
    if not isinstance(getattr(experiment, "metrics_keys", None), list):
        return values
    return {**dict.fromkeys(expected_tags(declaration), math.nan), **values}


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
