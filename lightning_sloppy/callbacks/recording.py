"""What is kept of a measurement beside the curves: the record, its file, and the pages of loggers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.picturing import record_so_far
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.pages import introduce
from lightning_sloppy.runs.run import RunFacts

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def light(measurement: Measurement) -> Measurement:
    """The measurement without its eigenvectors, which take k times the memory of the model."""
    if measurement.spectrum is None or measurement.spectrum.eigenvectors is None:
        return measurement
    return replace(measurement, spectrum=replace(measurement.spectrum, eigenvectors=None))


def keep_record(trainer: Trainer, context: FitContext, facts: RunFacts, step: int) -> None:
    """Add the latest measurements to the file of the run; once all callbacks have measured, fill the loggers' pages.

    Args:
        trainer: The Trainer; nothing happens on other ranks than 0.
        context: The fit.
        facts: Facts about the fit so far.
        step: The x-value.
    """
    if not trainer.is_global_zero:
        return
    family = peers(trainer)
    context.run_writer.write(facts, lambda: [run for peer in family if (run := peer.run_so_far()) is not None])
    if not context.layout_written:
        # Without texts about the measurements, which introduce() does not need: some read all measurements.
        run, prefix_of = record_so_far(family), trainer_internals.logger_prefix
        context.layout_written = introduce(trainer, run, step=step, prefix_of=prefix_of)
