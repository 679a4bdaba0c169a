"""What is due at one step is one round: taken or left out as a whole, and made cheaper where it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.schedule import FEWEST_ROUNDS, Work

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_sloppy.callbacks.scheduled import ScheduledCallback


def decide(
    trainer: Trainer, context: FitContext, due: list[ScheduledCallback], family: list[ScheduledCallback]
) -> tuple[bool, list[Work], list[float]]:
    """Whether to take the round, and the work of each of its callbacks from now on with its expected seconds.

    Args:
        trainer: The Trainer.
        context: Of the fit; its clock counts.
        due: The callbacks of the round.
        family: All that measure again and again in this fit.
    """
    measured, trained = context.measuring_seconds, context.training_seconds
    works, costs = [peer.work for peer in due], [peer.expected_seconds for peer in due]
    others = sum(peer.expected_seconds for peer in family if peer not in due)
    fraction = trainer_internals.fraction_done(trainer)

    def allowed() -> bool:
        # The last round of the fit always happens, so its cost is set aside.
        cost = 2 * sum(costs) + others
        return all(peer.budget.allows(cost, measuring=measured, training=trained) for peer in due)

    def few() -> bool:
        return fraction is not None and any(
            peer.budget.rounds(sum(costs), training=trained / fraction) < FEWEST_ROUNDS for peer in due
        )

    while not allowed() and few():
        cheaper = [peer.cheaper(work) for peer, work in zip(due, works, strict=True)]
        dearest = max(range(len(due)), key=lambda index: -1.0 if cheaper[index] is None else costs[index])
        choice = cheaper[dearest]
        if choice is None:
            break
        works[dearest], costs[dearest] = choice[0], costs[dearest] * choice[1]
    return allowed(), works, costs
