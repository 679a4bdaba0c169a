"""The shape of a spectrum: decades, knee, slope of the logarithm, and the dimensions that need no scale.

A spectrum is called sloppy when, after a sharp first drop, its eigenvalues are spread evenly in the logarithm over many
decades (Waterfall et al., PRL 97, 2006; Transtrum et al., J. Chem. Phys. 143, 2015; for the inputs of networks Yang,
Mao and Chaudhari, ICML 2022). No source fixes a threshold or a fit, so the one used here is spelt out below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.records import Estimate, Spectrum, Status

BEND = 0.1
"""Share of the decades spanned, and number of decades, by which a bend must leave the chord to count. The upper edge of
a Marchenko-Pastur spectrum, which is no knee, was seen to leave it by 5 % (100 features and more) or by 0.02 decades
(10 features); the knees of handwritten digits and photographs by 14 to 35 %."""

FIT_POINTS = 3
"""Fewest eigenvalues for a slope: a line through two always fits."""

FLAT = 1e-9
"""Decades below which a spectrum is flat up to rounding and R^2 has nothing to explain."""

NEAR_FLOOR = 10.0
"""A spectrum whose smallest resolved eigenvalue is within this factor of the floor, with others below, goes on there.
Where columns are exact combinations of others, the last eigenvalue is decades above the floor."""


@dataclass(frozen=True)
class Sloppiness:
    """The shape of ``log10 lambda_i`` against the index i = 0, 1, ... of the resolved eigenvalues.

    Attributes:
        floor: Eigenvalues at or below it are rounding noise and counted nowhere.
        resolved: Number r of eigenvalues above the floor.
        decades: ``log10(lambda_0 / lambda_{r-1})``; NaN without a resolved eigenvalue.
        at_least: ``decades`` is a lower bound: eigenvalues are missing, or the spectrum runs into the floor.
        knee: Number of eigenvalues in the sharp first drop, which is the index of the first one behind it; None when
            there is no such drop.
        shoulder: Index of the last eigenvalue before a final fall; None when there is no such fall.
        slope: Least-squares change of log10 per index from the knee to the shoulder; negative; NaN for fewer than 3.
        slope_times_rank: ``slope * r``, the decades that the line would cross over all resolved eigenvalues. Unlike the
            slope per index, it compares spectra of matrices of different sizes.
        r_squared: Share of the variance that the line explains. Sorted values fit a line well whatever they are (a
            flat spectrum seen through sampling noise reaches 0.99), so a low value speaks against an even spread more
            than a high one speaks for it. NaN where there is no slope, or nothing to explain.
        participation_ratio: ``(sum lambda)^2 / sum lambda^2``; NaN where eigenvalues are missing or negative.
        truncated: Eigenvalues above the floor are missing.
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
    """Decades, knee, log-slope and participation ratio of the positive eigenvalues above the floor.

    The numbers are the same for inputs, Fisher matrix, Gauss-Newton part and Jacobian, so that they can be compared.

    Real spectra fall fast at both ends: a few directions carry most of the variance, and the last ones belong to
    features that are almost dependent. A line through everything behind the knee would be tilted by the few
    values at the far end, and so would the chord under which the knee is sought. Hence three pieces:

    * shoulder: the point furthest above the chord from the knee to the last resolved eigenvalue;
    * knee: the point furthest below the chord from the first eigenvalue to the shoulder;
    * both are repeated until they stay, starting without either; a bend counts only if it leaves its chord by a tenth
      of the decades which the chord spans and by 0.1 decades;
    * slope and R^2 by ordinary least squares over knee to shoulder, both included.

    ``decades`` is over all resolved eigenvalues, the final fall included. What of the fit was left out can be read from
    ``knee`` and ``shoulder``. Sampling alone spreads a flat spectrum over
    ``2 log10((1 + sqrt(d/n)) / (1 - sqrt(d/n)))`` decades (Marchenko and Pastur 1967).

    >>> values = torch.tensor([100.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    >>> shape = sloppiness(Spectrum(values, 4, 9, "covariance", 1e-14, Status.EXACT, torch.zeros(4), 100.0, 0.001))
    >>> round(shape.decades, 9), shape.knee, round(shape.slope, 9), round(shape.r_squared, 9)
    (5.0, 1, -1.0, 1.0)
    """
    values = _resolved(spectrum)
    resolved, logs = len(values), torch.log10(values)
    knee, shoulder = _bends(logs) if resolved else (None, None)
    slope, r_squared = _line(logs[knee or 0 : resolved if shoulder is None else shoulder + 1])
    return Sloppiness(
        floor=spectrum.floor,
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
    """Whether eigenvalues below the floor are likely, and not zeros of exactly dependent rows or columns."""
    possible = len(spectrum.eigenvalues) if spectrum.rank_bound is None else spectrum.rank_bound
    return 0 < len(resolved) < possible and float(resolved[-1]) < NEAR_FLOOR * spectrum.floor


def participation_ratio(spectrum: Spectrum) -> Estimate:
    """``(sum lambda)^2 / sum lambda^2``: 1 for a single direction, r for r equal ones.

    Needs all eigenvalues of a positive semidefinite matrix, else UNAVAILABLE.

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
    """``exp(-sum p log p)`` with ``p = lambda / sum lambda``.

    The effective rank of Roy and Vetterli (EUSIPCO 2007) takes singular values; this is that of a covariance, whose
    eigenvalues are their squares. Needs all eigenvalues of a positive semidefinite matrix, else UNAVAILABLE.
    """
    fractions = _fractions(spectrum)
    return _unavailable() if fractions is None else Estimate(math.exp(float(torch.special.entr(fractions).sum())))


def effective_rank(spectrum: Spectrum) -> Estimate:
    """Trace over largest eigenvalue; an estimated trace hands on its errors.

    UNAVAILABLE when the trace is unknown or the largest eigenvalue is not above the floor.
    """
    trace, largest = _trace(spectrum), spectrum.largest
    if trace is None or not largest > spectrum.floor:
        return _unavailable()
    errors = trace.standard_error / largest, trace.truncation_error / largest
    return Estimate(trace.value / largest, *errors, status=trace.status, lower_bound=trace.lower_bound)


def shape_estimates(spectrum: Spectrum) -> dict[str, Estimate]:
    """The named quantities of a spectrum's shape.

    Returns:
        ``decades`` (a lower bound where eigenvalues are missing or the spectrum runs into the floor), ``slope``,
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
        ``largest``, ``num_features`` (columns used), ``constant_columns`` (0 where nobody counted them) and
        ``num_samples``.
    """
    return {
        **shape_estimates(spectrum),
        "floor": _number(spectrum.floor),
        "resolved": _number(len(_resolved(spectrum)), lower_bound=spectrum.truncated),
        "effective_rank": effective_rank(spectrum),
        "entropy_rank": entropy_rank(spectrum),
        "trace": _trace(spectrum) or _unavailable(),
        "largest": _number(spectrum.largest),
        "num_features": _number(spectrum.dim),
        "constant_columns": _number(float(spectrum.detail.get("constant_columns", 0))),
        "num_samples": _number(spectrum.num_samples),
    }


def _bends(logs: Tensor) -> tuple[int | None, int | None]:
    """Knee and shoulder, each sought beside a chord that ends at the other."""
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
    """Index of the point furthest below the chord between the ends; None when it leaves the chord too little.

    Distances from one chord are proportional to vertical ones, whatever the scales of the axes.
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
    """Eigenvalues above the floor over their sum; None when some are missing, or negative beyond rounding."""
    values = _resolved(spectrum)
    if spectrum.truncated or not len(values) or spectrum.smallest < -spectrum.floor:
        return None
    # Over the largest first: the sum of huge eigenvalues may overflow, the square of tiny ones vanish.
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
