"""What the errors in bins say: rates with intervals, the worst bin, and the columns responsible for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from scipy.stats import norm
from torch import Tensor

from lightning_sloppy.display import Displayed, Shown, number
from lightning_sloppy.metrics.error_intervals import (
    FEWEST,
    LEVEL,
    UNKNOWN,
    Rate,
    balanced,
    difference,
    error_rate,
    level_of_each,
    mean_loss,
)

MEASURES = ("tail", "distance")
"""By what samples are put into bins: the share of their energy in the tail, and their Mahalanobis distance."""

NAMED_COLUMNS = 5
"""Columns named as responsible."""


@dataclass(frozen=True)
class Tallies:
    """Counts and sums of validation samples; those of several parts of the samples add up.

    K bins are followed by one for samples that cannot be placed, because of inputs that are not finite.

    Attributes:
        counts: Samples by measure, bin and class, (2, K + 1, C), integers.
        mistakes: Those of them that are wrong; all zero for a loss.
        losses: Sum and sum of squares of the losses by measure and bin, (2, K + 1, 2).
        columns: Sum of the second and of the fourth powers of the standardised inputs, (2, K + 1, 2, d). Values beyond
            5 deviations count as 5.
        whitened: Sum and sum of squares of the whitened squared errors by direction of the targets, (t, 2).
    """

    counts: Tensor
    mistakes: Tensor
    losses: Tensor
    columns: Tensor
    whitened: Tensor


def added(parts: Sequence[Tallies]) -> Tallies:
    """The tallies of all samples from those of several parts."""
    return Tallies(*(torch.stack([getattr(part, each.name) for part in parts]).sum(0) for each in fields(Tallies)))


@dataclass(frozen=True)
class ColumnExcess:
    """A column in which the samples of a bin are further from the training mean than the others.

    Attributes:
        column: Its position, from 0.
        inside: Mean squared standardised value in the bin, where each square counts at most 25.
        outside: The same over all other samples.
    """

    column: int
    inside: float
    outside: float


@dataclass(frozen=True)
class BinnedErrors:
    """Errors by bins of one measure.

    Attributes:
        measure: "tail" or "distance".
        bins: From the lowest to the highest.
        balanced: The balanced error of each bin; empty where there are no classes.
        difference: Highest minus lowest bin.
    """

    measure: str
    bins: tuple[Rate, ...]
    balanced: tuple[Rate, ...]
    difference: Rate


@dataclass(frozen=True)
class WorstBin:
    """The bin with the largest error among all bins of both measures.

    Attributes:
        measure: Its measure.
        place: Its place, from 1, the lowest.
        rate: Its error. The interval is wider than that of a single bin, so that it holds although the bin was picked.
        looked_at: How many bins it was picked from.
        columns: Columns responsible, at most 5, the largest excess first; empty where none stands out.
    """

    measure: str
    place: int
    rate: Rate
    looked_at: int
    columns: tuple[ColumnExcess, ...]


@dataclass(frozen=True, repr=False)
class ErrorReport(Displayed):
    """Errors of validation samples by where the energy of their inputs lies.

    Attributes:
        kind: "error" (fraction of mistakes) or "loss".
        overall: Over all samples.
        balanced: Mean of the errors of the classes; NaN without classes.
        classes: Error of each class; empty without classes.
        worst_class: Class with the largest error among those with at least 10 samples, with the rate whose interval
            accounts for the choice; None without one.
        by: By bins of each measure.
        worst: The worst bin; None if no bin has 10 samples.
        unplaced: Samples with inputs that are not finite, which belong to no bin.
        whitened: Whitened mean squared error for each principal direction of the targets; empty without them. 1 is that
            of predicting the mean of the training targets.
    """

    kind: str
    overall: Rate
    balanced: Rate
    classes: tuple[Rate, ...]
    worst_class: tuple[int, Rate] | None
    by: tuple[BinnedErrors, ...]
    worst: WorstBin | None
    unplaced: Rate
    whitened: tuple[Rate, ...]

    def of(self, measure: str) -> BinnedErrors:
        """The bins of a measure."""
        return next(each for each in self.by if each.measure == measure)

    def _shown(self) -> Shown:
        rows = [(self.kind, _in_figures(self.overall)), ("samples", f"{self.overall.count:,}")]
        if self.classes:
            rows.insert(1, ("balanced_error", _in_figures(self.balanced)))
        rows += [(f"{each.measure}_difference", _in_figures(each.difference)) for each in self.by]
        if self.worst is not None:
            rows.append(("worst_bin", f"{self.worst.measure} {self.worst.place}, {_in_figures(self.worst.rate)}"))
        return Shown("ErrorReport", "", rows)

    def numbers(self) -> dict[str, float]:
        """The main numbers by name, each with ``_low`` and ``_high``, and ``num_samples``. NaN: not known."""
        rates = {self.kind: self.overall}
        if self.classes:
            rates["balanced_error"] = self.balanced
        for each in self.by:
            rates |= {
                f"{each.measure}_lowest": each.bins[0],
                f"{each.measure}_highest": each.bins[-1],
                f"{each.measure}_difference": each.difference,
            }
        # The names must not depend on the samples: a logger or a collection expects the same ones at each epoch.
        rates["worst_bin"] = UNKNOWN if self.worst is None else self.worst.rate
        if self.classes:
            rates["worst_class"] = UNKNOWN if self.worst_class is None else self.worst_class[1]
        if self.whitened:
            rates |= {"whitened_error_first": self.whitened[0], "whitened_error_last": self.whitened[-1]}
        found = {"num_samples": float(self.overall.count)}
        for name, rate in rates.items():
            found |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return found


def _in_figures(rate: Rate) -> str:
    return f"{number(rate.value)} ({number(rate.low)} to {number(rate.high)})"


def error_report(tallies: Tallies, *, kind: str, level: float = LEVEL, labelled: bool = True) -> ErrorReport:
    """Rates with intervals from counts and sums.

    Args:
        tallies: Counts and sums over all samples.
        kind: "error" or "loss".
        level: Probability with which an interval holds the number of the population. Where the worst of k is picked,
            each has ``1 - (1 - level) / k``, so that the interval of the picked one has at least this one.
        labelled: Whether the classes of the samples are known; else there are no errors of classes.
    """
    if not labelled:
        summed = (each.sum(2, keepdim=True) for each in (tallies.counts, tallies.mistakes))
        tallies = replace(tallies, **dict(zip(("counts", "mistakes"), summed, strict=True)))
    counts, classes = tallies.counts.cpu(), tallies.counts.shape[2]
    bins = counts.shape[1] - 1
    by = tuple(_binned(tallies, place, kind, level) for place in range(len(MEASURES)))
    if kind == "error":
        every = counts[0].sum(0).tolist()
        wrong = tallies.mistakes[0].sum(0).tolist()
        overall = error_rate(sum(wrong), sum(every), level)
        per_class = tuple(error_rate(w, n, level) for w, n in zip(wrong, every, strict=True)) if classes > 1 else ()
    else:
        overall, per_class = _mean(tallies.losses[0].sum(0), int(counts[0].sum()), level), ()
    return ErrorReport(
        kind=kind,
        overall=overall,
        balanced=balanced(per_class),
        classes=per_class,
        worst_class=_worst_class(tallies, level) if per_class else None,
        by=by,
        worst=_worst_bin(tallies, by, kind, level),
        unplaced=_rate_of_bin(tallies, MEASURES.index("distance"), bins, kind, level),
        whitened=_whitened(tallies, int(counts[0].sum()), level),
    )


def _rate_of_bin(tallies: Tallies, measure: int, place: int, kind: str, level: float) -> Rate:
    count = int(tallies.counts[measure, place].sum())
    if kind == "error":
        return error_rate(int(tallies.mistakes[measure, place].sum()), count, level)
    return _mean(tallies.losses[measure, place], count, level)


def _binned(tallies: Tallies, measure: int, kind: str, level: float) -> BinnedErrors:
    bins = tallies.counts.shape[1] - 1
    rates = tuple(_rate_of_bin(tallies, measure, place, kind, level) for place in range(bins))
    even: tuple[Rate, ...] = ()
    if kind == "error" and tallies.counts.shape[2] > 1:
        pairs = [
            zip(tallies.mistakes[measure, place].tolist(), tallies.counts[measure, place].tolist(), strict=True)
            for place in range(bins)
        ]
        even = tuple(balanced([error_rate(wrong, count, level) for wrong, count in pair]) for pair in pairs)
    return BinnedErrors(MEASURES[measure], rates, even, difference(rates[-1], rates[0]))


def _worst_bin(tallies: Tallies, by: Sequence[BinnedErrors], kind: str, level: float) -> WorstBin | None:
    enough = [
        (measure, place)
        for measure, each in enumerate(by)
        for place, rate in enumerate(each.bins)
        if not rate.few and math.isfinite(rate.value)
    ]
    if not enough:
        return None
    measure, place = max(enough, key=lambda where: by[where[0]].bins[where[1]].value)
    rate = _rate_of_bin(tallies, measure, place, kind, level_of_each(len(enough), level))
    columns = columns_responsible(tallies.columns[measure], tallies.counts[measure].sum(1), place, level)
    return WorstBin(MEASURES[measure], place + 1, rate, len(enough), columns)


def _worst_class(tallies: Tallies, level: float) -> tuple[int, Rate] | None:
    pairs = list(zip(tallies.mistakes[0].sum(0).tolist(), tallies.counts[0].sum(0).tolist(), strict=True))
    enough = [label for label, (_, count) in enumerate(pairs) if count >= FEWEST]
    if not enough:
        return None
    label = max(enough, key=lambda each: pairs[each][0] / pairs[each][1])
    return label, error_rate(*pairs[label], level_of_each(len(enough), level))


def columns_responsible(
    sums: Tensor, counts: Tensor, place: int, level: float = LEVEL, most: int = NAMED_COLUMNS
) -> tuple[ColumnExcess, ...]:
    """Columns whose squared standardised values in a bin exceed those of all other samples most.

    A column is named only if the excess is beyond what chance gives the largest of d columns: a normal quantile at
    ``1 - (1 - level) / d`` times its standard error.

    Args:
        sums: Sum of the second and of the fourth powers of the standardised values, (K + 1, 2, d); the last is of
            samples without a bin.
        counts: Samples of each bin, (K + 1,).
        place: The bin, from 0.
        level: Probability with which no column is named by chance.
        most: Columns named.
    """
    sums, counts = sums[:-1].double().cpu(), counts[:-1].double().cpu()
    inside, outside = sums[place], sums.sum(0) - sums[place]
    n_in, n_out = float(counts[place]), float(counts.sum() - counts[place])
    if n_in < FEWEST or n_out < FEWEST:
        return ()
    mean_in, mean_out = inside[0] / n_in, outside[0] / n_out
    whole = sums.sum(0) / (n_in + n_out)
    # Squares are skewed: the variance over all samples is less often too small than those of the two parts.
    variance = (whole[1] - whole[0].square()).clamp_min(0.0) * (1 / n_in + 1 / n_out)
    excess = mean_in - mean_out
    limit = float(norm.ppf(level_of_each(sums.shape[-1], level)))
    stands_out = excess > limit * variance.sqrt()
    ranked = torch.where(stands_out, excess, -torch.inf).sort(descending=True, stable=True)
    found = [index for value, index in zip(*(each.tolist() for each in ranked), strict=True) if math.isfinite(value)]
    return tuple(ColumnExcess(int(i), float(mean_in[i]), float(mean_out[i])) for i in found[:most])


def _whitened(tallies: Tallies, count: int, level: float) -> tuple[Rate, ...]:
    return tuple(_mean(sums, count, level) for sums in tallies.whitened)


def _mean(sums: Tensor, count: int, level: float) -> Rate:
    return mean_loss(float(sums[0]), float(sums[1]), count, level)
