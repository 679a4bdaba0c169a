"""Which numbers are beyond their limits, and the columns and pairs that are responsible, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_sloppy.drift.block_null import Null
from lightning_sloppy.drift.differences import Columns, Described, Differences, TopSpace
from lightning_sloppy.drift.report import ColumnChange, PairChange, Statistic
from lightning_sloppy.drift.scoring import Scores, families, participation_ratios
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inspection.reference import Reference

MOST_PAIRS = 100
"""Pairs named at most."""

FEW_COLUMNS = 5
"""Columns and pairs named where only a number of the whole matrix is beyond its limit."""

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
    """

    reference: Reference
    columns: Columns
    first: Described
    second: Described
    real: Differences
    null: Null
    scores: Scores
    top: TopSpace

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
        value = float(own[name][place])
        column = found.names(name)[place] if name in OF_COLUMNS else ""
        if name == "overlap":
            value, limit = 1 - value**2, max(0.0, 1 - limit**2)
        elif name == "participation_ratio":
            before, after = (float(each) for each in participation_ratios(found.real, found.null, found.columns))
            value, limit = after / before, float(np.exp(limit))
        elif name == "deviation":
            value, limit = float(np.exp(value)), float(np.exp(limit))
        elif name == "missing":
            index = found.reference.names.index(column)
            rate = float(found.first.missing[index])
            value = float(found.second.missing[index]) - rate
            limit = float(np.sin(np.clip(np.arcsin(np.sqrt(rate)) + limit, 0, np.pi / 2)) ** 2) - rate
        made.append(Statistic(name, value, limit, column, score, score > found.scores.limit))
    return tuple(made)


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
                    made.append(ColumnChange(name, family, *_before_and_after(found, family, index), float(score)))
    pairs = _pairs(found, set(linked))
    whole = any(scores[name][0] > limit for name in ("distance", "overlap", "participation_ratio") if name in scores)
    if not linked and whole and "all_pairs" in scores:
        best = np.argsort(-scores["all_pairs"])[:FEW_COLUMNS]
        kept = found.names("all_pairs")
        linked = {names.index(kept[place]): float(scores["all_pairs"][place]) for place in best}
        pairs = _pairs(found, None)[:FEW_COLUMNS]
    made += [
        ColumnChange(names[index], "correlations", *_before_and_after(found, "correlations", index), score)
        for index, score in linked.items()
    ]
    return tuple(sorted(made, key=lambda change: -change.score)), pairs


def _before_and_after(found: Found, what: str, index: int) -> tuple[float, float]:
    shift, scale = float(found.reference.shift[index]), float(found.reference.scale[index])
    both = (found.first, found.second)
    if what == "mean":
        before, after = (shift + scale * float(each.mean[index]) for each in both)
    elif what == "deviation":
        before, after = (scale * float(each.deviation[index]) for each in both)
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
