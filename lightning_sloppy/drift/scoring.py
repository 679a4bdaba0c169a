"""How far each number is from what the null expects, and the limit for the largest of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_sloppy.drift.block_null import Null
from lightning_sloppy.drift.differences import Columns, Differences
from lightning_sloppy.drift.neighbours import independent
from lightning_sloppy.inputs.pairwise import Floats

ONE_SIDED = ("one_pair", "all_pairs", "distance", "overlap")
"""Families of distances: only large ones are conspicuous. That of the overlap is ``sqrt(1 - overlap)``."""

NOTHING = 1e-9
"""Deviation of the null up to which a number is the same in all resamples, and says nothing."""


def families(found: Differences, null: Null, columns: Columns) -> dict[str, Floats]:
    """Name and values of each family, (..., s)."""
    known = {name: getattr(found, name)[..., getattr(columns, name)] for name in ("mean", "deviation", "missing")}
    if len(columns.spectral) > 1:
        known["one_pair"] = found.one_pair[..., columns.linked]
        known["all_pairs"] = found.all_pairs[..., columns.linked]
        known["distance"] = np.asarray(found.distance)[..., None]
        if found.angle is not None:
            known["overlap"] = np.asarray(found.angle)[..., None]
        ratios = participation_ratios(found, null, columns)
        known["participation_ratio"] = np.log(ratios[..., 1:] / ratios[..., :1])
    return {name: values for name, values in known.items() if values.shape[-1]}


def participation_ratios(found: Differences, null: Null, columns: Columns) -> Floats:
    """Participation ratios of both sets, (..., 2), without what sampling adds to the squared correlations."""
    u = len(columns.spectral)
    if u < 2:
        return np.full(found.squared.shape, np.nan)
    return np.asarray(u**2 / np.maximum(found.squared - null.base, u))


@dataclass(frozen=True)
class Scores:
    """How far each number is from what the null expects, in deviations of a normal distribution.

    Attributes:
        found: By family, (s,) each.
        limit: Of the largest one of all, at the level alpha.
        value_limits: By family, the value of each number at the limit, (s,), on its side.
        ranges: By family, the values of each number at the limit on both sides, (s,) each; the lower one of a distance,
            which has none, is minus infinity.
    """

    found: dict[str, Floats]
    limit: float
    value_limits: dict[str, Floats]
    ranges: dict[str, tuple[Floats, Floats]]


def scored(real: Differences, null: Null, columns: Columns, alpha: float) -> Scores:
    """Compare the differences of the data with the null.

    Args:
        real: Of the data.
        null: Of the resamples.
        columns: Which are compared.
        alpha: Probability that the largest score of an unchanged process is above the limit.
    """
    drawn, own = families(null.found, null, columns), families(real, null, columns)
    largest, scores, sides = [], {}, {}
    for name, values in drawn.items():
        side = _Sides.of(values, one=name in ONE_SIDED)
        degrees = _degrees(name, null, columns)
        largest.append(side.ratio(values).max(-1))
        tail = np.maximum(stats.t.sf(side.ratio(own[name]), degrees), 1e-300)
        scores[name] = np.asarray(stats.norm.isf(tail))
        sides[name] = side, degrees
    if not drawn:
        return Scores({}, math.inf, {}, {})
    most = np.sort(np.max(largest, axis=0))
    # So many resamples may reach it: with the data themselves counted in, that is the part alpha.
    reaching = max(0, math.floor(alpha * (len(most) + 1)) - 1)
    limit = float(most[len(most) - 1 - reaching])
    ratios = {name: stats.t.isf(stats.norm.sf(limit), degrees) for name, (_, degrees) in sides.items()}
    limits = {name: side.value(ratios[name], own[name]) for name, (side, _) in sides.items()}
    return Scores(scores, limit, limits, {name: side.ends(ratios[name]) for name, (side, _) in sides.items()})


OUTER = 0.025
"""Part of the resamples on either side that tells how long the tail of a number is."""

OUTER_MEAN = 2.338
"""Mean of that part of normal numbers, in deviations."""


@dataclass(frozen=True)
class _Sides:
    """Middle and spread of numbers, (s,) each.

    A column that varies in few rows, or a distance, has a long tail on one side. Standardised by its deviation alone it
    would be the largest number in most resamples, and raise the limit of all others. So each side is measured by the
    larger of the deviation and of what the outer resamples would have as one, were they normal.
    """

    middle: Floats
    below: Floats
    above: Floats
    one: bool

    @classmethod
    def of(cls, values: Floats, *, one: bool) -> _Sides:
        middle, spread = values.mean(0), values.std(0, ddof=1)
        outer = max(1, math.ceil(OUTER * len(values)))
        ordered = np.sort(values, axis=0)
        above = np.maximum(spread, (ordered[-outer:].mean(0) - middle) / OUTER_MEAN)
        below = np.maximum(spread, (middle - ordered[:outer].mean(0)) / OUTER_MEAN)
        return cls(middle, below, above, one)

    def ratio(self, values: Floats) -> Floats:
        """How far numbers are from the middle; of a distance only above it."""
        far = values - self.middle
        found = np.where(
            far > 0,
            far / np.maximum(self.above, NOTHING),
            (0.0 if self.one else -far) / np.maximum(self.below, NOTHING),
        )
        return np.asarray(np.where(self.above > NOTHING, found, 0.0))

    def value(self, ratio: Floats, like: Floats) -> Floats:
        """The number that is so far from the middle, on the side of another one."""
        low, high = self.ends(ratio)
        return np.asarray(high if self.one else np.where(like >= self.middle, high, low))

    def ends(self, ratio: Floats) -> tuple[Floats, Floats]:
        """The numbers that are so far from the middle on either side."""
        high = np.asarray(self.middle + ratio * self.above)
        low = np.full_like(high, -np.inf) if self.one else np.asarray(self.middle - ratio * self.below)
        return low, high


def _degrees(name: str, null: Null, columns: Columns) -> Floats:
    """Degrees of freedom of the deviations of the null.

    A deviation from B independent Gaussian blocks has B - 1. Sums of squares are not Gaussian, and numbers that join
    many pairs rest on few independent ones, so that their deviations are less certain; the constants come from
    simulated processes (``benchmarks/drift_calibration.py``).
    """
    alike = {
        "mean": null.neighbours.mean,
        "deviation": null.neighbours.square,
        "missing": null.neighbours.missing,
    }.get(name)
    if alike is None:
        return np.array(min(null.blocks - 1, 8 + null.blocks / 16))
    own = alike[getattr(columns, name)]
    return np.asarray(np.clip(independent(own, null.blocks) - 1, 1.0, 10 + null.blocks / 4))
