"""The shape of a spectrum: decades, knee, slope of the logarithm, and the dimensions that need no scale.

A spectrum is called sloppy if, after a steep first drop, its eigenvalues are spread evenly in the logarithm over many
decades (Waterfall et al., PRL 97, 2006; Transtrum et al., J. Chem. Phys. 143, 2015; for the inputs of networks Yang,
Mao and Chaudhari, ICML 2022). No source gives a threshold or a fit. :func:`sloppiness` describes the ones used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.records import Estimate, Spectrum, Status

BEND = 0.1
"""A bend counts if its distance from the chord is at least this fraction of the decades spanned, and this many decades.
The upper edge of a Marchenko-Pastur spectrum, which is not a knee, was 5 % away (100 features and more) or 0.02 decades
(10 features). The knees of handwritten digits and photographs were 14 to 35 % away."""

FIT_POINTS = 3
"""Smallest number of eigenvalues for a slope. A line through two always fits."""

FLAT = 1e-9
"""A spectrum that spans fewer decades is flat up to rounding, and R^2 is not defined."""

NEAR_FLOOR = 10.0
"""If the smallest resolved eigenvalue is within this factor of the floor and others are below, the spectrum is taken
to continue below the floor. If columns are exact combinations of others, it is decades above the floor."""


@dataclass(frozen=True)
class Sloppiness:
    """The shape of ``log10 lambda_i`` against the index i = 0, 1, ... of the resolved eigenvalues.

    Attributes:
        floor: Rounding floor, or with missing values the larger noise floor (:attr:`Spectrum.noise_floor`). Eigenvalues
            at or below it are errors and are ignored.
        resolved: Number r of eigenvalues above the floor.
        decades: ``log10(lambda_0 / lambda_{r-1})``. NaN without a resolved eigenvalue.
        at_least: Whether ``decades`` is a lower bound: eigenvalues are missing, or the spectrum reaches the floor.
        knee: Number of eigenvalues in the steep first drop, which is the index of the first eigenvalue after it. None
            if there is no such drop.
        shoulder: Index of the last eigenvalue before a final drop. None if there is no such drop.
        slope: Least-squares change of log10 per index from the knee to the shoulder, negative. NaN for fewer than 3
            eigenvalues.
        slope_times_rank: ``slope * r``, the decades that the line would cross over all resolved eigenvalues. Unlike the
            slope per index, it can be compared between matrices of different sizes.
        r_squared: Fraction of the variance that the line explains. Any sorted values fit a line well (a flat spectrum
            with sampling noise reaches 0.99), so a low value is evidence against an even spread, but a high value is
            weak evidence for it. NaN if there is no slope, or no variance.
        participation_ratio: ``(sum lambda)^2 / sum lambda^2``. NaN if eigenvalues are missing or negative.
        truncated: Whether eigenvalues above the floor are missing.
    """

    floor: float
    resolved: int
    decades: float
    at_least: bool
    knee: int | None
    shoulder: int | None
    slope: float
    slope_times_rank: float
    r_squared: float
    participation_ratio: float
    truncated: bool


def sloppiness(spectrum: Spectrum) -> Sloppiness:
    """Compute decades, knee, log-slope and participation ratio of the positive eigenvalues above the floor.

    The definitions are the same for inputs, Fisher matrix, Gauss-Newton part and Jacobian, so the numbers can be
    compared.

    Measured spectra decrease fast at both ends: a few directions have most of the variance, and the last eigenvalues
    belong to features that are almost linearly dependent. A line through all eigenvalues after the knee would be tilted
    by the few smallest values, and so would the chord from which the knee is measured. Therefore the spectrum is split:

    * shoulder: the point furthest above the chord from the knee to the last resolved eigenvalue;
    * knee: the point furthest below the chord from the first eigenvalue to the shoulder;
    * both steps are repeated until neither changes, starting without either. A bend counts only if its distance from
      its chord is at least a tenth of the decades that the chord spans, and at least 0.1 decades;
    * slope and R^2: ordinary least squares from knee to shoulder, both included.

    ``decades`` is over all resolved eigenvalues, including the final drop. ``knee`` and ``shoulder`` show what the fit
    leaves out. Sampling alone spreads a flat spectrum over ``2 log10((1 + sqrt(d/n)) / (1 - sqrt(d/n)))`` decades
    (Marchenko and Pastur 1967).

    >>> values = torch.tensor([100.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    >>> shape = sloppiness(Spectrum(values, 4, 9, "covariance", 1e-14, Status.EXACT, torch.zeros(4), 100.0, 0.001))
    >>> round(shape.decades, 9), shape.knee, round(shape.slope, 9), round(shape.r_squared, 9)
    (5.0, 1, -1.0, 1.0)
    """
    values = _resolved(spectrum)
    values = values[values > spectrum.noise_floor]
    resolved, logs = len(values), torch.log10(values)
    knee, shoulder = _bends(logs) if resolved else (None, None)
    slope, r_squared = _line(logs[knee or 0 : resolved if shoulder is None else shoulder + 1])
    return Sloppiness(
        floor=max(spectrum.floor, spectrum.noise_floor),
        resolved=resolved,
        decades=float(logs[0] - logs[-1]) if resolved else math.nan,
        at_least=spectrum.truncated or _runs_into_the_floor(spectrum, values),
        knee=knee,
        shoulder=shoulder,
        slope=slope,
        slope_times_rank=slope * resolved,
        r_squared=r_squared,
        participation_ratio=participation_ratio(spectrum).value,
        truncated=spectrum.truncated,
    )


def _runs_into_the_floor(spectrum: Spectrum, resolved: Tensor) -> bool:
    """Whether nonzero eigenvalues below the floor are likely, other than zeros of exactly dependent rows or columns."""
    possible = len(spectrum.eigenvalues) if spectrum.rank_bound is None else spectrum.rank_bound
    if not 0 < len(resolved) < possible:
        return False
    # Errors of missing values hide all below them, also where the next eigenvalue is far above.
    return spectrum.noise_floor > spectrum.floor or float(resolved[-1]) < NEAR_FLOOR * spectrum.floor


def participation_ratio(spectrum: Spectrum) -> Estimate:
    """Participation ratio ``(sum lambda)^2 / sum lambda^2``: 1 for a single nonzero eigenvalue, r for r equal ones.

    UNAVAILABLE unless all eigenvalues of a positive semidefinite matrix are known.

    >>> values = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    >>> spectrum = Spectrum(values, 3, 9, "covariance", 1e-15, Status.EXACT, torch.zeros(3), 4.0, 0.0)
    >>> round(participation_ratio(spectrum).value * 17, 9)
    25.0
    >>> round(entropy_rank(spectrum).value, 4), effective_rank(spectrum).value
    (1.6494, 1.25)
    """
    fractions = _fractions(spectrum)
    return _unavailable() if fractions is None else Estimate(1.0 / float(fractions.square().sum()))


def entropy_rank(spectrum: Spectrum) -> Estimate:
    """Entropy rank ``exp(-sum p log p)`` with ``p = lambda / sum lambda``.

    The effective rank of Roy and Vetterli (EUSIPCO 2007) is defined by singular values. Here eigenvalues are used,
    which for a covariance are the squares of singular values. UNAVAILABLE unless all eigenvalues of a positive
    semidefinite matrix are known.
    """
    fractions = _fractions(spectrum)
    return _unavailable() if fractions is None else Estimate(math.exp(float(torch.special.entr(fractions).sum())))


def effective_rank(spectrum: Spectrum) -> Estimate:
    """Effective rank: the trace divided by the largest eigenvalue, with the errors of an estimated trace.

    UNAVAILABLE if the trace is unknown or the largest eigenvalue is not above the floor.
    """
    trace, largest = _trace(spectrum), spectrum.largest
    if trace is None or not largest > spectrum.floor:
        return _unavailable()
    errors = trace.standard_error / largest, trace.truncation_error / largest
    return Estimate(trace.value / largest, *errors, status=trace.status, lower_bound=trace.lower_bound)


def shape_estimates(spectrum: Spectrum) -> dict[str, Estimate]:
    """The named quantities of a spectrum's shape.

    Returns:
        ``decades`` (a lower bound if eigenvalues are missing or the spectrum reaches the floor), ``slope``,
        ``slope_times_rank``, ``slope_r_squared``, ``knee`` (0 for none) and ``participation_ratio``.
    """
    shape = sloppiness(spectrum)
    return {
        "decades": _number(shape.decades, lower_bound=shape.at_least),
        "slope": _number(shape.slope),
        "slope_times_rank": _number(shape.slope_times_rank),
        "slope_r_squared": _number(shape.r_squared),
        "knee": _number(shape.knee or 0),
        "participation_ratio": _number(shape.participation_ratio),
    }


def input_estimates(spectrum: Spectrum) -> dict[str, Estimate]:
    """The named quantities of an input spectrum.

    Returns:
        Those of :func:`shape_estimates`, ``floor``, ``resolved``, ``effective_rank``, ``entropy_rank``, ``trace``,
        ``largest``, ``num_features`` (columns used), ``constant_columns`` (0 if they were not counted) and
        ``num_samples``.
    """
    shape = sloppiness(spectrum)
    return {
        **shape_estimates(spectrum),
        "floor": _number(max(spectrum.floor, spectrum.noise_floor)),
        "resolved": _number(shape.resolved, lower_bound=spectrum.truncated),
        "effective_rank": effective_rank(spectrum),
        "entropy_rank": entropy_rank(spectrum),
        "trace": _trace(spectrum) or _unavailable(),
        "largest": _number(spectrum.largest),
        "num_features": _number(spectrum.dim),
        "constant_columns": _number(float(spectrum.detail.get("constant_columns", 0))),
        "num_samples": _number(spectrum.num_samples),
    }


def _bends(logs: Tensor) -> tuple[int | None, int | None]:
    """Knee and shoulder. Each is measured from a chord that ends at the other."""
    last = len(logs) - 1
    knee: int | None = None
    shoulder: int | None = None
    seen = set()
    while (knee, shoulder) not in seen:
        seen.add((knee, shoulder))
        start = knee or 0
        shoulder = _bend(-logs[start:])
        shoulder = None if shoulder is None else start + shoulder
        knee = _bend(logs[: last + 1 if shoulder is None else shoulder + 1])
    return knee, shoulder


def _bend(logs: Tensor) -> int | None:
    """Index of the point furthest below the chord between the ends; None if it is too close to the chord.

    Vertical distances are used. Distances from one chord are proportional to them, for any scales of the axes.
    """
    if len(logs) < FIT_POINTS:
        return None
    chord = torch.lerp(logs[0], logs[-1], torch.linspace(0, 1, len(logs), dtype=logs.dtype))
    depth, index = torch.max(chord - logs, dim=0)
    return int(index) if float(depth) >= BEND * max(1.0, abs(float(logs[0] - logs[-1]))) else None


def _line(logs: Tensor) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line."""
    if len(logs) < FIT_POINTS:
        return math.nan, math.nan
    index = torch.arange(len(logs), dtype=logs.dtype)
    index, centred = index - index.mean(), logs - logs.mean()
    slope = float(index @ centred / index.square().sum())
    if float(logs[0] - logs[-1]) < FLAT:
        return slope, math.nan
    return slope, 1.0 - float((centred - slope * index).square().sum() / centred.square().sum())


def _resolved(spectrum: Spectrum) -> Tensor:
    values = spectrum.eigenvalues
    return values[values > max(spectrum.floor, 0.0)]


def _fractions(spectrum: Spectrum) -> Tensor | None:
    """Eigenvalues above the floor, divided by their sum; None if some are missing, or negative beyond rounding."""
    values = _resolved(spectrum)
    if spectrum.truncated or not len(values) or spectrum.smallest < -spectrum.floor:
        return None
    # Divided by the largest first, because the sum of huge eigenvalues may overflow and the square of tiny ones vanish.
    scaled = values / values[0]
    return scaled / scaled.sum()


def _trace(spectrum: Spectrum) -> Estimate | None:
    if spectrum.trace is None and not spectrum.truncated:
        return Estimate(float(spectrum.eigenvalues.sum()))
    return spectrum.trace


def _number(value: float, *, lower_bound: bool = False) -> Estimate:
    return Estimate(float(value), lower_bound=lower_bound) if math.isfinite(value) else _unavailable()


def _unavailable() -> Estimate:
    return Estimate(math.nan, status=Status.UNAVAILABLE)
