"""What a report says, as a user would ask; each answer with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_sloppy.display import counted, percent
from lightning_sloppy.inputs.pairwise import fewest_common, fewest_defined, fewest_linked
from lightning_sloppy.inspection.data_report import Answer, DataReport, Interval, SpectrumReport, TargetReport
from lightning_sloppy.inspection.hardly_varying import combination, late_columns, on_few_rows, varying_in

SETTLED = 0.05
"""Half width of the participation ratio's interval, and its bias, up to which more rows would change little."""

TOO_FEW = "no intervals: too few independent rows for so many columns"

ASSUMED = {
    "pairwise": "missing completely at random: which are missing depends on no value",
    "em": "missing at random: which are missing depends on observed values only",
}
"""What each treatment assumes of missing values."""

SMALL = 0.05
"""Relative difference between two treatments up to which they agree."""


def answers_of(report: DataReport) -> list[Answer]:
    """All questions that the report can answer, and what it cannot say."""
    found = [_directions(report), _drop(report), _dead(report), _missing(report), _more_rows(report), _rows(report)]
    found += [_sloppy(report), *map(_target, report.targets), _unsaid(report)]
    return found


def listed(names: Sequence[str]) -> str:
    """Names as a list to copy.

    >>> listed(["a", "b c"])
    '["a", "b c"]'
    """
    return "[" + ", ".join('"' + name.replace('"', '\\"') + '"' for name in names) + "]"


def number(value: float) -> str:
    """Four digits, without an exponent where that is short.

    >>> number(76.9609), number(2e-9), number(12345.6), number(float("nan"))
    ('76.96', '2e-09', '12,346', 'not known')
    """
    if math.isnan(value):
        return "not known"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def interval(found: Interval) -> str:
    """Value and ends.

    >>> interval(Interval(4.0, 3.5, 5.0)), interval(Interval(4.0))
    ('4 [3.5, 5]', '4')
    """
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def above_noise_edge(found: SpectrumReport) -> str:
    """How many eigenvalues lie above it, as :func:`interval` writes it."""
    ends = found.above_noise_edge_interval
    return f"{found.above_noise_edge}" + ("" if ends is None else f" [{ends[0]}, {ends[1]}]")


def columns(count: int) -> str:
    """A number of columns.

    >>> columns(1), columns(1200)
    ('1 column', '1,200 columns')
    """
    return f"{count:,} column{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _directions(report: DataReport) -> Answer:
    whole, fewer = report.spectrum, report.deduplicated
    ratio = whole.participation_ratio
    answer = f"About {ratio.value:.0f}, where {columns(whole.columns)} {'varies' if whole.columns == 1 else 'vary'}"
    if report.drop:
        answer += (
            f"; about {fewer.participation_ratio.value:.0f} of the {fewer.columns:,} columns that are left when those "
            "which repeat others are dropped"
        )
    evidence = (
        f"Participation ratio {interval(ratio)}, the effective number of directions and the one to quote; "
        f"{above_noise_edge(whole)} eigenvalues above the noise edge of {number(whole.noise_edge)}, directions that "
        f"noise alone cannot explain; entropy rank {interval(whole.entropy_rank)}, which also counts weak directions"
    )
    if ratio.low is not None and ratio.high is not None and not ratio.low <= ratio.value <= ratio.high:
        evidence += (
            ". The interval does not hold the value: sampling makes it "
            f"{'low' if ratio.value < ratio.low else 'high'}, and the interval is corrected for that"
        )
    return Answer("How many independent directions are there?", f"{answer}.", f"{evidence}.")


def _drop(report: DataReport) -> Answer:
    question = "Which columns can be dropped because others repeat them?"
    pairs = f"|r| > {report.threshold:g}"
    encoded = [set(names) for names in report.encoded.values()]
    dependent = [
        found
        for found in report.dependencies.found
        if len(found.names) > 1 and not any({found.column, *found.names} <= names for names in encoded)
    ]
    also = ""
    if dependent:
        also = (
            f" {columns(len(dependent)).capitalize()} more {'is an' if len(dependent) == 1 else 'are'} exact "
            f"{'combination' if len(dependent) == 1 else 'combinations'} of several others: "
            + "; ".join(combination(report, found) for found in dependent[:5])
            + ("; ..." if len(dependent) > 5 else "")
            + "."
        )
    fewest = fewest_linked(report.rows)
    if report.rows < fewest:
        said = f"Two columns without any relation often have {pairs} in fewer than {fewest} rows."
        return Answer(question, f"That cannot be said: {counted(report.rows, 'row')} are too few.{also}", said)
    if not report.drop:
        said = f"No two columns have {pairs} over {fewest} or more common rows."
        return Answer(question, f"None.{also}", said)
    strongest = [abs(r) for group in report.groups for _, _, r in group.drop]
    return Answer(
        question,
        f"{columns(len(report.drop)).capitalize()}: {listed(report.drop)}.{on_few_rows(report)}{also}",
        f"{counted(len(report.groups), 'group')} of {columns(_members(report))} with {pairs}; each listed column "
        f"has one that stays with |r| of {min(strongest):.3f} and more, over "
        f"{min(behind.common for behind in report.rows_behind):,} common rows and more. {_without_repeats(report)}",
    )


def _without_repeats(report: DataReport) -> str:
    """What dropping does to directions and decades, and why."""
    whole, fewer = report.spectrum, report.deduplicated
    said = (
        f"Dropping them takes the number of directions from {number(whole.participation_ratio.value)} to "
        f"{number(fewer.participation_ratio.value)} and the decades from {number(whole.decades.value)} to "
        f"{number(fewer.decades.value)}."
    )
    if fewer.participation_ratio.value > whole.participation_ratio.value:
        said += (
            " The number rises because repeated columns give their direction more weight, which lowers the "
            "participation ratio."
        )
    if report.missing.negative_eigenvalues and report.missing.method == "pairwise":
        said += (
            " Both decades are limited by missing values, which hide eigenvalues below "
            f"{number(whole.floor)} and {number(fewer.floor)}, and say little about the process."
        )
    return said


def _members(report: DataReport) -> int:
    return sum(len(group.names) for group in report.groups)


def _dead(report: DataReport) -> Answer:
    question = "Which sensors are dead?"
    parts, evidence = [], []
    if report.constant:
        change = "changes" if len(report.constant) == 1 else "change"
        parts.append(f"{columns(len(report.constant)).capitalize()} never {change}: {listed(report.constant)}.")
        evidence.append(f"one value in all {report.rows:,} rows where they are observed")
    empty = [name for name, reason in report.set_aside.items() if reason.startswith(("no value", "hardly"))]
    if empty:
        parts.append(f"{columns(len(empty)).capitalize()} hold hardly any value: {listed(empty)}.")
        evidence.append(f"less than 5 % of the rows, or fewer than {fewest_common(report.rows)}, observed")
    if not parts:
        parts.append("None: every column varies.")
        evidence.append("no column with a single value, none without values")
    if report.nearly_constant:
        change = "changes" if len(report.nearly_constant) == 1 else "change"
        parts.append(
            f"{columns(len(report.nearly_constant)).capitalize()} almost never {change}: "
            f"{listed([*report.nearly_constant])}. {varying_in(report)}".rstrip()
        )
        evidence.append("one value in 99 % of the observed rows and more")
    late = late_columns(report)
    if late:
        parts.append(
            f"{columns(len(late)).capitalize()} look{'s' if len(late) == 1 else ''} dead in the first half of the rows "
            f"or longer and {'varies' if len(late) == 1 else 'vary'} later: "
            f"{', '.join(late[:12])}{', ...' if len(late) > 12 else ''}."
        )
    if report.departures:
        evidence.append("rows counted from 0")
    said = "; ".join(evidence)
    return Answer(question, " ".join(parts), f"{_capital(said)}.")


def _missing(report: DataReport) -> Answer:
    question = "What do missing values do?"
    seen = report.missing
    if seen.method == "none":
        return Answer(question, "There are none in the columns used.", f"All {report.rows:,} rows are complete.")
    ratio = report.spectrum.participation_ratio.value
    how = {
        "pairwise": "each correlation is over the rows that both columns have",
        "em": "the Gaussian model fills them (expectation and maximisation)",
    }[seen.method]
    filled = seen.filled_with_means if seen.filled_with_means is not None else ratio
    differs = abs(filled - ratio) / ratio
    effect = "little to the number of directions" if differs <= SMALL else "something to the number of directions"
    answer = (
        f"{percent(seen.rate, 2)} of the cells are missing; {how}. Compared with filling in column means, this does "
        f"{effect}: {number(ratio)} instead of {number(filled)}."
    )
    if seen.negative_eigenvalues and seen.method == "pairwise":
        answer += (
            f" Missing values hide small eigenvalues: none below {number(report.spectrum.floor)} is known, so decades "
            "are counted above that only, and the condition index is not known."
        )
    elif seen.negative_eigenvalues:
        answer += " Missing values hide small eigenvalues: decades and condition index rest on the model."
    smallest = number(seen.smallest_eigenvalue)
    negative = f"{counted(seen.negative_eigenvalues, 'negative eigenvalue')} down to {smallest}"
    if not seen.negative_eigenvalues:  # what is negative then is rounding
        zero = "0 up to rounding" if seen.smallest_eigenvalue <= report.spectrum.floor else smallest
        negative = f"no negative eigenvalue (the smallest is {zero})"
    evidence = f"The pairwise matrix has {negative}"
    one = seen.undefined_pairs == 1
    if seen.method == "pairwise":
        if seen.negative_eigenvalues:
            evidence += f", and the repair moves a correlation by up to {seen.repair:.2f}"
        taken = "it is" if one else "they are"
        pairs = f", and {taken} taken as uncorrelated, which is a second assumption" if seen.undefined_pairs else ""
    else:
        pairs = ", taken as uncorrelated by the pairwise matrix, while the model infers them from other columns"
        evidence += f"; the model took {seen.iterations} iterations{'' if seen.converged else ' and is not settled'}"
    evidence += (
        f". {seen.undefined_pairs:,} {'pair has' if one else 'pairs have'} fewer than {fewest_defined(report.rows)} "
        f"rows in common or {'does' if one else 'do'} not vary there (the fewest: {seen.smallest_overlap}){pairs}. "
        f"All this assumes that values are {ASSUMED[seen.method]}."
    )
    return Answer(question, answer, evidence)


def _more_rows(report: DataReport) -> Answer:
    question = "Would more rows help?"
    ratio = report.spectrum.participation_ratio
    if report.resampled == TOO_FEW:
        return Answer(
            question,
            "Yes: there are too few independent rows for so many columns, so that the rows limit the number of "
            "directions, and how far cannot be said.",
            f"{report.rows:,} rows ({report.effective_rows:,.0f} effective, {percent(report.missing.rate, 1)} of the "
            f"cells missing) for {columns(report.spectrum.columns)}.",
        )
    if ratio.low is None or ratio.high is None or report.half is None:
        return Answer(question, "That cannot be said here.", f"{_capital(report.resampled)}.")
    middle = math.sqrt(ratio.low * ratio.high)
    width = (ratio.high - ratio.low) / (2 * middle)
    gap = abs(middle - ratio.value) / middle
    lost = (report.half - ratio.value) / ratio.value
    evidence = (
        f"{report.rows:,} rows ({report.effective_rows:,.0f} effective) for {columns(report.spectrum.columns)}; the "
        f"95 % interval reaches {percent(width, 1)} either way; a random half of the rows gives {number(report.half)} "
        f"directions on average, {percent(abs(lost), 1)} {'fewer' if lost < 0 else 'more'} than all rows"
        + (" do: fewer rows make the number too low" if lost < 0 else "")
    )
    if width <= SETTLED and gap <= SETTLED:
        answer = (
            f"Hardly: the 95 % interval of the number of directions reaches {percent(width, 1)} either way. "
            f"This page chose {percent(SETTLED)} as its goal."
        )
    else:
        times = max((width / SETTLED) ** 2, gap / SETTLED)
        side = "low" if ratio.value < middle else "high"
        answer = (
            f"Yes: the number of directions is known to within {percent(width, 1)} either way (95 % interval)"
            + (f", and having so few rows makes it about {percent(gap, 1)} too {side}" if gap > SETTLED else "")
            + f". About {number(_rounded(times))} times as many rows ({_rounded(times * report.rows):,.0f}) would "
            + _what_more_rows_bring(width > SETTLED, gap > SETTLED)
            + f". This page chose {percent(SETTLED)} as its goal."
        )
    return Answer(question, answer, f"{evidence}. Widths shrink like one over the square root of the number of rows.")


def _what_more_rows_bring(wide: bool, biased: bool) -> str:
    """In words; at least one of the two is so."""
    narrow = f"narrow the 95 % interval of the number of directions to {percent(SETTLED)} either way"
    lower = f"that error to {percent(SETTLED)} or less"
    return f"{narrow} and bring {lower}" if wide and biased else narrow if wide else f"bring {lower}"


def _rounded(value: float) -> float:
    """Up to two digits: more are not known, and fewer rows would not be enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _rows(report: DataReport) -> Answer:
    question = "Do single rows or outliers rule the result?"
    ratio = report.spectrum.participation_ratio.value
    beside = (
        f"Participation ratio {number(ratio)}; of values cut off at 5 deviations {number(report.clipped)}; of ranks "
        f"{number(report.ranks)}"
    )
    if report.dominating_rows:
        rows = ", ".join(map(str, report.dominating_rows))
        answer = (
            f"Yes, row{'s' if len(report.dominating_rows) > 1 else ''} {rows} (counted from 0): look at "
            f"{'them' if len(report.dominating_rows) > 1 else 'it'}, and trust ranks more than the plain number."
        )
        taken = "it away moves" if len(report.dominating_rows) == 1 else "them away, one after the other, moves"
        return Answer(question, answer, f"Taking {taken} the number of directions by 5 % and more. {beside}.")
    far = max(abs(report.clipped - ratio), abs(report.ranks - ratio)) / ratio
    if far > 2 * SMALL:
        return Answer(
            question,
            "No single row does, but many outlying values together matter: without their weight the number of "
            f"directions is {number(report.clipped)} to {number(report.ranks)}."
            if report.clipped <= report.ranks
            else "No single row does, but the tails together matter: with ranks the number of directions is "
            f"{number(report.ranks)}.",
            f"{beside}.",
        )
    return Answer(question, "No.", f"{beside}. No row moves it by 5 %.")


def _sloppy(report: DataReport) -> Answer:
    question = "Is the spectrum sloppy (a sharp drop, then small eigenvalues spread evenly over decades)?"
    words = {"yes": ("is", "sloppy"), "no": ("is", "not sloppy"), "undetermined": ("may or may not be", "sloppy")}
    found: dict[str, list[str]] = {}
    for kind, verdict in report.verdicts.items():
        found.setdefault(verdict.answer, []).append(f"the {kind.replace('_', '-')} matrix")
    said = [
        f"{' and '.join(kinds)} {'are' if verb == 'is' and len(kinds) > 1 else verb} {what}"
        for (verb, what), kinds in ((words[answer], kinds) for answer, kinds in found.items())
    ]
    reasons = [
        f"{_capital(kind.replace('_', '-'))} matrix: {verdict.reason}." for kind, verdict in report.verdicts.items()
    ]
    answer = ", ".join(said)
    extra = " The second moment depends on the units of the columns." if "second_moment" in report.verdicts else ""
    return Answer(question, f"{_capital(answer)}.", f"{' '.join(reasons)}{extra}")


def _probability(value: float) -> str:
    return "< 1e-12" if value < 1e-12 else f"= {value:.2g}"


def _target(target: TargetReport) -> Answer:
    question = f"What does the target {target.name} look like by itself?"
    gaps = f" {target.missing:,} cells are missing." if target.missing else ""
    thirds = ", ".join(f"{part:.4g}" for part in target.thirds)
    changes = (
        ""
        if math.isnan(target.change)
        else f" (p {_probability(target.change)} for no change, if rows were independent)"
    )
    if target.kind == "numbers":
        return Answer(
            question,
            f"Always naming the mean has a root mean squared error of {number(target.deviation)}.{gaps}",
            f"Means of the thirds of the rows: {thirds}{changes}.",
        )
    if len(target.rates) < 2:
        only = next(iter(target.rates), "nothing")
        return Answer(question, f"It is always {only}: there is nothing to learn.{gaps}", "One class only.")
    rates = ", ".join(f"{name} {percent(rate, 2)}" for name, rate in [*target.rates.items()][:10])
    largest = next(iter(target.rates))
    return Answer(
        question,
        f"Always naming {largest} is wrong in {percent(target.majority_error, 2)} of the rows: a model has to beat "
        f"that.{gaps}",
        f"Rates: {rates}. Rate of {target.followed} in the thirds of the rows: {thirds}{changes}.",
    )


def _unsaid(report: DataReport) -> Answer:
    said = [
        "Correlations see straight lines only, and say nothing of which columns matter for a target: fewer "
        "directions are no reason for a narrower layer."
    ]
    if report.spectrum.participation_ratio.low is None:
        said.append(f"How sure the numbers are ({report.resampled}).")
    if report.missing.method != "none":
        completely = "completely " if report.missing.method == "pairwise" else ""
        said.append(f"Whether values are missing {completely}at random, which all of this assumes.")
    if report.missing.negative_eigenvalues and report.missing.method == "pairwise":
        said.append(f"Eigenvalues below {number(report.spectrum.floor)}, and with them the smallest directions.")
    if report.set_aside:
        some = "; ".join(f"{name} ({reason})" for name, reason in [*report.set_aside.items()][:8])
        more = f"; and {len(report.set_aside) - 8:,} more" if len(report.set_aside) > 8 else ""
        said.append(f"What is in the columns set aside: {some}{more}.")
    if report.dependencies.rows == 0:
        said.append("Whether columns are exact combinations of several others: too few complete rows.")
    said.append("Decades, slope and knee have no interval of confidence: their brackets are the spread over resamples.")
    return Answer("What cannot be said?", " ".join(said), "What was measured, and how; see docs/inspect.md.")
