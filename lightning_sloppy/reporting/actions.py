"""What a user can do after a run: each action with the measurements that speak for it, and what did not help.

An action is offered only where the run gives a reason for it, and only if a script in ``benchmarks/`` has measured what
it brings. A test looks up the numbers of all evidence on the page of the results.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.card import settled
from lightning_sloppy.reporting.network_dimension import network_dimension
from lightning_sloppy.reporting.phrases import last_reported, number, value
from lightning_sloppy.runs.run import Run

WHAT_YOU_CAN_DO = "What you can do"
"""Heading of the section."""

DIMENSIONS = "sample_dimensions"
"""In the ``detail`` of the spectrum of the inputs: dimensions of one sample, 1 for a row of a table."""

LATE = 0.8
"""If the dimension has settled before this part of the training, the rest of it is worth a sentence."""


MANY_PARAMETERS, SMALL_PART = 5_000, 0.1
"""Parameters from which on a smaller network is worth a sentence, and the part of them that it uses at most."""

MOST_WATCHED = 2_048
"""Columns up to which tables are compared."""


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
    "Where it was measured, on eight data sets, leaving them out changed the test error by -4.6 to +0.7 points, which "
    "is about what chance does. A table of 108 columns got along with 23 (+0.7 +- 0.8).",
    "Do fewer inputs cost accuracy?",
)
NARROW = Evidence(
    "Two rules of thumb did not hold. A first layer as wide as the participation ratio was worse on all eight "
    "data sets, by 0.2 to 5.3 points. A projection of the inputs onto that many directions cost up to 6.9 points.",
    "Do fewer inputs cost accuracy?",
)
COMPRESS = Evidence(
    "Where it was measured, a network of 837,610 numbers for MNIST came down to 8.46 % of its size and lost 0.41 "
    "points on test samples, a LeNet to 22.83 % (0.43 points). A ResNet-20 had 41.44 % errors for 28.07 % at a quarter "
    "of its size: such networks allow less.",
    "Which way to make a trained network smaller loses least of its test metric at equal size?",
)
WATCH = Evidence(
    "Of unchanged processes it called a fraction of 0 to 0.05 of the tables drift, and 0.145 where the first table saw "
    "a lasting state only about twice. A column whose mean had moved by one deviation was found by name in 0.97 of "
    "tables of 200 rows.",
    "How often does the gate call drift, without any and with some?",
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
    found = (_repeats(run), _compress(run), _stop(run), _watch(run))
    return [each for each in found if each is not None]


def cautions(run: Run) -> list[Evidence]:
    """What did not help where it was measured, as far as this run may suggest it.

    Args:
        run: The record of a fit.
    """
    instrument = run.of_kind("input")
    return [] if instrument is None or instrument.latest is None else [NARROW]


def _table(run: Run) -> Measurement | None:
    """The measurement of the inputs, if they are rows of a table."""
    instrument = run.of_kind("input")
    event = None if instrument is None else last_reported(instrument.measurements)
    if event is None or event.spectrum is None or event.spectrum.detail.get(DIMENSIONS) != 1:
        return None
    return event


def _repeats(run: Run) -> Action | None:
    """Columns that say what another one says."""
    event = _table(run)
    repeated = None if event is None else value(event, "repeated_columns")
    if not repeated:
        return None
    which = "1 column that repeats another" if repeated == 1 else f"{number(repeated)} columns that repeat others"
    return Action(
        f"Leave out the {which}: `SpectralReducer().fit(rows)` drops them and lists what stays.",
        REPEATS,
    )


def _compress(run: Run) -> Action | None:
    """A network that uses a small part of its directions."""
    network = network_dimension(run)
    if not run.facts.end or network is None:
        return None
    used, parameters = network
    if parameters < MANY_PARAMETERS or used > SMALL_PART * parameters:
        return None
    return Action(
        f"Make the network smaller, which uses {number(used)} of {number(parameters)} directions: `lightning-sloppy "
        "compress --config CONFIG --ckpt_path CHECKPOINT --max_drop .005`, or `compress(module, batches, "
        "max_drop=.005, evaluate=score)`.",
        COMPRESS,
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
        "Let `EffectiveDimensionEarlyStopping()` end the next training: the effective dimension has been settled since "
        f"epoch {number(since)} of {number(now)}, and it stops once the loss on hold-out samples does not improve "
        "either.",
        STOP,
    )


def _watch(run: Run) -> Action | None:
    """A table whose later rows can be compared with it."""
    event = _table(run)
    features = None if event is None else value(event, "num_features")
    if not run.facts.end or features is None or features > MOST_WATCHED:
        return None
    return Action(
        "Watch the data that come later: `lightning-sloppy inspect TABLE --json old.json` now, and for each later "
        "table `lightning-sloppy inspect NEW --against old.json`, which names the columns that have changed.",
        WATCH,
    )
