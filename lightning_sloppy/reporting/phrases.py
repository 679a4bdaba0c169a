"""Sentences of the closing summary: step, samples, values with their errors, and why a value is missing."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.display import at_most, number_with_error, ordinal
from lightning_sloppy.display import number as number
from lightning_sloppy.errors import CAUSES, Note
from lightning_sloppy.quantities import Declaration, Quantity
from lightning_sloppy.records import Estimate, Measurement

LONGEST_REASON = 240
"""Characters of a reason in the card; the sections of the summary have the whole."""

ORDINARY = frozenset(
    {
        "A",
        "All",
        "An",
        "Buffers",
        "Each",
        "Every",
        "In",
        "It",
        "Its",
        "Learning",
        "No",
        "None",
        "Numbers",
        "On",
        "One",
        "Only",
        "Outputs",
        "Parameters",
        "Samples",
        "Some",
        "That",
        "The",
        "There",
        "These",
        "This",
        "Two",
        "Under",
        "Weights",
        "With",
        "Without",
    }
)
"""Words that may begin a reason and are no names."""

CLAUSE_END = re.compile(r"; |(?: in forward)?\. (?=[A-Z])")
"""Ends of what was found, before what to do about it."""


def paragraphs_of(events: Sequence[Measurement], declaration: Declaration) -> list[str]:
    """Default text of the closing summary for an instrument: its headlines.

    Args:
        events: Its measurements in order of time.
        declaration: Declaration of the instrument.

    >>> from lightning_sloppy.records import Cost, Status
    >>> event = Measurement(9, 1, "norm", None, {"size": Estimate(2.5)}, Cost(), Status.EXACT, num_samples=64)
    >>> paragraphs_of([event], Declaration("norm", "Norm", [Quantity("size", "Length.", unit="metres")]))
    ['Step 9, in the 2nd epoch. N = 64 probe samples. Size 2.5 metres.']
    """
    event = last_reported(events)
    if event is None:
        return [why_nothing(events)]
    values = [_valued(event, quantity) for quantity in declaration.headlines]
    text = ", ".join(values)
    said = [f"{text[:1].upper()}{text[1:]}."] if values else []
    return [" ".join([when(event), on_samples(event, "probe samples"), *said]), *event.notes]


def _valued(event: Measurement, quantity: Quantity) -> str:
    estimate = event.estimates.get(quantity.name)
    words = quantity.name.replace("_", " ")
    if estimate is None or not usable(estimate):
        return f"{words} missing"
    return f"{words} {shown(quantity, estimate)} {quantity.unit}".rstrip()


def last_reported(events: Sequence[Measurement]) -> Measurement | None:
    """The latest measurement with a usable value or a certificate (which may contain only reasons)."""
    brought = [e for e in events if e.certificate is not None or any(map(usable, e.estimates.values()))]
    return brought[-1] if brought else None


def why_nothing(events: Sequence[Measurement]) -> str:
    """A sentence for an instrument without any value."""
    if not events:
        return "Missing: no measurement was made."
    last = events[-1]
    told = [note for note in last.notes if isinstance(note, Note) and note.cause]
    if told:
        return f"Missing: {told[0].brief}."
    reason = "No value was finite." if last.status.ok else last.status.value
    return " ".join(["Missing.", *(last.notes or (reason,))])


def brief(sentence: str) -> str:
    """A sentence of the summary; a reference in few words if a warning has given it, with its cause.

    >>> brief(Note("The loss adds up its samples. All numbers are those of the mean.", cause="summed"))
    'The loss adds up its samples (see Warnings).'
    """
    if not isinstance(sentence, Note) or not sentence.cause:
        return sentence
    return f"{sentence.brief[:1].upper()}{sentence.brief[1:]}."


def short_reason(sentence: str) -> str:
    """A reason that fits into a line of the card: in few words if a warning has given it, of an error what was found.

    >>> short_reason(Note("KeyError: 'label' (net.py:9) in forward. It runs in eval mode.", cause="error: KeyError"))
    "KeyError: 'label' (net.py:9)."
    """
    if isinstance(sentence, Note) and sentence.short and not sentence.cause:
        return f"{sentence.short}."
    is_error = isinstance(sentence, Note) and sentence.cause.startswith("error:")
    said = str(sentence) if is_error else brief(sentence).removesuffix(".").removesuffix(" (see Warnings)")
    ends = [found.start() for found in CLAUSE_END.finditer(said) if found.start() < LONGEST_REASON]
    if ends and (is_error or len(said) >= LONGEST_REASON):
        said = said[: ends[0] if is_error else ends[-1]]
    if len(said) >= LONGEST_REASON:
        return textwrap.shorten(said, LONGEST_REASON, placeholder=" ...")
    return f"{said.removesuffix('.')}."


def clause(sentence: str) -> str:
    """A sentence that others follow: without its full stop, but with the dots of what was cut."""
    return sentence if sentence.endswith("...") else sentence.removesuffix(".")


def behind_colon(sentence: str) -> str:
    """A sentence in the middle of another one: an ordinary word at its start is written small, a name is not.

    >>> behind_colon("The loss is not known"), behind_colon("KeyError: 'label'"), behind_colon("Net has no outputs")
    ('the loss is not known', "KeyError: 'label'", 'Net has no outputs')
    """
    first = sentence.partition(" ")[0]
    return sentence[:1].lower() + sentence[1:] if first in ORDINARY else sentence


def when(event: Measurement) -> str:
    """Step and epoch, which is counted from 1 as in the card, and the status of the measurement if it is not OK."""
    again = "" if event.status.ok or event.status.name == "UNAVAILABLE" else f" {event.status.value}"
    return f"Step {event.step:,}, in the {ordinal(event.epoch + 1)} epoch.{again}"


def on_samples(event: Measurement, kind: str) -> str:
    """The number of samples."""
    samples = value(event, "num_samples") or float(event.num_samples)
    return f"N = {samples:,.0f} {kind}." if samples else ""


def named(event: Measurement, names: Mapping[str, str]) -> str:
    """Several values in one sentence, each after its name; without a value: "missing"."""
    found = []
    for quantity, words in names.items():
        estimate = event.estimates.get(quantity)
        known = estimate is not None and usable(estimate)
        found.append(f"{words} {with_error(estimate)}" if known and estimate is not None else f"{words} missing")
    return ", ".join(found) + "."


def relative_dimension(event: Measurement, of: str = "") -> str:
    """The effective dimension at a thousandth of the trace, or why it is missing."""
    estimate = event.estimates.get("effective_dimension")
    name = f"Effective dimension{of}"
    if estimate is None:
        return f"{name}: missing{'' if event.notes else ', no reason was given'}."
    if not usable(estimate):
        return f"{name}: missing. {estimate.status.value}"
    counts = {what: value(event, f"num_{what}") for what in ("parameters", "features")}
    total = "".join(f" of {number(count)} {what}" for what, count in counts.items() if count is not None)
    return f"{name}: {with_error(estimate)}{total} (an eigenvalue that is a thousandth of the trace counts 1/2)."


def on_half(event: Measurement) -> str:
    """The effective dimension on the first half of the samples, or nothing."""
    half = value(event, "effective_dimension_half_samples")
    return "" if half is None else f"On the first half of the samples it is {number(half)}."


def dimension_at_prior(event: Measurement) -> str:
    """The effective dimension at the scale of the prior with its errors, or an empty string."""
    estimate, z = event.estimates.get("effective_dimension_at_prior"), value(event, "z")
    if estimate is None or z is None:
        return ""
    if not usable(estimate):
        return f"At the scale of the prior, z = {number(z)}: missing. {estimate.status.value}"
    return f"At the scale of the prior, z = {number(z)}, it is {with_error(estimate)}."


def usable(estimate: Estimate) -> bool:
    """Whether a value may be shown."""
    return estimate.status.ok and math.isfinite(estimate.value)


def value(event: Measurement, quantity: str) -> float | None:
    """The value of a quantity, if it may be shown."""
    estimate = event.estimates.get(quantity)
    return estimate.value if estimate is not None and usable(estimate) else None


def between(event: Measurement, quantity: str, what: str) -> str:
    """The interval of a quantity in brackets, with a word on its kind; empty without one."""
    low, high = value(event, f"{quantity}_low"), value(event, f"{quantity}_high")
    return "" if low is None or high is None else f" ({number(low)} to {number(high)} {what})"


def with_error(estimate: Estimate) -> str:
    """A value with its error."""
    bound = "at least " if estimate.lower_bound else ""
    return bound + number_with_error(estimate.value, estimate.total_error)


def shown(quantity: Quantity, estimate: Estimate) -> str:
    """A value as its declaration asks: a guarantee is rounded up, everything else has its error.

    >>> shown(Quantity("hold_out", "Bound.", upper_bound=True), Estimate(0.073312))
    '0.0734'
    """
    return at_most(estimate.value) if quantity.upper_bound else with_error(estimate)


def verdict(certificate: Certificate | None) -> str:
    """Whether there is a bound, what it certifies and what it was computed from."""
    if certificate is None:
        return "There is no PAC-Bayes bound."
    if not certificate.valid:
        return no_bound_in_words("PAC-Bayes bound", certificate)
    kind = "hold-out" if certificate.kind == "hold_out" else "PAC-Bayes"
    if certificate.value >= 1.0:
        said = f"The {kind} bound is vacuous (1.0): it guarantees nothing yet."
    else:
        said = f"The {kind} bound on the true error is {at_most(certificate.value)}."
    who = {
        "pair_of_draws": "the pair of networks drawn around the model, not the model itself",
        "fixed_network": "the model itself",
    }.get(certificate.certified_predictor, certificate.certified_predictor)
    rests = [f"error {certificate.empirical_risk:.4f} on {certificate.risk_samples:,} samples"]
    if math.isfinite(certificate.log_ratio):
        rests.append(f"complexity {number(certificate.log_ratio)} nats for n = {certificate.n:,}")
    return (
        f"{said} It certifies {who}, with probability at least {1 - certificate.delta:g} over the draw of the "
        f"examples and of the weights. It was computed from: {', '.join(rests)}."
    )


def no_bound_in_words(what: str, certificate: Certificate) -> str:
    """That there is no bound, in few words: each reason was given as a warning.

    >>> from lightning_sloppy.certificate import Reason
    >>> reason = Reason("Only training_step is known; pass loss_fn=.", cause="loss")
    >>> no_bound_in_words("bound", Certificate("hold_out", "fixed_network", 1.0, False, 9, 0.05, (reason,)))
    'There is no bound: the loss of outputs and targets is not known (see Warnings).'
    """
    known = [each for each in certificate.reasons if isinstance(each, Note) and (each.cause in CAUSES or each.short)]
    return f"There is no {what}: {known[0].brief}." if known else f"There is no {what} (see Warnings)."


def lowest_bound(events: Sequence[Measurement], latest: Certificate) -> list[str]:
    """Report the lowest bound of the run if it is an earlier one: all of them hold together."""
    valid = [(e.certificate.value, e.step) for e in events if e.certificate is not None and e.certificate.valid]
    value, step = min(valid)
    if value >= latest.value:
        return []
    lowest = f"The lowest bound of the run was {at_most(value)} at step {step:,}."
    return [f"{lowest} It also holds, for the pair drawn there."]
