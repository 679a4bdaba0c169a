"""When the picture of a fit is drawn: after some rounds of measurements, and at the end. Call all on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.schedule import Schedule
from lightning_sloppy.reporting.picture_log import close_picture_log, picture_log, why_no_picture
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Recorded(Protocol):
    """A callback of the fit, as far as its record is concerned."""

    picture: bool
    facts: RunFacts

    @property
    def has_measured(self) -> bool:
        """Whether there are measurements."""

    def run_so_far(self) -> InstrumentRun | None:
        """What it measured."""


def draw_after(
    trainer: Trainer, context: FitContext, family: Sequence[Recorded], step: int, overhead: float | None
) -> None:
    """Draw the picture if a round of measurements is complete after which one is wanted, and count its time.

    Args:
        trainer: The Trainer.
        context: What the callbacks of the fit share.
        family: All callbacks of the fit.
        step: Step of the measurement that was just published.
        overhead: The overhead that was published with it, which only the last measurement of a round has; the last one
            of the first round is that after which all have measured.
    """
    if not wanted(family):
        return
    periodic = [each for each in family if isinstance(getattr(each, "schedule", None), Schedule)]
    first = step == context.began_at and all(each.has_measured for each in periodic)
    complete = first or overhead is not None
    log = picture_log(trainer, resumed=context.began_at > 0, prefix_of=trainer_internals.logger_prefix)
    context.clock.measuring_seconds += log.measured(trainer, step, lambda: record_so_far(family), complete=complete)


def draw_last(trainer: Trainer, context: FitContext | None, family: Sequence[Recorded]) -> None:
    """Draw the picture of the whole fit, and count its time. The facts must have been gathered."""
    log = close_picture_log(trainer, prefix_of=trainer_internals.logger_prefix)
    if not wanted(family):
        return
    run = record_so_far(family)
    seconds = log.draw(trainer, lambda: run, step=run.last_step, last=True)
    if context is not None:
        context.clock.measuring_seconds += seconds


def sentences_about_picture(family: Sequence[Recorded]) -> list[str]:
    """Why there is no picture, if one is wanted and cannot be drawn."""
    why_not = why_no_picture() if wanted(family) else ""
    return [f"No picture of the run was drawn. {why_not}"] if why_not else []


def wanted(family: Sequence[Recorded]) -> bool:
    """Whether no callback of the fit prevents the picture."""
    return all(each.picture for each in family)


def record_so_far(family: Sequence[Recorded]) -> Run:
    """The record of the running fit without texts about its instruments."""
    measured = [each for part in family if (each := part.run_so_far()) is not None]
    facts = next((part.facts for part in family if part.facts.module), RunFacts())
    return Run({each.declaration.name: each for each in measured}, facts)
