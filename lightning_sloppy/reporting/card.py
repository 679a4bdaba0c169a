"""The card of a run: five lines that answer the first five questions, and a warning if its numbers need care.

It is a pure function of a :class:`Run`, so the closing summary, TensorBoard, the report and Python show the same card.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.display import at_most
from lightning_sloppy.measures.stopping import Condition, Rule, Settling, settling
from lightning_sloppy.records import Estimate, Measurement, Status
from lightning_sloppy.reporting.network_dimension import (
    MATRICES,
    last_of,
    latest_with,
    network_dimension,
    network_instrument,
)
from lightning_sloppy.reporting.phrases import behind_colon, clause, number, short_reason, usable, value, with_error
from lightning_sloppy.runs.run import InstrumentRun, Run

HEADINGS = ("Data", "Network", "Settled", "Guarantee", "Cost")

RULE = Rule(patience=5, rel_tol=0.05, growth=2.0)
"""Defaults of EffectiveDimensionEarlyStopping: the card says "settled" where that would."""

TOLERANCE = f"{100 * RULE.rel_tol:g} %"

SHORT_WINDOW = 1 / 3
"""Window for a training with fewer epochs than the patience: this part of it."""

FEWEST_IN_SHORT_WINDOW = 4

HALF_DIFFERS = 0.2
"""If half of the samples give a value that differs by more than this fraction, there are too few samples."""

NEAR_LIMIT = 500.0
"""From half of its maximum on, the effective dimension of a matrix is far below its number of directions."""

LARGE_ERROR = 0.1
"""Relative error of the dimension that deserves a warning."""


@dataclass(frozen=True)
class Card:
    """Five answers, each with number, unit and error.

    Attributes:
        lines: Heading and text of each line; where something was not measured, the text says why.
        warning: What makes the numbers unreliable, or "".
    """

    lines: tuple[tuple[str, str], ...]
    warning: str = ""

    def text(self, width: int = 100) -> str:
        """The card as plain text.

        Args:
            width: Columns at which lines are wrapped.
        """
        rows = [*self.lines, *([("Warning", self.warning)] if self.warning else [])]
        return "\n".join(line for heading, text in rows for line in _wrapped(heading, text, width))


def card(run: Run) -> Card:
    """The five answers of a run: directions of the data, of the network, settled or not, guarantee, cost.

    Args:
        run: The record of a fit that is running or has ended.
    """
    texts = (_data(run), _network(run), _settled(run), _guarantee(run), _cost(run))
    found = doubts(run)
    warning = "" if not found else found[0] if len(found) == 1 else f"{found[0]} ({len(found) - 1} more below)"
    return Card(tuple(zip(HEADINGS, texts, strict=True)), warning)


def final_numbers(run: Run) -> dict[str, float]:
    """The numbers of the card by name, for tables that compare runs; only those that were measured.

    Args:
        run: The record of a fit.
    """
    data, network = latest_with(run.of_kind("input"), "participation_ratio"), network_instrument(run)
    final, live = run.of_kind("certificate"), run.of_kind("bound")
    certified = _certificate(final, live)
    state = settled(run)
    found: dict[str, float | None] = {
        "data_directions": None if data is None else value(data, "participation_ratio"),
        "effective_dimension": _value(latest_with(network, "effective_dimension"), "effective_dimension"),
        "settled_since_epoch": None if state is None else state[0].since,
        "guaranteed_error": None if certified is None or not certified.valid else certified.value,
        "guess_error": None if certified is None else certified.guess_error,
        "hold_out_bound": _value(latest_with(live, "hold_out"), "hold_out"),
        "overhead": run.facts.overhead,
    }
    return {name: each for name, each in found.items() if each is not None and math.isfinite(each)}


def doubts(run: Run) -> list[str]:
    """Sentences about what makes the numbers of a run unreliable, the most important first."""
    found = [sentence for each in run.instruments.values() if (sentence := _failures(each))]
    found += [
        f"{each.declaration.title} at step {last.step:,}: {last.status.value}"
        for each in run.instruments.values()
        if (last := last_of(each)) is not None
        and last.status in (Status.NON_FINITE, Status.OUT_OF_MEMORY, Status.ONE_DRAW)
    ]
    return found + _doubts_about_dimension(run) + _doubts_about_data(run)


def settled(run: Run) -> tuple[Settling, InstrumentRun] | None:
    """Whether and since when the network's effective dimension has settled, and its instrument; None without values.

    The times of ``Settling`` count epochs. It is judged as EffectiveDimensionEarlyStopping does by default, over 5
    epochs. In a training of fewer epochs it is judged over the last third, if that has at least four measurements.
    """
    instrument = network_instrument(run)
    points = [] if instrument is None else _points(run, instrument)
    if instrument is None or not points:
        return None
    span, window = points[-1][0] - points[0][0], float(RULE.patience)
    short = SHORT_WINDOW * span
    if span < window and sum(point[0] >= points[-1][0] - short for point in points) >= FEWEST_IN_SHORT_WINDOW:
        window = short
    return settling(RULE.rel_tol, window, points), instrument


def _wrapped(heading: str, text: str, width: int) -> list[str]:
    indent = " " * 11
    whole = text.replace(" +- ", "\N{NO-BREAK SPACE}+-\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(whole, width, initial_indent=f"{heading:<11}", subsequent_indent=indent)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _value(event: Measurement | None, quantity: str) -> float | None:
    return None if event is None else value(event, quantity)


def _why_not(instrument: InstrumentRun | None, kind: str, quantity: str = "") -> str:
    """Why a line has no number."""
    if instrument is None:
        return f"not measured, because this fit has no {kind}"
    last = last_of(instrument)
    if last is None:
        return "not measured yet"
    estimate = last.estimates.get(quantity)
    status = last.status if estimate is None or not last.status.ok else estimate.status
    return f"missing. {short_reason(next(iter(last.notes), status.value))}"


def _data(run: Run) -> str:
    instrument = run.of_kind("input")
    event = latest_with(instrument, "participation_ratio")
    if event is None:
        return _why_not(instrument, "InputSpectrum", "participation_ratio")
    ratio, low, high = (value(event, f"participation_ratio{end}") for end in ("", "_low", "_high"))
    features, samples = value(event, "num_features"), value(event, "num_samples")
    assert ratio is not None
    matrix = "" if event.spectrum is None else f" of the {event.spectrum.matrix.replace('_', '-')} matrix"
    of = "" if features is None else f" of {number(features)}"
    beside = "" if samples is None else f"; n = {number(samples)} samples"
    error = "" if low is None or high is None else "; brackets: 95 % interval"
    dimension = value(event, "effective_dimension")
    also = (
        "" if dimension is None else f"; {number(dimension, digits=3)} by the effective dimension, as for the network"
    )
    return (
        f"{_with_interval(ratio, low, high)}{of} features count as independent directions (participation "
        f"ratio{matrix}{error}{beside}){also}"
    )


def _with_interval(middle: float, low: float | None, high: float | None) -> str:
    """A value with its interval, rounded to the first digit of half of its width.

    >>> _with_interval(19.64, 18.1, 20.9), _with_interval(2.034, 2.01, 2.05), _with_interval(2.034, None, None)
    ('20 [18, 21]', '2.03 [2.01, 2.05]', '2.034')
    """
    half = math.nan if low is None or high is None else (high - low) / 2
    if low is None or high is None or not (half > 0 and math.isfinite(half)):
        return number(middle)
    decimals = max(0, -math.floor(math.log10(half)))
    return f"{middle:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"


def _network(run: Run) -> str:
    instrument = network_instrument(run)
    event = latest_with(instrument, "effective_dimension")
    if instrument is None or event is None:
        return _why_not(instrument, MATRICES["jacobian"][1], "effective_dimension")
    estimate = event.estimates["effective_dimension"]
    known = network_dimension(run)
    of = "" if known is None else f" of {number(known[1])}"
    samples = value(event, "gauss_newton_samples") or value(event, "num_samples") or event.num_samples
    half = value(event, "effective_dimension_half_samples")
    also = "" if half is None else f"; on {number(float(int(samples) // 2))} of them {number(half)}"
    late = "" if event is last_of(instrument) else f"; at step {event.step:,}, because later values are missing"
    other = "" if instrument.kind == "jacobian" else f"; {_jacobian_is_missing(run)}"
    return (
        f"{with_error(estimate)}{of} parameter directions are used (effective dimension of the "
        f"{MATRICES[instrument.kind][0]} on {number(float(samples))} samples{also}{late}{other})"
    )


def _jacobian_is_missing(run: Run) -> str:
    jacobian = run.of_kind("jacobian")
    if jacobian is None:
        return "there is no JacobianSpectrum"
    return f"that of the Jacobian is {clause(_why_not(jacobian, '', 'effective_dimension'))}"


def _points(run: Run, instrument: InstrumentRun) -> list[list[float]]:
    """Epochs done, value, standard error and trace of each measurement of the dimension."""
    events = instrument.measurements
    if not events:
        return []
    last = events[-1]
    steps = run.facts.epoch_steps or (last.step + 1) / (last.epoch + 1)
    found: list[list[float]] = []
    for event in events:
        spectrum = event.companions.get("gauss_newton", event.spectrum)
        estimate = event.estimates.get("effective_dimension")
        if estimate is None or not usable(estimate):
            continue
        trace = math.nan if spectrum is None or spectrum.trace is None else spectrum.trace.value
        # The first measurement is before its step, all others are behind it.
        done = (event.step if event is events[0] else event.step + 1) / steps
        found = [point for point in found if point[0] < done]
        found.append([done, estimate.value, estimate.standard_error, trace])
    return found


def _settled(run: Run) -> str:
    found = settled(run)
    if found is None:
        return "undetermined: no effective dimension of the network was measured"
    state, instrument = found
    name = f"effective dimension, {MATRICES[instrument.kind][0]}"
    window = f"{number(state.window, digits=3)} epoch{'' if state.window == 1 else 's'}"
    if state.condition is None:
        return (
            f"since epoch {number(state.since)} of {number(state.now)}: within {window} it changes by at most "
            f"{TOLERANCE} ({name})"
        )
    if state.condition is Condition.COLLECTING:
        few = f"only one measurement lies within the last {window}"
        if state.now < RULE.patience:
            done = number(state.now, digits=2)
            few = f"judging it takes {window}, and {done} {'is' if done == '1' else 'are'} done"
        return f"undetermined: {few} ({name})"
    if state.condition is Condition.UNDETERMINED:
        return f"undetermined: the error of the value exceeds the tolerance of {TOLERANCE} ({name})"
    direction = "changing"
    if abs(state.last - state.first) > RULE.rel_tol * abs(state.first):
        direction = "growing" if state.last > state.first else "falling"
    return (
        f"not yet, it is still {direction}: {number(state.first)} became {number(state.last)} within {window}; a "
        f"change of at most {TOLERANCE} counts as settled ({name})"
    )


def _guarantee(run: Run) -> str:
    final, live = run.of_kind("certificate"), run.of_kind("bound")
    found, beside = _certificate(final, live), _hold_out(live)
    if found is None:
        why = clause(_why_not(live or final, "PACBayesBound or FinalCertificate"))
        return f"{why}{beside}"
    is_final = any(found is event.certificate for event in (() if final is None else final.measurements))
    what = "final PAC-Bayes certificate" if is_final else "PAC-Bayes bound"
    if not found.valid:
        reason = behind_colon(clause(short_reason(found.reasons[0] if found.reasons else "no reason is known")))
        more = f" (and {len(found.reasons) - 1} more reasons)" if len(found.reasons) > 1 else ""
        return f"there is no {what}: {reason}{more}{beside}"
    guess = found.guess_error
    guessing = f"; guessing has {guess:.4f}" if math.isfinite(guess) else ""
    pair = "for a pair of networks drawn around the model"
    if found.vacuous:
        return f"nothing {pair}: the {what} is 1, and no error rate is larger{guessing}{beside}"
    verdict = "" if not guessing else "no better than guessing " if found.value >= guess else "better than guessing "
    return (
        f"{verdict}{pair}: true error at most {at_most(found.value)} with probability {1 - found.delta:.4g} "
        f"({what}{guessing}){beside}"
    )


def _certificate(final: InstrumentRun | None, live: InstrumentRun | None) -> Certificate | None:
    """The final certificate, or else the latest bound; one that holds, if there is any.

    An earlier bound is no answer: it is for the weights of its step.
    """
    events = [reversed(each.measurements) for each in (final, live) if each is not None]
    known = [next((event.certificate for event in each if event.certificate is not None), None) for each in events]
    found = [certificate for certificate in known if certificate is not None]
    return next((each for each in found if each.valid), found[0] if found else None)


def _hold_out(live: InstrumentRun | None) -> str:
    event = latest_with(live, "hold_out")
    found = None if event is None else value(event, "hold_out")
    if event is None or found is None:
        return ""
    samples, known = value(event, "hold_out_samples"), event.certificate
    sure = "" if known is None else f" with probability {1 - known.delta:.4g}"
    some = "" if samples is None else f"{number(samples)} "
    return f"; for the trained model itself: at most {at_most(found)}{sure}, from {some}samples it never saw"


def _cost(run: Run) -> str:
    facts = run.facts
    if facts.overhead is None:
        return "not known yet"
    limit = "there is no limit"
    if facts.max_overhead is not None:
        free = facts.grace_seconds or 0.0
        limit = f"after the first {free:g} s, max_overhead = {facts.max_overhead:g} limits it"
        if facts.measuring_seconds <= free:
            limit = (
                f"the first {free:g} s are not limited (grace_seconds), then measuring may take max_overhead = "
                f"{facts.max_overhead:g} of the training time"
            )
    return (
        f"{facts.measuring_seconds:.1f} s of measuring beside {facts.training_seconds:.1f} s of training, a ratio of "
        f"{number(facts.overhead, digits=2)}; {limit}"
    )


def _failures(instrument: InstrumentRun) -> str:
    events = instrument.measurements
    failed = [event for event in events if event.status is Status.FAILED]
    if not failed:
        return ""
    reason = next((note for event in failed for note in event.notes), "no reason is known")
    count = f"{len(failed)} of {len(events)} measurements" if len(events) > 1 else "the measurement"
    return (
        f"{instrument.declaration.title}: {count} failed, so values are missing: {behind_colon(short_reason(reason))}"
    )


def _doubts_about_dimension(run: Run) -> list[str]:
    instrument = network_instrument(run)
    event = latest_with(instrument, "effective_dimension")
    if instrument is None or event is None:
        return []
    name, found = MATRICES[instrument.kind][0], []
    last = last_of(instrument)
    unresolved = (
        last is not None and last.estimates.get("effective_dimension", Estimate(0.0)).status is Status.UNRESOLVED
    )
    if unresolved:
        found.append(f"The effective dimension ({name}) is missing at the end. {Status.UNRESOLVED.value}")
    estimate = event.estimates["effective_dimension"]
    half = value(event, "effective_dimension_half_samples")
    if half is not None and abs(estimate.value - half) > HALF_DIFFERS * abs(estimate.value):
        found.append(
            f"The effective dimension ({name}) is {number(estimate.value)}, but {number(half)} on half of the samples: "
            "it is limited by their number; increase num_samples."
        )
    if estimate.total_error > LARGE_ERROR * abs(estimate.value):
        found.append(
            f"The effective dimension ({name}) is {with_error(estimate)}; increase probes for a smaller error."
        )
    if estimate.value > NEAR_LIMIT:
        found.append(f"The effective dimension ({name}) is near its maximum of 1,000; use n90, which has none.")
    return found


def _doubts_about_data(run: Run) -> list[str]:
    event = latest_with(run.of_kind("input"), "participation_ratio")
    if event is None or value(event, "participation_ratio_low") is not None:
        return []
    features, samples = value(event, "num_features"), value(event, "num_samples")
    if features is None or samples is None or samples >= 10 * features:
        return []
    return [
        f"The inputs have {number(samples)} samples for {number(features)} features: with fewer than ten for each, "
        "sampling noise changes their spectrum."
    ]
