"""Which columns of two tables can be compared, and for how many rows the later ones count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.drift.differences import Columns, described
from lightning_sloppy.drift.later_rows import LaterRows
from lightning_sloppy.drift.neighbours import (
    FEWEST_INDEPENDENT,
    Neighbours,
    block_of,
    independent,
    neighbours,
)
from lightning_sloppy.drift.report import inside
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.noise_edge import effective_rows
from lightning_sloppy.inputs.pairwise import fewest_defined
from lightning_sloppy.inputs.row_parts import RowParts
from lightning_sloppy.inspection.reference import Reference

Mask = npt.NDArray[np.bool_]

FEWEST_ROWS = 20

MOST_SHORTER = 64
"""Times that the later rows may be fewer than those of one part of the reference."""

LONGER_MEMORY = 0.1
"""Difference of the median autocorrelations from which the later rows count as fewer."""

OFTEN = 0.5
"""Part of the blocks of the reference in which a column departs from its usual value, or misses values, from which its
deviation, or its rate, is compared; rarer events are compared by the blocks in which they occur."""


class Comparison:
    """One table beside a reference."""

    def __init__(self, later: LaterRows, reference: Reference, origin: str) -> None:
        assert reference.parts is not None
        self.later, self.reference, self.origin = later, reference, origin
        self.parts: RowParts = reference.parts
        self.rows = float(self.parts.whole.rows)
        r = reference.autocorrelation
        self.autocorrelation = 0.0 if math.isnan(r) else r
        self.block = block_of(len(self.parts.moments.rows), self.rows, self.autocorrelation)

    def length(self) -> tuple[float, list[str]]:
        """Rows that the later table counts for, and what is to be said of it.

        Raises:
            ConfigurationError: Too few.
        """
        rows, part = self.later.rows, self.rows / len(self.parts.moments.rows)
        fewest = max(FEWEST_ROWS, math.ceil(part / MOST_SHORTER))
        if rows < fewest:
            raise ConfigurationError(
                f"{self.origin} cannot be compared with {inside(self.reference.origin)}: of {fewest:,} rows "
                f"that are needed there are {rows:,}; gather more of them."
            )
        own = self.later.autocorrelation
        if own <= self.autocorrelation + LONGER_MEMORY:
            return rows, []
        counted = max(2.0, rows * effective_rows(1, own) / effective_rows(1, self.autocorrelation))
        return counted, [
            f"Neighbouring rows of {self.origin} are more alike (median lag-1 autocorrelation {own:.2f}) than those of "
            f"the reference ({self.autocorrelation:.2f}); its {rows:,} rows count as {counted:,.0f}."
        ]

    def columns(self) -> tuple[Columns, Neighbours, Mask]:
        """Those that are compared, how alike their neighbouring blocks are, and those that change too slowly.

        Raises:
            ConfigurationError: None is left.
        """
        later, parts = self.later, self.parts
        assert later.moments is not None
        counts = later.moments.with_counts()
        whole = parts.whole.with_counts()
        assert counts.count is not None
        assert counts.pairs is not None
        assert whole.pairs is not None
        presence = parts.presence.joined(self.block)
        varying = presence.departs.mean(0) >= OFTEN
        fewest = fewest_defined(later.rows)
        seen = counts.count >= fewest
        scale = later.present & varying & seen & ~later.still
        gaps = presence.gaps.mean(0)
        missing = later.present & (gaps >= OFTEN) & (counts.count < later.rows + 0.5)
        defined = (counts.pairs >= fewest) & (whole.pairs >= fewest_defined(int(self.rows)))
        chosen = Columns(scale, scale, missing, scale, defined)
        alike = neighbours(parts, self.block, described(parts.whole, chosen).correlation, chosen)
        blocks = len(parts.moments.rows) / self.block
        fast = [
            independent(each, blocks) >= FEWEST_INDEPENDENT for each in (alike.mean, alike.square, alike.correlation)
        ]
        # A correlation is made of means and squares: a slow one of either leaves nothing certain of it, and its spread
        # would hide what differs in the distance and the spectrum.
        quick = [scale & fast[0], scale & fast[1], scale & fast[0] & fast[1] & fast[2]]
        rare = later.present & ~varying & ~later.still  # compared by the blocks in which they occur
        if not (quick[0] | quick[1] | quick[2]).any() and (scale.any() or not rare.any()):
            why = (
                f"its columns change so slowly that the {self.reference.rows:,} rows of the reference make fewer than "
                f"{FEWEST_INDEPENDENT:g} independent stretches; take a longer reference"
                if scale.any()
                else f"no column varies, and is observed {fewest} times, in both; compare tables of one kind"
            )
            raise ConfigurationError(f"{self.origin} cannot be compared with {inside(self.reference.origin)}: {why}.")
        if not quick[2].all():
            chosen = Columns(quick[0], quick[1], missing, quick[2], defined)
            alike = neighbours(parts, self.block, described(parts.whole, chosen).correlation, chosen)
        return chosen, alike, scale & ~(fast[0] & fast[1] & fast[2])

    def notes(self, chosen: Columns, slow: Mask, names: Sequence[str]) -> list[str]:
        """What is to be said of columns that were not compared."""
        later, reference = self.later, self.reference
        found = []
        used = np.array(reference.names)
        if slow.any():
            found.append(
                f"Of {listed(used[slow])} the correlations are not compared, nor what else changes so slowly that the "
                f"reference makes fewer than {FEWEST_INDEPENDENT:g} independent stretches of it."
            )
        rest = later.present & ~chosen.compared & ~slow & ~later.still
        if rest.any():
            found.append(
                f"Compared only by how often they leave their usual value: {listed(used[rest])}. They have it in most "
                "blocks of the reference, or are hardly observed."
            )
        aside = [name for name in reference.set_aside if name not in names]
        if aside:
            found.append(f"Not there, and not used in the reference: {listed(aside)}.")
        return found


def listed(names: Sequence[Any] | npt.NDArray[Any], most: int = 8) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
