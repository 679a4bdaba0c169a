"""The validation samples as a hold-out set: whether a bound may rest on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.probing import trainer_internals, validity
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.error_counts import ErrorCounter
from lightning_sloppy.probing.samples import SampleSource

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class HoldOut:
    """Errors of the current model on the validation samples.

    Args:
        counter: Counts mistakes on them.
        size: Their number.
    """

    def __init__(self, counter: ErrorCounter, size: int) -> None:
        self._counter = counter
        self.size = size

    def errors(self, context: FitContext) -> int:
        """Mistakes of the model as it is now."""
        return self._counter(context.layout.vector(context.module), torch.arange(self.size))


def open_hold_out(trainer: Trainer, context: FitContext, objective: Objective) -> tuple[HoldOut | None, str]:
    """The hold-out set, or None and a sentence that says why there is none (empty without validation)."""
    loaders = trainer_internals.validation_loaders(trainer)
    if len(loaders) != 1:
        return None, ""
    try:
        source = SampleSource(loaders[0])
    except ConfigurationError:
        return None, ""
    if trainer_internals.steers_by_validation(trainer):
        return None, "No hold-out bound: a learning-rate schedule reacts to a monitored value."
    shared = validity.overlap(context.source(trainer), source)
    if shared:
        return None, f"No hold-out bound: {shared:,} validation samples are training samples as well."
    if validity.reads_differ(trainer, context, source):
        return None, "No hold-out bound: two reads of one validation sample differ."
    return HoldOut(ErrorCounter(trainer, context, source, objective), len(source)), ""
