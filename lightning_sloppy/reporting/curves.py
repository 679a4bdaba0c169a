"""What the picture of a run draws, as plain numbers: spectra against rank, dimensions over steps, error rates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.display import at_most
from lightning_sloppy.measures.relative_dimension import THOUSANDTH
from lightning_sloppy.measures.sloppiness import sloppiness
from lightning_sloppy.records import Spectrum
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.histograms import atoms
from lightning_sloppy.runs.run import Run

MATRICES = {
    "input": ("input", "", "Inputs"),
    "jacobian": ("jacobian", "", "Jacobian"),
    "fisher": ("fisher", "", "Fisher"),
    "gauss_newton": ("hessian", "gauss_newton", "Gauss-Newton"),
}
"""For each matrix the kind of its instrument, its name among the companions (empty: the spectrum itself), its title."""

MOST_POINTS = 400
"""Points of a curve. More cannot be told apart in a picture, but take time."""

STRAIGHT = 0.9
"""R^2 from which the fitted line is drawn: below, its slope is not to be quoted."""

_STAGES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
_ACCURACY, _ERROR = {"acc", "accuracy"}, {"err", "error"}
_NEUTRAL = {"epoch", "top1", "rate", "multiclass", "binary"}


ERROR_ORDER = ("train", "validation", "test", "hold_out", "pac_bayes", "guessing")
"""Keys of error rates and bounds, in the order in which they are drawn."""

_TITLES = {"train": "Training", "validation": "Validation", "test": "Test"}


@dataclass(frozen=True)
class RankCurve:
    """Eigenvalues of one matrix, divided by the trace, against their rank.

    Attributes:
        title: Name of the matrix.
        ranks: Ranks, from 1; of a quadrature the number of eigenvalues at or above the value.
        fractions: Eigenvalue / trace, descending, above the floor.
        fit_ranks: Ranks of the line fitted to the logarithms after the knee; empty if the spectrum is not straight.
        fit_fractions: Its values.
        above: How many eigenvalues are at or above a thousandth of the trace; of a quadrature a fraction.
        floor: Rounding floor / trace.
        null_ranks: Ranks of the null; empty without one.
        null_fractions: Eigenvalue / trace of the null.
        shown: How many of the eigenvalues are known, if not all.
        step: Step of the measurement.
    """

    title: str
    ranks: tuple[float, ...]
    fractions: tuple[float, ...]
    fit_ranks: tuple[float, ...] = ()
    fit_fractions: tuple[float, ...] = ()
    above: float = 0.0
    floor: float = 0.0
    null_ranks: tuple[float, ...] = ()
    null_fractions: tuple[float, ...] = ()
    shown: str = ""
    step: int = 0


@dataclass(frozen=True)
class DimensionCurve:
    """An effective dimension over the steps.

    Attributes:
        title: Name of the matrix.
        steps: Steps of the measurements that have a value.
        values: Effective dimensions.
        errors: Standard error plus truncation error of each; zero if it is exact on its samples.
        low: Values at a hundredth of the trace; NaN where there is none.
        high: Values at a ten-thousandth of the trace; NaN where there is none.
    """

    title: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def band(self) -> tuple[list[float], list[float]]:
        """Value minus and plus error at each step."""
        pairs = list(zip(self.values, self.errors, strict=True))
        return [value - error for value, error in pairs], [value + error for value, error in pairs]


@dataclass(frozen=True)
class ErrorRate:
    """One error rate or bound.

    Attributes:
        key: "train", "validation", "test", "hold_out", "pac_bayes" or "guessing".
        title: Name in words.
        value: In [0, 1].
        vacuous: Whether it is a bound that guarantees nothing.
    """

    key: str
    title: str
    value: float
    vacuous: bool = False


def rank_curves(run: Run) -> dict[str, RankCurve]:
    """The latest spectrum of each matrix of ``MATRICES`` that was measured and whose trace is known, by its key."""
    found = {}
    for key, (kind, companion, title) in MATRICES.items():
        instrument = run.of_kind(kind)
        event = None if instrument is None else instrument.latest
        if event is None:
            continue
        spectrum = event.companions.get(companion) if companion else event.spectrum
        if spectrum is None or not spectrum.status.ok:
            continue
        null = None if companion else event.companions.get("null")
        curve = _rank_curve(title, spectrum, null, event.step)
        if curve is not None:
            found[key] = curve
    return found


def dimension_curves(run: Run) -> dict[str, DimensionCurve]:
    """The effective dimension of each matrix over the steps, where it was measured, by the keys of ``MATRICES``."""
    found = {}
    for key, (kind, _, title) in MATRICES.items():
        instrument = run.of_kind(kind)
        points = []
        for event in () if instrument is None else instrument.measurements:
            estimate = event.estimates.get("effective_dimension")
            if event.status.ok and estimate is not None and phrases.usable(estimate) and not estimate.lower_bound:
                ends = (phrases.value(event, f"effective_dimension_{end}") for end in ("coarse", "fine"))
                low, high = (math.nan if end is None else end for end in ends)
                error = estimate.total_error if math.isfinite(estimate.total_error) else 0.0
                points.append((event.step, estimate.value, error, low, high))
        if points:
            steps, values, errors, lows, highs = zip(*points, strict=True)
            found[key] = DimensionCurve(title, steps, values, errors, lows, highs)
    return found


def error_rates(run: Run) -> list[ErrorRate]:
    """Error rates that the module logged, and the bounds, in the order in which they are drawn.

    The training and the validation error are those of the user's metrics, for instance ``train_accuracy``. Without
    one for validation, it is the error on the hold-out samples of the bound.
    """
    rates = logged_error_rates(run.facts.metrics)
    bound, final = (
        None if found is None else found.latest for found in (run.of_kind("bound"), run.of_kind("certificate"))
    )
    holdout = None if bound is None else phrases.value(bound, "hold_out_error")
    if "validation" not in rates and holdout is not None:
        rates["validation"] = holdout
    found = [ErrorRate(key, f"{title} error", rates[key]) for key, title in _TITLES.items() if key in rates]
    limit = None if bound is None else phrases.value(bound, "hold_out")
    if limit is not None:
        found.append(ErrorRate("hold_out", "Hold-out bound", limit, limit >= 1.0))
    guarantee = None if final is None else phrases.value(final, "pair")
    if guarantee is None and bound is not None:
        guarantee = phrases.value(bound, "pac_bayes")
    if guarantee is not None:
        found.append(ErrorRate("pac_bayes", "PAC-Bayes bound", guarantee, guarantee >= 1.0))
    guesses = [m.certificate.guess_error for m in (final, bound) if m is not None and m.certificate is not None]
    guess = next((each for each in guesses if math.isfinite(each)), None)
    if guess is not None:
        found.append(ErrorRate("guessing", "Guessing", guess))
    return found


def logged_error_rates(metrics: Mapping[str, float]) -> dict[str, float]:
    """Error rates of training, validation and test among logged metrics, by their names.

    A name counts if its words are a stage and either accuracy or error: ``val_acc``, ``test/error``. Values outside
    [0, 1] are left out, like names with further words, such as ``val_top5_accuracy`` or ``val_absolute_error``.

    >>> logged_error_rates({"train_acc": 0.75, "val/error": 0.5, "val_absolute_error": 0.1, "test_accuracy": 97.0})
    {'train': 0.25, 'validation': 0.5}
    """
    found: dict[str, tuple[int, float]] = {}
    for name, value in metrics.items():
        words = set(re.findall("[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
        for stage, names in _STAGES.items():
            rest = words - set(names)
            kind = rest - _NEUTRAL
            if len(rest) == len(words) or len(kind) != 1 or not kind <= _ACCURACY | _ERROR or not 0 <= value <= 1:
                continue
            rate = 1.0 - value if kind <= _ACCURACY else value
            if stage not in found or len(words) < found[stage][0]:
                found[stage] = (len(words), rate)
    return {stage: found[stage][1] for stage in _STAGES if stage in found}


def shown(rate: ErrorRate) -> str:
    """An error rate with three decimals; a bound is rounded up, so that it stays one.

    >>> shown(ErrorRate("pac_bayes", "PAC-Bayes bound", 0.8341)), shown(ErrorRate("test", "Test error", 0.8341))
    ('0.835', '0.834')
    """
    return at_most(rate.value, decimals=3) if rate.key in ("hold_out", "pac_bayes") else f"{rate.value:.3f}"


def why_no_guarantee(run: Run) -> str:
    """Why there is no PAC-Bayes bound, in a few words; empty if there is one."""
    if any(rate.key == "pac_bayes" for rate in error_rates(run)):
        return ""
    instrument = run.of_kind("bound")
    event = None if instrument is None else instrument.latest
    if event is None or event.certificate is None:
        return "No PAC-Bayes bound was computed."
    reason = next(iter(event.certificate.reasons), "no reason was given.")
    return f"No PAC-Bayes bound: {phrases.behind_colon(reason)}"


def _rank_curve(title: str, spectrum: Spectrum, null: Spectrum | None, step: int) -> RankCurve | None:
    trace = _trace(spectrum)
    ranks, fractions = _points(spectrum, trace)
    if not len(fractions):
        return None
    above = ranks[fractions >= THOUSANDTH]
    ranks, fractions = _thinned(ranks, fractions)
    without = None if null is None else _thinned(*_points(null, _trace(null)))
    shown = ""
    if spectrum.truncated and spectrum.density is None:
        shown = f"largest {len(spectrum.eigenvalues):,} only"
    fit_ranks, fit_fractions = ((), ()) if spectrum.truncated else _fit(spectrum, trace)
    return RankCurve(
        title,
        tuple(ranks.tolist()),
        tuple(fractions.tolist()),
        fit_ranks,
        fit_fractions,
        above=float(above[-1]) if len(above) else 0.0,
        floor=_floor(spectrum) / trace,
        null_ranks=() if without is None else tuple(without[0].tolist()),
        null_fractions=() if without is None else tuple(without[1].tolist()),
        shown=shown,
        step=step,
    )


def _trace(spectrum: Spectrum) -> float:
    """The trace; NaN if it is not known."""
    if spectrum.trace is not None and phrases.usable(spectrum.trace):
        return spectrum.trace.value
    return math.nan if spectrum.truncated else float(spectrum.eigenvalues.sum())


def _floor(spectrum: Spectrum) -> float:
    """Eigenvalues up to it are errors of rounding or of missing values."""
    return max(spectrum.floor, spectrum.noise_floor, 0.0)


def _points(spectrum: Spectrum, trace: float) -> tuple[Tensor, Tensor]:
    """Ranks and eigenvalues / trace above the floor; empty if the trace is not known."""
    values, weights = atoms(spectrum)
    kept = (values > _floor(spectrum)) & (weights > 0) & torch.isfinite(values)
    if not 0 < trace < math.inf:
        kept &= False
    values, order = values[kept].sort(descending=True)
    return weights[kept][order].cumsum(0), values / trace


def _thinned(ranks: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
    """At most about 400 points, evenly spaced in the rank and in its logarithm, with both ends."""
    count = len(ranks)
    if count <= MOST_POINTS:
        return ranks, fractions
    half = MOST_POINTS // 2
    spaced = torch.logspace(0, math.log10(count), half, dtype=torch.float64), torch.linspace(1, count, half).double()
    chosen = torch.cat(spaced).round().long().clamp(1, count) - 1
    chosen = torch.tensor(sorted(set(chosen.tolist())))
    return ranks[chosen], fractions[chosen]


def _fit(spectrum: Spectrum, trace: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The least-squares line from knee to shoulder, as in :func:`sloppiness`."""
    shape = sloppiness(spectrum)
    if not shape.r_squared >= STRAIGHT:
        return (), ()
    start, end = shape.knee or 0, shape.resolved if shape.shoulder is None else shape.shoulder + 1
    values = spectrum.eigenvalues[spectrum.eigenvalues > _floor(spectrum)]
    logs = torch.log10(values[start:end] / trace)
    middle, height = (start + end - 1) / 2, float(logs.mean())
    index = torch.linspace(start, end - 1, 60, dtype=torch.float64)
    line = 10.0 ** (height + shape.slope * (index - middle))
    return tuple((index + 1).tolist()), tuple(line.tolist())
