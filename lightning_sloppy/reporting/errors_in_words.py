"""What the errors of validation samples say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sloppy.metrics.error_intervals import Rate, error_rate
from lightning_sloppy.metrics.error_report import BinnedErrors, ErrorReport, WorstBin
from lightning_sloppy.reporting.phrases import number

MEASURE_WORDS = {"tail": "share of energy in the tail", "distance": "distance from the training inputs"}
"""The two measures in words."""

MORE_THAN_EXPECTED = 1.5
"""The highest bin holds too many samples if the lower limit of their share is this many times the expected one."""

PARTS = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 10: "tenth"}


def rate_in_words(rate: Rate) -> str:
    """A rate with its interval and the number of samples.

    >>> rate_in_words(Rate(0.25, 0.1, 0.4, 40))
    '0.25 (0.1 to 0.4, N = 40)'
    """
    interval = f"{number(rate.low)} to {number(rate.high)}" if rate.known else "no interval"
    return f"{number(rate.value)} ({interval}, N = {rate.count:,})"


def place_in_words(place: int, bins: int) -> str:
    """Which of the bins it is.

    >>> place_in_words(5, 5), place_in_words(2, 5), place_in_words(1, 7)
    ('the highest fifth', 'bin 2 of 5', 'the lowest bin')
    """
    if place not in (1, bins):
        return f"bin {place} of {bins}"
    return f"the {'lowest' if place == 1 else 'highest'} {PARTS.get(bins, 'bin')}"


def columns_in_words(worst: WorstBin, names: Sequence[str]) -> str:
    """The columns responsible for the worst bin."""
    if not worst.columns:
        return "No column stands out in it."
    said = ", ".join(
        f"{names[each.column]} ({number(each.inside)} instead of {number(each.outside)})" for each in worst.columns
    )
    return f"Columns that stand out in it, by their mean squared standardised values: {said}."


def worst_in_words(report: ErrorReport, names: Sequence[str]) -> str:
    """The worst bin with its interval, and the columns responsible."""
    worst, kind = report.worst, report.kind
    if worst is None:
        return "No bin has the 10 samples that a worst one needs."
    bins = len(report.of(worst.measure).bins)
    above = worst.rate.low > report.overall.value
    beyond = f"That is beyond the {kind} of all samples." if above else f"It may be no larger than the {kind} of all."
    return (
        f"The largest {kind} is in {place_in_words(worst.place, bins)} by {MEASURE_WORDS[worst.measure]}: "
        f"{rate_in_words(worst.rate)}. The interval is wider, because the worst of {worst.looked_at} bins was picked "
        f"(Bonferroni). {beyond} {columns_in_words(worst, names)}"
    )


def report_in_words(report: ErrorReport, names: Sequence[str], *, leading: int, tail: int) -> list[str]:
    """The paragraphs of the summary.

    Args:
        report: The errors.
        names: Names of the columns of the inputs.
        leading: Number of directions that hold 95 % of the trace of the training inputs.
        tail: Number of the others.
    """
    first = [f"The {report.kind} is {rate_in_words(report.overall)}; intervals have 95 %."]
    if report.classes:
        first.append(f"Balanced over the classes: {rate_in_words(report.balanced)}.")
    first += _classes_in_words(report)
    if report.kind == "loss" and report.whitened:
        first.append(_whitened_in_words(report.whitened))
    if report.unplaced.count:
        what = f"{report.unplaced.count:,} samples have inputs that are not finite and belong to no bin"
        first.append(f"{what}; their {report.kind} is {rate_in_words(report.unplaced)}.")
    where = (
        f"The tail is the {tail} of {leading + tail} directions of the training inputs after those with 95 % of the "
    )
    compared = [f"{where}trace." if tail else "All directions are needed for 95 % of the trace, so there is no tail."]
    shown = [each for each in report.by if tail or each.measure != "tail"]
    compared += [text for each in shown for text in (_compared_in_words(each), _few_in_words(each)) if text]
    return [" ".join(first), " ".join(compared), worst_in_words(report, names)]


def _classes_in_words(report: ErrorReport) -> list[str]:
    """The worst class, and the worst of those that are too small for it."""
    small = {label: rate for label, rate in enumerate(report.classes) if rate.count and rate.few}
    said = []
    if report.worst_class is not None:
        label, rate = report.worst_class
        among = "the classes with at least 10 samples" if small else "a class"
        said.append(f"The largest one of {among} is that of class {label}: {rate_in_words(rate)}.")
    if small:
        label = max(small, key=lambda each: small[each].value)
        have = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
        largest = "its error is" if len(small) == 1 else f"the largest error of these is that of class {label},"
        who = f" (class {label})" if len(small) == 1 else ""
        said.append(f"{have} fewer than 10 samples{who}; {largest} {rate_in_words(small[label])}.")
    return said


def _compared_in_words(found: BinnedErrors) -> str:
    low, high, change, bins = found.bins[0], found.bins[-1], found.difference, len(found.bins)
    part = PARTS.get(bins, "bin")
    by, drift = MEASURE_WORDS[found.measure], _drift_in_words(found)
    if not change.known:
        empty = " and ".join(name for name, rate in (("lowest", low), ("highest", high)) if not rate.known)
        return f"By {by} there are too few samples in the {empty} {part} for a difference.{drift}"
    said = f"By {by} it is {number(low.value)} in the lowest {part} and {number(high.value)} in the highest"
    interval = f"{number(change.low)} to {number(change.high)}"
    if change.low <= 0 <= change.high:
        return f"{said}: no difference can be seen ({interval}).{drift}"
    return f"{said}: a difference of {number(change.value)} ({interval}).{drift}"


def _few_in_words(found: BinnedErrors) -> str:
    """Which bins have so few samples that their numbers are hardly known, if any."""
    bins = len(found.bins)
    few = [(place, rate.count) for place, rate in enumerate(found.bins, 1) if rate.few]
    if not few:
        return ""
    places = ", ".join(f"{place_in_words(place, bins)} ({count})" for place, count in few)
    return f"Fewer than 10 samples by {MEASURE_WORDS[found.measure]}: {places}; an error there is hardly known."


def _drift_in_words(found: BinnedErrors) -> str:
    """That far more samples than expected are in the highest bin, if so."""
    counts, bins = [rate.count for rate in found.bins], len(found.bins)
    share = error_rate(counts[-1], sum(counts))
    if not share.low > MORE_THAN_EXPECTED / bins:
        return ""
    return (
        f" {100 * share.value:.0f} % of the samples are in that highest bin, where {100 / bins:.0f} % were expected: "
        "their inputs are distributed otherwise than the training inputs."
    )


def _whitened_in_words(rates: Sequence[Rate]) -> str:
    if len(rates) == 1:
        return "It is in units of the variance of the training targets: 1 is predicting their mean."
    worst = max(range(len(rates)), key=lambda place: rates[place].value)
    return (
        f"It is in units of the variance of the training targets: 1 is predicting their mean. Along the first of their "
        f"{len(rates)} principal directions it is {rate_in_words(rates[0])}, along the last one "
        f"{rate_in_words(rates[-1])}, and largest along direction {worst + 1} with {number(rates[worst].value)}."
    )
