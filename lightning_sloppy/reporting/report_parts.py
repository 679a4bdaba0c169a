"""What the report of a run shows, as plain records: numbers with their errors, certificates, what is missing, costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.display import at_most, counted
from lightning_sloppy.quantities import Quantity
from lightning_sloppy.records import Estimate, Measurement, Status
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.guide import GUIDE, Advice
from lightning_sloppy.reporting.tags import tag
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

MOST_STEPS = 6
"""Steps that are listed one by one where several measurements failed."""

IRREGULAR = 1.5
"""Ratio of the longest to the shortest interval between measurements from which they are reported as irregular."""


INTERVAL = "95 % interval"

SHOWN_SECONDS = 0.05
"""Less than this is 0.0 in a table of seconds."""

NO_REASON = "No reason is known."


@dataclass(frozen=True)
class ShownNumber:
    """A number of the latest measurement.

    Attributes:
        quantity: Its declaration.
        tag: Its tag in the loggers.
        estimate: Value and errors.
        interval: The quantities whose names end in ``_low`` and ``_high``, where they were measured.
        interval_kind: What they are: "95 % interval" if the declaration says so, else "spread".
    """

    quantity: Quantity
    tag: str
    estimate: Estimate
    interval: tuple[float, float] | None = None
    interval_kind: str = "spread"

    @property
    def name(self) -> str:
        """Name in words, with the unit."""
        words = self.quantity.name.replace("_", " ")
        return f"{words} ({self.quantity.unit})" if self.quantity.unit else words

    @property
    def value(self) -> str:
        """The value, with as many decimals as its error has; without an error, four digits."""
        return phrases.shown(self.quantity, self.estimate).split(" +- ")[0].removeprefix("at least ")

    @property
    def has_error(self) -> bool:
        """Whether there is an error or an interval to show."""
        return self.interval is not None or self.estimate.total_error > 0


@dataclass(frozen=True)
class NumbersOfInstrument:
    """The numbers of one instrument.

    Attributes:
        title: Title of the instrument.
        when: Step, epoch, samples, and the status where it is not good.
        headlines: The numbers that the closing summary reports.
        others: All other numbers.
        history: Step, epoch (counted from 1) and headline values of each measurement, in order.
        history_heads: Names of those values.
        text: What the closing summary says about it.
        advice: What it means and what to do when it rises, falls or stays flat, if the package knows.
    """

    title: str
    when: str
    headlines: tuple[ShownNumber, ...]
    others: tuple[ShownNumber, ...]
    history_heads: tuple[str, ...]
    history: tuple[tuple[str, ...], ...]
    text: tuple[str, ...]
    advice: Advice | None


@dataclass(frozen=True)
class Missing:
    """Something that has no value.

    Attributes:
        title: Title of the instrument.
        what: What is missing.
        why: The reason, and what to do.
    """

    title: str
    what: str
    why: str


@dataclass(frozen=True)
class CostOfInstrument:
    """The cost of one instrument in the whole run."""

    title: str
    measurements: str
    seconds: str
    seconds_each: str
    products: str
    methods: str
    peak: str


def ending(facts: RunFacts, measurements: Sequence[Measurement]) -> str:
    """How the run ended, in one sentence; or that it did not."""
    if facts.end:
        done = f"{counted(facts.epochs, 'epoch')} and {counted(facts.steps, 'optimiser step')}"
        return " ".join([f"Training {facts.end} after {done}.", *facts.end_sentences])
    last = max(measurements, key=lambda each: each.step, default=None)
    seen = "it has no measurement" if last is None else f"its last measurement is at step {last.step:,}"
    return f"This run did not end: it is still running or was killed, and {seen}."


def all_measurements(run: Run) -> list[Measurement]:
    """The measurements of all instruments."""
    return [event for each in run.instruments.values() for event in each.measurements]


def numbers(instrument: InstrumentRun) -> NumbersOfInstrument:
    """The numbers of the latest measurement that has any."""
    declaration = instrument.declaration
    event = phrases.last_reported(instrument.measurements)
    shown = [] if event is None else list(_shown(instrument, event))
    heads = [quantity for quantity in declaration.headlines if any(n.quantity is quantity for n in shown)]
    return NumbersOfInstrument(
        title=declaration.title,
        when=phrases.why_nothing(instrument.measurements) if event is None else _when(instrument, event),
        headlines=tuple(number for number in shown if number.quantity in heads),
        others=tuple(number for number in shown if number.quantity not in heads),
        history_heads=tuple(quantity.name.replace("_", " ") for quantity in heads),
        history=tuple(_history(each, heads) for each in instrument.measurements),
        text=tuple(_text(instrument, event)),
        advice=GUIDE.get(instrument.kind),
    )


def certificates(run: Run) -> list[tuple[str, Certificate]]:
    """The latest certificate of each instrument that has one, with the instrument's title; the final one first."""
    found = []
    for each in sorted(run.instruments.values(), key=lambda instrument: instrument.kind != "certificate"):
        latest = next((e.certificate for e in reversed(each.measurements) if e.certificate is not None), None)
        if latest is not None:
            found.append((each.declaration.title, latest))
    return found


def explanation(certificate: Certificate) -> list[str]:
    """How a valid bound comes about and how to make it smaller, without its statement."""
    return certificate.explain().splitlines()[1:] if certificate.valid else []


def certificate_numbers(certificate: Certificate) -> list[tuple[str, str]]:
    """Everything that a bound depends on, as name and text; what is not known is left out."""
    numbers_of = {
        "Bound": certificate.value,
        "Examples that it divides by (n)": certificate.n,
        "Examples of the prior": certificate.n_prior or math.nan,
        "Failure probability (delta)": certificate.delta,
        "Observed error": certificate.empirical_risk,
        "Examples on which it was observed": certificate.risk_samples or math.nan,
        "Upper limit of that error on all examples": certificate.risk_upper,
        "Complexity, for these draws (nats)": certificate.log_ratio,
        "Part for the distance from the prior's mean (nats)": certificate.kl_displacement,
        "Part for the precision of the weights (nats)": certificate.kl_covariance,
        "Error of always predicting the most frequent class": certificate.guess_error,
        "Error of the initial weights": certificate.start_error,
        "Prior precision (epsilon)": certificate.epsilon,
    }
    bounds = {"Bound", "Upper limit of that error on all examples"}
    found = [
        (name, at_most(value) if name in bounds else phrases.number(value))
        for name, value in numbers_of.items()
        if math.isfinite(value)
    ]
    texts = {
        "Bounded loss": certificate.loss,
        "Posterior": certificate.posterior.replace("_", " "),
        "Saved networks": ", ".join(certificate.networks),
        "SHA-256 of the prior": certificate.prior_hash,
        "SHA-256 of the examples": certificate.sample_hash,
    }
    return found + [(name, text) for name, text in texts.items() if text]


def missing(run: Run) -> list[Missing]:
    """What has no value, and why: failed measurements, values that were not resolved, bounds that do not hold."""
    found: list[Missing] = []
    for each in run.instruments.values():
        found += _missing(each)
    return found


def irregular(run: Run) -> list[str]:
    """Instruments whose intervals between measurements differ, as sentences: rounds may have been skipped."""
    found = []
    for each in run.instruments.values():
        steps = [event.step for event in each.measurements]
        gaps = [after - before for before, after in pairwise(steps)][:-1]  # the last is the end's
        if len(gaps) >= 2 and max(gaps) > IRREGULAR * max(min(gaps), 1):
            found.append(
                f"{each.declaration.title} was measured every {min(gaps):,} to {max(gaps):,} steps. If your schedule "
                "is regular, the rounds in between were skipped to keep to max_overhead."
            )
    return found


def costs(run: Run) -> list[CostOfInstrument]:
    """The cost of each instrument that has measured."""
    found = []
    for each in run.instruments.values():
        spent = [event.cost for event in each.measurements]
        if not spent:
            continue
        seconds = sum(cost.seconds for cost in spent)
        peak = max((cost.peak_bytes for cost in spent if cost.peak_bytes), default=0)
        products = sum(cost.products for cost in spent)
        found.append(
            CostOfInstrument(
                title=each.declaration.title,
                measurements=f"{len(spent):,}",
                seconds=f"{seconds:,.1f}",
                seconds_each=f"{seconds / len(spent):,.2f}",
                products=f"{products:,}" if products else "",
                methods=", ".join(dict.fromkeys(cost.method.replace("_", " ") for cost in spent if cost.method)),
                peak=f"{peak / 2**20:,.0f}" if peak else "",
            )
        )
    for title, spent_beside in other_seconds(run):
        found.append(CostOfInstrument(title[:1].upper() + title[1:], "", f"{spent_beside:,.1f}", "", "", "", ""))
    return found


def other_seconds(run: Run) -> list[tuple[str, float]]:
    """The part of the cost that belongs to no measurement of the record, as name and seconds.

    Args:
        run: The record of a fit.
    """
    facts = run.facts
    measured = sum(event.cost.seconds for event in all_measurements(run))
    parts = {
        "before the run was resumed": facts.earlier_seconds,
        "checks of the loss, trial runs and logging": facts.measuring_seconds - facts.earlier_seconds - measured,
    }
    return [(name, seconds) for name, seconds in parts.items() if seconds >= SHOWN_SECONDS]


def facts_of(facts: RunFacts) -> list[tuple[str, str]]:
    """Facts about the run as name and text; what is not known is left out."""
    known = {
        "Module": facts.module,
        "Trainable parameters": f"{facts.num_parameters:,}" if facts.num_parameters else "",
        "Training samples": f"{facts.num_training_samples:,}" if facts.num_training_samples else "",
        "Completed epochs": f"{facts.epochs:,}",
        "Optimiser steps": f"{facts.steps:,}",
        "Started": facts.started.replace("T", " "),
        "Resumed at step": ", ".join(f"{step:,}" for step in facts.resumed_at),
        "Folder": facts.folder,
        "Loggers": ", ".join(f"{name} ({place})" if place else name for name, place in facts.loggers),
        "Software": facts.software,
    }
    logged = {f"Logged: {name}": phrases.number(value) for name, value in facts.metrics.items()}
    return [(name, text) for name, text in {**known, **logged}.items() if text]


def _shown(instrument: InstrumentRun, event: Measurement) -> Iterator[ShownNumber]:
    for quantity in instrument.declaration.quantities:
        estimate = event.estimates.get(quantity.name)
        if estimate is not None and phrases.usable(estimate):
            low, high = (phrases.value(event, f"{quantity.name}{end}") for end in ("_low", "_high"))
            interval = None if low is None or high is None else (low, high)
            upper = instrument.declaration.quantity(f"{quantity.name}_high")
            kind = INTERVAL if upper is not None and INTERVAL in upper.explanation else "spread"
            yield ShownNumber(quantity, tag(instrument.declaration.name, quantity.name), estimate, interval, kind)


def _text(instrument: InstrumentRun, event: Measurement | None) -> list[str]:
    """The text of the closing summary, without the conditions, which another part of the report shows."""
    text = instrument.paragraphs or phrases.paragraphs_of(instrument.measurements, instrument.declaration)
    if event is None:
        return []
    kept = list(text)
    if event.certificate is not None:
        explained = event.certificate.explain().splitlines()
        kept = [each for each in kept if each not in explained and not each.startswith("- ") and each[-1:] != ":"]
        said = phrases.verdict(event.certificate).rstrip(":")
        kept = kept if any(said in each for each in kept) else [said, *kept]
    return kept


def _when(instrument: InstrumentRun, event: Measurement) -> str:
    said = [phrases.when(event), phrases.on_samples(event, "samples")]
    if event.certificate is None and event.status in (Status.CONVERGED, Status.EXACT):  # a bound has no eigenpairs
        said.append(event.status.value)
    if event is not instrument.measurements[-1]:
        said.append(f"The measurement at step {instrument.measurements[-1].step:,} has no value.")
    return " ".join(part for part in said if part)


def _history(event: Measurement, heads: Sequence[Quantity]) -> tuple[str, ...]:
    known = ((quantity, event.estimates.get(quantity.name)) for quantity in heads)
    values = (phrases.shown(q, e) if e is not None and phrases.usable(e) else "" for q, e in known)
    return (f"{event.step:,}", f"{event.epoch + 1:,}", *values)


def _missing(instrument: InstrumentRun) -> Iterator[Missing]:
    title, events = instrument.declaration.title, instrument.measurements
    if not events:
        yield Missing(title, "all values", phrases.why_nothing(events))
        return
    failed: dict[str, list[int]] = {}
    for event in events:
        if not event.status.ok:
            failed.setdefault(" ".join(event.notes) or event.status.value, []).append(event.step)
    for reason, steps in failed.items():
        some = ", ".join(f"{step:,}" for step in steps[:MOST_STEPS]) + (", ..." if len(steps) > MOST_STEPS else "")
        yield Missing(title, f"the measurement{'s' if len(steps) > 1 else ''} at step {some}", reason)
    last = events[-1]
    unresolved: dict[str, list[str]] = {}
    for name, estimate in last.estimates.items():
        if not phrases.usable(estimate):
            reason = "The value is not finite." if estimate.status.ok else estimate.status.value
            unresolved.setdefault(reason, []).append(name.replace("_", " "))
    for reason, names in unresolved.items():
        yield Missing(title, f"{', '.join(names)} at step {last.step:,}", reason)
    marked = [quantity for quantity in instrument.declaration.quantities if quantity.headline]
    absent = [each.name.replace("_", " ") for each in marked if last.status.ok and each.name not in last.estimates]
    if absent:
        yield Missing(title, f"{', '.join(absent)} at step {last.step:,}", " ".join(last.notes) or NO_REASON)
    found = last.certificate
    if found is not None and not found.valid:
        yield Missing(title, "the bound", " ".join(found.reasons) or NO_REASON)
