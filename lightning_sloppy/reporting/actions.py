"""What a user can do after a run: each action with the measurements that speak for it, and what did not help.

An action is offered only where the run gives a reason for it, and only if a script in ``benchmarks/`` has measured what
it brings. A test looks up the numbers of all evidence on the page of the results.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sloppy.reporting.card import settled
from lightning_sloppy.reporting.phrases import last_reported, number, value
from lightning_sloppy.runs.run import Run

WHAT_YOU_CAN_DO = "What you can do"
"""Heading of the section."""

LATE = 0.8
"""If the dimension has settled before this part of the training, the rest of it is worth a sentence."""


@dataclass(frozen=True)
class Evidence:
    """What was measured elsewhere.

    Attributes:
        text: In words, with its numbers.
        question: Heading of its section in ``benchmarks/RESULTS.md``.
    """

    text: str
    question: str


@dataclass(frozen=True)
class Action:
    """Something that the user can do.

    Attributes:
        what: What to do, by which command or call, and the reason that this run gives.
        evidence: What it brought where it was measured.
    """

    what: str
    evidence: Evidence


REPEATS = Evidence(
    "Where it was measured, on eight data sets, leaving them out changed the test error by -4.6 to +0.5 points. A "
    "table of 108 columns did as well with the 22 that stay (-0.5 +- 0.6).",
    "Do fewer inputs cost accuracy?",
)
NARROW = Evidence(
    "Two rules that sound alike did not hold. A first layer as wide as the participation ratio was worse on all eight "
    "data sets, by 0.4 to 6.2 points. A projection onto that many directions cost up to 7.5 points.",
    "Do fewer inputs cost accuracy?",
)
STOP = Evidence(
    "On 21 fits whose settings were not used to choose the rule it took 0.42 of the epochs, and the test error was "
    "0.0121 above the lowest of the run. The full training ended 0.0201 above it, and five epochs of patience on the "
    "validation loss 0.0115.",
    "Is early stopping by effective dimension better than patience on the validation loss, or than none?",
)


def advice(run: Run) -> list[str]:
    """Actions and cautions, a paragraph each; empty if there are no actions.

    Args:
        run: The record of a fit.
    """
    possible = [f"{action.what} {action.evidence.text}" for action in actions(run)]
    return possible and [*possible, *(caution.text for caution in cautions(run))]


def actions(run: Run) -> list[Action]:
    """What can be done after a run.

    Args:
        run: The record of a fit.
    """
    found = (_repeats(run), _stop(run))
    return [each for each in found if each is not None]


def cautions(run: Run) -> list[Evidence]:
    """What did not help where it was measured, as far as this run may suggest it.

    Args:
        run: The record of a fit.
    """
    instrument = run.of_kind("input")
    return [] if instrument is None or instrument.latest is None else [NARROW]


def _repeats(run: Run) -> Action | None:
    """Columns that say what another one says."""
    instrument = run.of_kind("input")
    event = None if instrument is None else last_reported(instrument.measurements)
    repeated = None if event is None else value(event, "repeated_columns")
    if instrument is None or not repeated:
        return None
    which = "1 column that repeats another" if repeated == 1 else f"{number(repeated)} columns that repeat others"
    return Action(
        f"Leave out the {which}, named under "
        f'"{instrument.declaration.title}", if your inputs are the columns of a table: '
        "`SpectralReducer().fit(rows)` drops them and lists what stays.",
        REPEATS,
    )


def _stop(run: Run) -> Action | None:
    """A training that went on long after the dimension had settled, without an early stop."""
    state = settled(run)
    stopping = any("early stop" in each.lower() for each in run.facts.end_sentences)
    if not run.facts.end or state is None or state[0].condition is not None or stopping:
        return None
    since, now = state[0].since, state[0].now
    if since > LATE * now:
        return None
    return Action(
        "Train for fewer epochs: the effective dimension has been settled since epoch "
        f"{number(since)} of {number(now)}. `EffectiveDimensionEarlyStopping()` stops a training when the hold-out loss "
        "no longer improves, too.",
        STOP,
    )
