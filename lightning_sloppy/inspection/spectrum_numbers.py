"""Numbers of a correlation spectrum with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lightning_sloppy.inputs.half_samples import Halves
from lightning_sloppy.inputs.largest_eigenvalue import correction_factor, equal_runs, equal_to_the_largest
from lightning_sloppy.inputs.nearest_matrix import Repaired
from lightning_sloppy.inputs.noise_edge import noise_edge
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inspection.data_report import Interval, SpectrumReport
from lightning_sloppy.measures.sloppiness import sloppiness
from lightning_sloppy.records import Spectrum, Status

LEVEL = 0.95
"""Probability with which an interval is to hold the number of the population."""

RIDGE_STRENGTH = 1.0
"""Where the ridge degrees of freedom are given: at the mean eigenvalue; directions below it count less than half."""

DOUBT = 0.4
"""Part of the correction for bias, in the logarithm, by which an interval is widened: the correction is an estimate."""

DOUBT_OF_ONE = 0.5
"""The same for a single eigenvalue, of which neighbours take turns in being the largest."""


BARELY = 1.25
"""The largest of independent columns, autocorrelated ones included, was seen to exceed the noise edge by up to this."""


@dataclass(frozen=True)
class Resamples:
    """What intervals are made of.

    Attributes:
        halves: Signed eigenvalues of halves of the rows, (repeats, d).
        drawn: How they were drawn.
        population: Eigenvalues with the bias of sampling taken back, (d,).
        samples: Signed eigenvalues of Gaussian samples of that population, (k, d).
        pairs: Rows that count as independent for the correlation of two columns.
    """

    halves: Floats
    drawn: Halves
    population: Floats
    samples: Floats
    pairs: float


def participation_ratio(values: Floats) -> float:
    """``(sum lambda)^2 / sum lambda^2`` of eigenvalues that are not negative."""
    return float(values.sum() ** 2 / np.square(values).sum())


def entropy_rank(values: Floats) -> float:
    """``exp(-sum p log p)`` with ``p = lambda / sum lambda``."""
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def ridge_degrees_of_freedom(values: Floats, strength: float = RIDGE_STRENGTH) -> float:
    """``sum lambda / (lambda + strength)``."""
    return float((values / (values + strength)).sum())


def hidden_below(values: Floats, floor: float, noise: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """What the eigenvalues may be if those below a floor are hidden by an error.

    An error that makes eigenvalues negative down to ``-floor`` hides how the sum of the small ones is spread: they may
    be gathered in as few as possible of its height, or spread evenly. It also adds to that sum, because the negative
    eigenvalues were set to zero: the sum may be smaller by theirs.

    Args:
        values: Descending, (d,).
        floor: Magnitude up to which an eigenvalue is noise.
        noise: Sum of the magnitudes of the negative eigenvalues.

    Returns:
        Gathered, even, and with a smaller sum of the small ones. All have the sum of ``values``.

    >>> gathered, even, fewer = hidden_below(np.array([4.0, 0.5, 0.25, 0.125, 0.125]), 0.75, 1.0)
    >>> gathered.tolist(), even.tolist(), fewer.tolist()
    ([4.0, 0.75, 0.25, 0.0, 0.0], [4.0, 0.25, 0.25, 0.25, 0.25], [5.0, 0.0, 0.0, 0.0, 0.0])
    """
    small = values < floor
    if not small.any():
        return values, values, values
    left = float(values[small].sum())
    gathered = np.clip(left - floor * np.arange(int(small.sum())), 0.0, floor)
    part = max(0.0, 1 - noise / left) if left > 0 and not small.all() else 1.0
    fewer = np.where(small, part * values, values)
    return (
        np.concatenate([values[~small], gathered]),
        np.where(small, values[small].mean(), values),
        fewer * (values.sum() / fewer.sum()),
    )


def as_spectrum(values: Floats, rows: int, floor: float, matrix: str = "correlation") -> Spectrum:
    """Eigenvalues of a whole positive semidefinite matrix as the package's record."""
    kept = torch.from_numpy(np.ascontiguousarray(values))
    return Spectrum(
        eigenvalues=kept,
        dim=len(values),
        num_samples=rows,
        matrix=matrix,
        floor=floor,
        status=Status.EXACT,
        residuals=torch.zeros_like(kept),
        largest=float(values[0]),
        smallest=float(values[-1]),
    )


def spectrum_report(matrix: Repaired, rows: int, independent: float, resamples: Resamples | None) -> SpectrumReport:
    """All numbers of one matrix.

    Intervals of dimensions and eigenvalues are ``exp(log c -+ (t g s + doubt |log c - log o|))``: c of the eigenvalues
    with the bias of sampling taken back, o as observed, s the deviation of the logarithm over halves or over simulated
    samples, whichever is larger, g what taking back the bias multiplies an error with, t of Student's distribution.
    Those of decades, slope and knee are the 2.5 % and 97.5 % points over halves, moved onto the value.

    Args:
        matrix: The repaired correlation.
        rows: n.
        independent: Effective rows.
        resamples: Of the same columns, or None.
    """
    values = matrix.eigenvalues
    d = len(values)
    edge = noise_edge(independent, d)
    shape = sloppiness(as_spectrum(values, rows, matrix.floor))
    pairs = () if resamples is None else _eigenvalue_intervals(values, matrix.rounding, resamples)

    def dimension(of: Callable[[Floats], float]) -> Interval:
        return _dimension(of, matrix, resamples)

    low, high = ([], []) if resamples is None else _sampling_ends(values, resamples)
    return SpectrumReport(
        columns=d,
        eigenvalues=tuple(map(float, values)),
        intervals=pairs,
        participation_ratio=dimension(participation_ratio),
        entropy_rank=dimension(entropy_rank),
        ridge_degrees_of_freedom=dimension(ridge_degrees_of_freedom),
        ridge_strength=RIDGE_STRENGTH,
        **_shape_intervals(shape.decades, shape.slope, float(shape.knee or 0), rows, matrix, resamples),
        floor=matrix.floor,
        noise_edge=edge,
        above_noise_edge=int((values > edge).sum()),
        above_noise_edge_interval=(
            None if resamples is None else (int((np.array(low) > edge).sum()), int((np.array(high) > edge).sum()))
        ),
        above_edge_of_all_rows=int((values > noise_edge(rows, d)).sum()),
        condition_index=_condition_index(matrix),
    )


def _condition_index(matrix: Repaired) -> float:
    if matrix.negative_eigenvalues:
        return math.nan
    smallest = float(matrix.eigenvalues[-1])
    return math.sqrt(float(matrix.eigenvalues[0]) / smallest) if smallest > matrix.rounding else math.inf


def _dimension(of: Callable[[Floats], float], matrix: Repaired, resamples: Resamples | None) -> Interval:
    values = matrix.eigenvalues
    value = of(values)
    if resamples is None or len(values) < 2:
        return Interval(value)
    logs, simulated = (
        np.log([of(np.maximum(each, 0.0)) for each in drawn]) for drawn in (resamples.halves, resamples.samples)
    )
    centre, observed = math.log(of(resamples.population)), math.log(value)
    spread = max(resamples.drawn.scale * float(logs.std(ddof=1)), float(simulated.std(ddof=1)))
    # 1 / ratio = 1 / ratio of the population + 1 / n: taking that back multiplies a relative error by their quotient.
    factor = max(1.0, math.exp(centre - observed))
    width = resamples.drawn.quantile * factor * spread + DOUBT * abs(centre - observed)
    ends = [math.log(of(each)) for each in hidden_below(resamples.population, matrix.floor, -matrix.negative_sum)]
    low, high = math.exp(min(centre, *ends) - width), math.exp(max(centre, *ends) + width)
    return Interval(value, low, min(high, float(len(values))))


def _eigenvalue_intervals(values: Floats, rounding: float, resamples: Resamples) -> tuple[tuple[float, float], ...]:
    tiny = max(rounding, 1e-300)
    observed = np.log(np.maximum(values, tiny))
    centre = np.log(np.maximum(resamples.population, tiny))
    spread = resamples.drawn.quantile * _deviations(tiny, resamples)
    equal = equal_to_the_largest(values, resamples.pairs)
    spread[0] *= correction_factor(values, equal, resamples.pairs)
    width = spread + DOUBT_OF_ONE * np.abs(centre - observed)
    # Each may be equal to its neighbours: what its place among them makes of it is no difference of the population.
    means = np.log(np.maximum(equal_runs(values, resamples.population, resamples.pairs, tiny), tiny))
    low = np.exp(np.minimum(centre, means.min(0)) - width)
    high = np.exp(np.minimum(np.maximum(centre, means.max(0)) + width, 700.0))
    # Eigenvalues of a correlation matrix sum to d, and the largest is at least their mean.
    high = np.minimum(high, float(len(values)))
    low = np.where(values <= tiny, 0.0, low)
    # The largest is at least the mean, and where it may be noise it may be no larger.
    low[0] = 1.0 if values[0] <= BARELY * noise_edge(resamples.pairs, len(values)) else max(low[0], 1.0)
    return tuple((float(a), float(max(a, b))) for a, b in zip(low, high, strict=True))


def _sampling_ends(values: Floats, resamples: Resamples) -> tuple[Floats, Floats]:
    """The observed eigenvalues an error of sampling up and down, uncorrected: the noise edge is observed, too."""
    spread = np.exp(resamples.drawn.quantile * _deviations(1e-12, resamples))
    return values / spread, values * spread


def _deviations(tiny: float, resamples: Resamples) -> Floats:
    halves, samples = (np.log(np.maximum(drawn, tiny)) for drawn in (resamples.halves, resamples.samples))
    return np.asarray(np.maximum(resamples.drawn.scale * halves.std(axis=0, ddof=1), samples.std(axis=0, ddof=1)))


def moved_spread(value: float, over_halves: Sequence[float] | Floats) -> tuple[float, float] | None:
    """The 2.5 % and 97.5 % points of a number over halves, moved so that their median is its value on all samples.

    Args:
        value: On all samples.
        over_halves: On halves; values that are not finite are left out.

    Returns:
        Both ends, which include the value; None where nothing is finite.

    >>> moved_spread(4.0, [5.0, 6.0, 7.0])
    (3.05, 4.95)
    """
    known: Floats = np.array([each for each in over_halves if math.isfinite(each)])
    if not len(known) or not math.isfinite(value):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.median(known)
    return value + min(float(low), 0.0), value + max(float(high), 0.0)


def _shape_intervals(
    decades: float, slope: float, knee: float, rows: int, matrix: Repaired, resamples: Resamples | None
) -> dict[str, Interval]:
    if resamples is None:
        return {"decades": Interval(decades), "slope": Interval(slope), "knee": Interval(knee)}
    found = []
    for half in resamples.halves:
        floor = max(matrix.rounding, -float(half[-1]))
        shape = sloppiness(as_spectrum(np.maximum(half, 0.0), rows // 2, floor))
        found.append((shape.decades, shape.slope, float(shape.knee or 0)))
    spread = np.array(found)
    result = {}
    for index, (name, value) in enumerate((("decades", decades), ("slope", slope), ("knee", knee))):
        ends = moved_spread(value, spread[:, index])
        if ends is None:
            result[name] = Interval(value)
        else:
            result[name] = Interval(value, ends[0] if name == "slope" else max(ends[0], 0.0), ends[1])
    return result
