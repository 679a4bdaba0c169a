"""The logged metric that judges a network, and whether larger or smaller is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_sloppy.errors import ConfigurationError

Direction = Literal["max", "min"]
"""Whether larger or smaller values of a metric are better."""

LARGER = ("acc", "accuracy", "f1", "auc", "auroc", "precision", "recall", "r2", "iou", "dice", "map", "bleu", "psnr")
SMALLER = ("loss", "error", "err", "mse", "mae", "rmse", "nll", "perplexity", "ppl", "bpd", "wer", "cer", "brier")
"""Words in the names of metrics."""


@dataclass(frozen=True)
class Monitored:
    """A metric.

    Attributes:
        name: Its name among the logged ones.
        direction: Whether larger or smaller is better.
        source: Where name and direction come from, in words.
    """

    name: str
    direction: Direction
    source: str

    def score(self, value: float) -> float:
        """The value, or minus the value: larger is better."""
        return value if self.direction == "max" else -value


def chosen_metric(
    logged: Iterable[str], monitor: str | None, direction: Direction | None, callbacks: Sequence[Any]
) -> Monitored:
    """The metric to judge by: the one asked for, else that of a checkpoint or early-stopping callback, else one score.

    Args:
        logged: Names of the metrics that the validation logs.
        monitor: The name that was asked for, or None.
        direction: The direction that was asked for, or None.
        callbacks: Callbacks of the configuration; those with ``monitor`` and ``mode`` are asked.

    Raises:
        ConfigurationError: If the metric is not logged, or metric or direction cannot be told.
    """
    names = sorted(logged)
    watched = {
        str(each.monitor): each.mode
        for each in callbacks
        if getattr(each, "monitor", None) in names and getattr(each, "mode", None) in ("max", "min")
    }
    source = "asked for"
    if monitor is None and len(watched) == 1:
        (monitor,), source = watched, "monitored in the configuration"
    if monitor is None:
        scores = [name for name in names if direction_of(name) == "max"]
        if len(scores) != 1:
            listed = ", ".join(names) or "nothing"
            raise ConfigurationError(
                f"The metric to judge by is not clear: the validation logs {listed}; pass --monitor NAME."
            )
        (monitor,), source = scores, "the only score that the validation logs"
    if monitor not in names:
        raise ConfigurationError(
            f"The validation does not log {monitor!r}, but {', '.join(names) or 'nothing'}; pass one of these with "
            "--monitor."
        )
    found = direction or watched.get(monitor) or direction_of(monitor)
    if found is None:
        raise ConfigurationError(
            f"Whether larger or smaller values of {monitor!r} are better is not clear from its name; pass --direction "
            "max or min."
        )
    return Monitored(monitor, found, source)


def direction_of(name: str) -> Direction | None:
    """What the name of a metric says; None if it says nothing, or both.

    >>> direction_of("val_accuracy"), direction_of("val/loss"), direction_of("val_score")
    ('max', 'min', None)
    """
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))
    larger, smaller = bool(words & set(LARGER)), bool(words & set(SMALLER))
    if larger == smaller:
        return None
    return "max" if larger else "min"
