"""What occurs now and did not, or hardly, in the reference, or the other way round: beyond chance, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_sloppy.display import percent
from lightning_sloppy.drift.comparable import OFTEN, Comparison, Mask, listed
from lightning_sloppy.drift.differences import Columns
from lightning_sloppy.drift.presence import less_often, more_often

WORTH_A_NOTE = 0.02
"""Rise of the part of the cells that are missing from which it is said, even if it is not called drift."""


@dataclass(frozen=True)
class RareEvents:
    """What occurs now and did not, or the other way round."""

    constant: tuple[str, ...]
    varying: tuple[str, ...]
    missing: dict[str, tuple[float, float]]
    categories: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.constant or self.varying or self.missing or self.categories)


def rare_events(comparison: Comparison, chosen: Columns, level: float) -> RareEvents:
    """Look for them.

    Args:
        comparison: Both tables.
        chosen: Columns that are compared by their moments.
        level: Probability that any is found between tables of an unchanged process.
    """
    later, reference, old = comparison.later, comparison.reference, comparison.parts.presence
    block, new, unseen, names = comparison.block, later.presence, later.unseen, np.array(reference.names)
    still = later.present & later.still
    departs = later.present & ~still & (old.joined(block).departs.mean(0) < OFTEN)
    gaps = later.present & ~chosen.missing
    tests = int(still.sum() + 2 * departs.sum() + 2 * gaps.sum()) + len(later.constant) + len(unseen)
    level /= max(tests, 1)

    def found(which: Mask, attribute: str, *sides: Callable[[Mask, Mask, int], Any]) -> Mask:
        places = np.flatnonzero(which)
        pair = getattr(old, attribute)[:, places], getattr(new, attribute)[:, places]
        hit = np.zeros(len(which), np.bool_)
        if len(places):
            hit[places] = np.min([side(*pair, block) for side in sides], axis=0) <= level
        return hit

    constant = found(still, "varies", less_often)
    varying = found(departs, "departs", more_often, less_often)
    missing = found(gaps, "gaps", more_often, less_often)
    before = np.zeros((len(old.gaps), 1), np.bool_)
    others = later.constant_departs
    rows = [more_often(before, others[:, [place]], block)[0] for place in range(len(later.constant))]
    changed = [name for name, p in zip(later.constant, rows, strict=True) if p <= level]
    categories = {
        name: words for name, (mask, words) in unseen.items() if more_often(before, mask[:, None], block)[0] <= level
    }
    rates = [
        _rates(moments.with_counts()) for moments in (comparison.parts.whole, later.moments) if moments is not None
    ]
    rose = {
        str(names[place]): (rates[0][place], rates[1][place])
        for place in np.flatnonzero(gaps & ~missing)
        if rates[1][place] > rates[0][place] + WORTH_A_NOTE
    }
    notes = _rare_notes(
        rose,
        [str(name) for name in names[still & ~constant]],
        [name for place, name in enumerate(later.constant) if others[:, place].any() and name not in changed],
        {name: words for name, (_, words) in unseen.items() if name not in categories},
    )
    return RareEvents(
        tuple(names[constant].tolist()),
        (*changed, *names[varying].tolist()),
        {str(names[place]): (rates[0][place], rates[1][place]) for place in np.flatnonzero(missing)},
        categories,
        tuple(notes),
    )


def _rates(counts: Any) -> list[float]:
    return [float(rate) for rate in 1 - counts.count / counts.rows]


def _rare_notes(
    rose: dict[str, tuple[float, float]], still: list[str], varying: list[str], categories: dict[str, tuple[str, ...]]
) -> list[str]:
    found = []
    if rose:
        worst = sorted(rose.items(), key=lambda each: each[1][0] - each[1][1])
        shown = [f"{name} ({percent(before, 1)} -> {percent(after, 1)})" for name, (before, after) in worst]
        found.append(
            f"Missing more often than in the reference, in too few stretches of rows to call it drift: "
            f"{listed(shown)}. Look at these columns."
        )
    if still:
        found.append(f"Constant now, as may happen by chance in so few rows: {listed(still)}.")
    if varying:
        found.append(
            f"Constant in the reference, and other values now, in too few blocks to call it drift: {listed(varying)}."
        )
    for name, words in categories.items():
        found.append(f"New categories of {name}, in too few blocks to call it drift: {listed(words)}.")
    return found
