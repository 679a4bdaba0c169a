"""The closing summary: what was measured, in words and numbers, for somebody who did not watch the curves.

Plain data in, text out: no Trainer, no logger, no colour codes. What is missing is said to be missing, with the reason
that the measurement gave.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.records import Estimate, Measurement, Status

WIDTH = 100

_TITLES = {"input": "Inputs", "hessian": "Hessian", "fisher": "Fisher matrix", "bound": "Bound"}
_TITLES |= {"certificate": "Certificate", "cost": "Cost"}


def summarise(
    measurements: Mapping[str, Sequence[Measurement]],
    *,
    stop: str,
    log_dirs: Sequence[str] = (),
    training_seconds: float | None = None,
) -> str:
    """Return the closing summary of a run, wrapped at 100 columns; only the command to type is never broken.

    Args:
        measurements: For each matrix ("input", "hessian", "fisher", "bound") its measurements in the order of time. A
            matrix without an entry was not asked for and is left out; an empty sequence means that nothing came.
        stop: Why and when the training stopped, as a sentence.
        log_dirs: Folders that hold event files.
        training_seconds: Wall-clock seconds of the whole fit, for the share that measuring took.
    """
    parts = {"input": _input, "hessian": _hessian, "fisher": _fisher, "bound": _bound, "certificate": _certificate}
    sections = [_section(_TITLES[m], parts[m](measurements[m])) for m in parts if m in measurements]
    sections.append(_section("Stop", [stop]))
    sections.append(_section(_TITLES["cost"], [_cost(measurements, training_seconds)]))
    return "\n".join(["Summary", "=======", *sections, _event_files(log_dirs)])


def _input(events: Sequence[Measurement]) -> list[str]:
    event = _last(events)
    if event is None:
        return [_why_nothing(events)]
    sentences = [_on_samples(event, "training samples")]
    decades, slope, fit = (_value(event, name) for name in ("decades", "slope", "slope_r_squared"))
    if decades is not None:
        at_least = "at least " if event.estimates["decades"].lower_bound else ""
        sentences.append(f"The correlation matrix spans {at_least}{number(decades)} decades.")
    if slope is not None:
        quality = "" if fit is None else f" (R^2 = {fit:.2f})"
        sentences.append(f"Behind the first drop its eigenvalues change by {number(slope)} decades per index{quality}.")
    dimension, features = _value(event, "participation_ratio"), _value(event, "num_features")
    if dimension is not None:
        of = "" if features is None else f" of {number(features)} features"
        sentences.append(f"Effective dimension of the inputs (participation ratio): {number(dimension)}{of}.")
    resolved = _value(event, "resolved")
    samples = _value(event, "num_samples")
    if resolved is not None and features is not None and samples is not None and resolved < min(features, samples - 1):
        sentences.append(f"{number(features - resolved)} directions are exact combinations of the others.")
    constant = _value(event, "constant_columns")
    if constant:
        sentences.append(f"{number(constant)} constant columns were left out.")
    return [" ".join(sentences), *event.notes]


def _hessian(events: Sequence[Measurement]) -> list[str]:
    event = _last(events)
    if event is None:
        return [_why_nothing(events)]
    sentences = [_when(event), _on_samples(event, "probe samples")]
    sentences += _named(event, {"largest": "Largest eigenvalue", "smallest": "smallest", "trace": "trace"})
    smallest, residual = _value(event, "smallest"), _value(event, "smallest_residual")
    if smallest is not None and residual is not None and residual > abs(smallest) / 10:
        sentences.append(f"The smallest has not converged (residual {number(residual)}).")
    sentences += _dimension(event, "Effective dimension of the Gauss-Newton part")
    return [" ".join(sentences), *event.notes]


def _fisher(events: Sequence[Measurement]) -> list[str]:
    event = _last(events)
    if event is None:
        return [_why_nothing(events)]
    sentences = [_when(event), _on_samples(event, "probe samples")]
    sentences += _named(event, {"largest": "Largest eigenvalue", "trace": "trace"})
    sentences += _dimension(event, "Effective dimension")
    half = _value(event, "effective_dimension_half_samples")
    if half is not None:
        sentences.append(f"On the first half of the samples it is {number(half)}.")
    return [" ".join(sentences), *event.notes]


def _bound(events: Sequence[Measurement]) -> list[str]:
    event = _last(events)
    if event is None:
        return [_why_nothing(events)]
    certificate = event.certificate
    paragraphs = [f"{_when(event)} {_verdict(certificate)}"]
    if certificate is not None and certificate.valid:
        paragraphs.append("It holds under these conditions:")
        paragraphs += [f"- {condition}" for condition in certificate.conditions]
        if certificate.prior:
            paragraphs.append(f"- The user's statement about the prior: {certificate.prior}")
        paragraphs += [*certificate.remarks, *_lowest(events, certificate)]
    elif certificate is not None:
        paragraphs += [f"- {reason}" for reason in certificate.reasons]
    hold_out, error = _value(event, "hold_out"), _value(event, "hold_out_error")
    if hold_out is not None:
        on = "" if error is None else f" (error on them: {error:.4f})"
        paragraphs.append(f"Hold-out bound for the model itself, from samples it never saw: {hold_out:.4f}{on}.")
    return [*paragraphs, *event.notes]


def _certificate(events: Sequence[Measurement]) -> list[str]:
    event = _last(events)
    if event is None or event.certificate is None:
        return [_why_nothing(events)]
    single = _value(event, "single")
    deployable = [] if single is None else [f"For the first network alone, to be deployed: {single:.4f}."]
    return [*event.certificate.explain().splitlines(), *deployable, *event.notes]


def _verdict(certificate: Certificate | None) -> str:
    if certificate is None:
        return "There is no PAC-Bayes bound."
    if not certificate.valid:
        return "There is no PAC-Bayes bound, because:"
    kind = "hold-out" if certificate.kind == "hold_out" else "PAC-Bayes"
    if certificate.value >= 1.0:
        verdict = f"The {kind} bound is vacuous (1.0): it says nothing yet."
    else:
        verdict = f"The {kind} bound on the true error is {certificate.value:.4f}."
    who = {
        "pair_of_draws": "the pair of networks drawn around the model, not the model itself",
        "fixed_network": "the model itself",
    }.get(certificate.certified_predictor, certificate.certified_predictor)
    rests = [f"error {certificate.empirical_risk:.4f} on {certificate.risk_samples:,} samples"]
    if math.isfinite(certificate.log_ratio):
        rests.append(f"complexity {number(certificate.log_ratio)} nats for n = {certificate.n:,}")
    return (
        f"{verdict} It certifies {who}, with probability at least {1 - certificate.delta:g} over the draw of the "
        f"examples and of the weights, and rests on: {', '.join(rests)}."
    )


def _lowest(events: Sequence[Measurement], latest: Certificate) -> list[str]:
    """Name the lowest bound of the run when it is an earlier one: delta is shared, so all of them hold together."""
    valid = [(e.certificate.value, e.step) for e in events if e.certificate is not None and e.certificate.valid]
    value, step = min(valid)
    if value >= latest.value:
        return []
    return [f"The lowest of the run was {value:.4f} at step {step:,}; it holds too, for the pair drawn there."]


def _dimension(event: Measurement, name: str) -> list[str]:
    """Say the effective dimension with its errors, its z and the number of parameters, or why there is none."""
    estimate = event.estimates.get("effective_dimension")
    if estimate is None:
        return [f"{name}: missing{'' if event.notes else ', no reason was given'}."]
    if not _usable(estimate):
        return [f"{name}: missing. {estimate.status.value}"]
    z, parameters = _value(event, "z"), _value(event, "num_parameters")
    at = "" if z is None else f" at curvature scale z = {number(z)}"
    of = "" if parameters is None else f" of {number(parameters)} parameters"
    return [f"{name}{at}: {_with_error(estimate)}{of}."]


def _named(event: Measurement, names: Mapping[str, str]) -> list[str]:
    found = []
    for quantity, words in names.items():
        estimate = event.estimates.get(quantity)
        if estimate is not None and _usable(estimate):
            found.append(f"{words} {_with_error(estimate)}")
        else:
            found.append(f"{words} missing")
    return [", ".join(found) + "."]


def _cost(measurements: Mapping[str, Sequence[Measurement]], training_seconds: float | None) -> str:
    spent = {m: sum(event.cost.seconds for event in events) for m, events in measurements.items()}
    total = sum(spent.values())
    each = ", ".join(f"{_TITLES.get(m, m)} {s:.1f} s ({_times(len(measurements[m]))})" for m, s in spent.items())
    share = ""
    if training_seconds is not None and training_seconds > 0:
        share = f", {100 * total / training_seconds:.0f} % of the {training_seconds:.1f} s of the fit"
    sentences = [f"Measuring took {total:.1f} s{share}{': ' + each if each else ''}."]
    gaps = {m: sum(event.status is Status.FAILED for event in events) for m, events in measurements.items()}
    if any(gaps.values()):
        where = ", ".join(f"{_TITLES.get(m, m)} {count:,}" for m, count in gaps.items() if count)
        reasons = (n for events in measurements.values() for e in events if e.status is Status.FAILED for n in e.notes)
        sentences.append(
            f"Failed measurements, seen as gaps: {where}. The first: {next(reasons, 'no reason is known')}"
        )
    return " ".join(sentences)


def _times(count: int) -> str:
    return "1 measurement" if count == 1 else f"{count:,} measurements"


def _event_files(log_dirs: Sequence[str]) -> str:
    if not log_dirs:
        return "Event files\n  None were written: the Trainer has no logger with a folder."
    lines = ["Event files"]
    for folder in log_dirs:
        lines += [*_wrap(f"They are in {folder}. To look at the curves, type:"), ""]
        lines += [f"    tensorboard --logdir {shlex.quote(folder)}", ""]
    return "\n".join(lines).rstrip()


def _last(events: Sequence[Measurement]) -> Measurement | None:
    """The latest measurement that brought something, be it only a bound's reasons."""
    brought = [e for e in events if e.certificate is not None or any(map(_usable, e.estimates.values()))]
    return brought[-1] if brought else None


def _why_nothing(events: Sequence[Measurement]) -> str:
    if not events:
        return "Missing: no measurement took place."
    last = events[-1]
    return " ".join(["Missing.", *(last.notes or (last.status.value,))])


def _when(event: Measurement) -> str:
    again = "" if event.status.ok or event.status is Status.UNAVAILABLE else f" {event.status.value}"
    return f"Step {event.step:,}, epoch {event.epoch}.{again}"


def _on_samples(event: Measurement, kind: str) -> str:
    samples = _value(event, "num_samples") or float(event.num_samples)
    return f"N = {samples:,.0f} {kind}." if samples else ""


def _usable(estimate: Estimate) -> bool:
    return estimate.status.ok and math.isfinite(estimate.value)


def _value(event: Measurement, quantity: str) -> float | None:
    estimate = event.estimates.get(quantity)
    return estimate.value if estimate is not None and _usable(estimate) else None


def _with_error(estimate: Estimate) -> str:
    bound = "at least " if estimate.lower_bound else ""
    error = estimate.total_error
    if not (error > 0 and math.isfinite(error)):
        return f"{bound}{number(estimate.value)}"
    # The value to the digits of its error, and that to two: the rest is noise.
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{bound}{estimate.value:,.{decimals}f} +- {error:,.{decimals}f}"


def number(value: float, *, digits: int = 4) -> str:
    """Write a number with a few significant digits, whole ones in full with thousands separated.

    >>> number(837610.0), number(12.3456), number(0.00018912), number(-5.0)
    ('837,610', '12.35', '0.0001891', '-5')
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e15 and (value == round(value) or abs(value) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _section(title: str, paragraphs: Sequence[str]) -> str:
    return "\n".join([title, *(line for paragraph in paragraphs for line in _wrap(paragraph)), ""])


def _wrap(paragraph: str) -> list[str]:
    indent = "    " if paragraph.startswith("- ") else "  "
    # A value and its error stay on one line: textwrap does not break at a no-break space.
    text = " ".join(paragraph.split()).replace(" +- ", "\N{NO-BREAK SPACE}+-\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=indent)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
