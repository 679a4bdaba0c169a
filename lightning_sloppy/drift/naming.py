"""Which numbers are beyond their limits, and the columns and pairs that are responsible, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_sloppy.display import number, percent
from lightning_sloppy.drift.block_null import Null
from lightning_sloppy.drift.differences import Columns, Described, Differences, TopSpace
from lightning_sloppy.drift.report import ColumnChange, PairChange, Statistic
from lightning_sloppy.drift.scoring import Scores, families
from lightning_sloppy.drift.uncut import MANY, MOST, Uncut, times_as_large
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inspection.reference import Reference

MOST_PAIRS = 100
"""Pairs named at most."""

FEW_COLUMNS = 5
"""Columns and pairs named where only a number of the whole matrix is beyond its limit."""

LARGE_SHIFT, LARGE_CORRELATION, HARDLY_SEEN = 0.75, 0.7, 0.98
"""Changes of a mean, in standard deviations, and of a correlation that is 0 before: the page says so if larger ones
than the first two are needed, or if even the third is not enough."""

OF_COLUMNS = ("mean", "deviation", "missing", "one_pair", "all_pairs")


@dataclass(frozen=True)
class Found:
    """All that was found.

    Attributes:
        reference: What was compared with.
        columns: Which were compared.
        first, second: The reference and the later rows.
        real: Their differences.
        null: Those of the reference with itself.
        scores: Of the differences.
        top: The spaces that were compared.
        uncut: The later rows as they are.
    """

    reference: Reference
    columns: Columns
    first: Described
    second: Described
    real: Differences
    null: Null
    scores: Scores
    top: TopSpace
    uncut: Uncut

    def names(self, family: str) -> list[str]:
        """Of the columns of a family."""
        chosen = getattr(self.columns, family, self.columns.linked)
        return [name for name, kept in zip(self.reference.names, chosen, strict=True) if kept]


def statistics_of(found: Found) -> tuple[Statistic, ...]:
    """The numbers with their limits, each family once."""
    own = families(found.real, found.null, found.columns)
    made = []
    for name, scores in found.scores.found.items():
        place = int(np.argmax(scores))
        score, limit = float(scores[place]), float(found.scores.value_limits[name][place])
        column = found.names(name)[place] if name in OF_COLUMNS else ""
        ends = (float(end[place]) for end in found.scores.ranges[name])
        value, limit, *both = (
            _as_reported(found, name, column, each) for each in (float(own[name][place]), limit, *ends)
        )
        normal = min(both), max(both)  # a large angle is a small overlap
        made.append(Statistic(name, value, limit, column, score, score > found.scores.limit, normal))
    return tuple(made)


def _as_reported(found: Found, name: str, column: str, value: float) -> float:
    """A number of a family as it is reported."""
    if name == "overlap":
        return max(0.0, 1 - max(value, 0.0) ** 2)
    if name in ("participation_ratio", "deviation"):
        return float(np.exp(value))
    if name == "missing":
        rate = float(found.first.missing[found.reference.names.index(column)])
        return float(np.sin(np.clip(np.arcsin(np.sqrt(rate)) + value, 0, np.pi / 2)) ** 2) - rate
    return value if name == "mean" else max(value, 0.0)


def changes(found: Found) -> tuple[tuple[ColumnChange, ...], tuple[PairChange, ...]]:
    """The columns and the pairs responsible, the most conspicuous first."""
    limit, names = found.scores.limit, found.reference.names
    scores = found.scores.found
    made: list[ColumnChange] = []
    linked: dict[int, float] = {}
    for family in OF_COLUMNS:
        for name, score in zip(found.names(family), scores.get(family, []), strict=False):
            if score > limit:
                index = names.index(name)
                if family in ("one_pair", "all_pairs"):
                    linked[index] = max(float(score), linked.get(index, -np.inf))
                else:
                    made.append(_changed(found, name, family, float(score)))
    pairs = _pairs(found, set(linked))
    whole = any(scores[name][0] > limit for name in ("distance", "overlap", "participation_ratio") if name in scores)
    if not linked and whole and "all_pairs" in scores:
        best = np.argsort(-scores["all_pairs"])[:FEW_COLUMNS]
        kept = found.names("all_pairs")
        linked = {names.index(kept[place]): float(scores["all_pairs"][place]) for place in best}
        pairs = _pairs(found, None)[:FEW_COLUMNS]
    made += [_changed(found, names[index], "correlations", score) for index, score in linked.items()]
    return tuple(sorted(made, key=lambda change: -change.score)), pairs


def cut_off_in_words(found: Found, columns: Sequence[ColumnChange]) -> list[str]:
    """Of which columns many values lie where hardly any of the reference do, and whether the unit may be another."""
    reference, said = found.reference, []
    assert reference.parts is not None
    for name in dict.fromkeys(change.name for change in columns if change.cut_off > MANY):
        index = reference.names.index(name)
        ends = (_in_units(found, index, float(end[index])) for end in (reference.parts.low, reference.parts.high))
        share = float(found.uncut.share[index])
        text = (
            f"{percent(share)} of the values of {name} are outside {' to '.join(map(number, ends))}, where at least "
            f"{percent(1 - MANY)} of the reference are. They are cut off there for the comparison, but not for the "
            "mean and the standard deviation shown."
        )
        ratio = times_as_large(*((_mean(found, index)[at], _deviation(found, index)[at]) for at in (0, 1)))
        if ratio is not None and share > MOST:
            times = number(float(f"{ratio:.2g}"))
            text += f" Both became about {times} times as large: is it another unit, or another quantity?"
        said.append(text)
    return said


def seen_in_words(scores: Scores) -> list[str]:
    """How large changes have to be, where only large ones are seen: the medians over the columns."""
    said = []
    if "mean" in scores.ranges:
        low, high = scores.ranges["mean"]
        shift = float(np.median((high - low) / 2))
        if shift > LARGE_SHIFT:
            said.append(f"of a mean by about {number(round(shift, 1))} standard deviations or more")
    if "one_pair" in scores.ranges:
        correlation = math.tanh(float(np.median(scores.ranges["one_pair"][1])))
        if correlation > HARDLY_SEEN:
            said.append("of correlations none")
        elif correlation > LARGE_CORRELATION:
            said.append(f"of a correlation by about {correlation:.2f} or more")
    return [f"With so few independent rows only large changes are seen: {', '.join(said)}."] if said else []


def constant_now(reference: Reference, least: Floats, names: Sequence[str]) -> dict[str, float]:
    """The values of columns that are constant now, in the units of the table."""
    places = {name: reference.names.index(name) for name in names}
    return {
        # Standardising rounds: 0 must be 0 again.
        name: round(
            float(reference.shift[at] + reference.scale[at] * least[at]),
            9 - math.floor(math.log10(reference.scale[at])),
        )
        for name, at in places.items()
    }


def _in_units(found: Found, index: int, value: float) -> float:
    return float(found.reference.shift[index] + found.reference.scale[index] * value)


def _mean(found: Found, index: int) -> tuple[float, float]:
    before, after = (_in_units(found, index, float(each.mean[index])) for each in (found.first, found.second))
    many = found.uncut.share[index] > MANY
    return before, _in_units(found, index, float(found.uncut.mean[index])) if many else after


def _deviation(found: Found, index: int) -> tuple[float, float]:
    scale = float(found.reference.scale[index])
    after = found.uncut.deviation if found.uncut.share[index] > MANY else found.second.deviation
    return scale * float(found.first.deviation[index]), scale * float(after[index])


def _changed(found: Found, name: str, what: str, score: float) -> ColumnChange:
    index = found.reference.names.index(name)
    return ColumnChange(name, what, *_before_and_after(found, what, index), score, float(found.uncut.share[index]))


def _before_and_after(found: Found, what: str, index: int) -> tuple[float, float]:
    both = (found.first, found.second)
    if what == "mean":
        before, after = _mean(found, index)
    elif what == "deviation":
        before, after = _deviation(found, index)
    elif what == "missing":
        before, after = (float(each.missing[index]) for each in both)
    else:
        of_column = (found.columns.below[0] == index) | (found.columns.below[1] == index)
        kept = of_column & found.columns.defined
        before, after = (float(np.sqrt(np.mean(each.correlation[kept] ** 2))) if kept.any() else 0.0 for each in both)
    return before, after


def _pairs(found: Found, linked: set[int] | None) -> tuple[PairChange, ...]:
    """Pairs of these columns (all columns for None) beyond the limit, or those next to it."""
    first, second = found.columns.below
    score = _pair_scores(found)
    score[~found.columns.defined] = -np.inf
    if linked is not None:
        chosen = np.isin(first, list(linked)) | np.isin(second, list(linked))
        score[~chosen] = -np.inf
    order = np.argsort(-score, kind="stable")[:MOST_PAIRS]
    order = order[np.isfinite(score[order])]
    beyond = int(np.sum(score[order] > found.scores.limit))
    least = 0 if linked is not None and not linked else FEW_COLUMNS if linked is None else min(3, len(order))
    names = found.reference.names
    return tuple(
        PairChange(names[second[place]], names[first[place]], float(found.first.correlation[place]),
                   float(found.second.correlation[place]), float(score[place]))
        for place in order[: beyond or least]
    )  # fmt: skip


def _pair_scores(found: Found) -> Floats:
    spread = np.where(found.null.pair > 0, found.null.pair, np.inf)
    ratio = np.abs(found.real.change) / spread
    degrees = min(found.null.blocks - 1, 10 + found.null.blocks / 4)
    return np.asarray(stats.norm.isf(np.maximum(stats.t.sf(ratio, degrees), 1e-300)), np.float64)
