"""How far numbers of a spectrum may be from those of the population: intervals from random halves of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from torch import Tensor

from lightning_sloppy.inputs.largest_eigenvalue import correction_factor, equal_to_the_largest
from lightning_sloppy.inspection.spectrum_numbers import BARELY, DOUBT, LEVEL, moved_spread
from lightning_sloppy.measures.relative_dimension import THOUSANDTH, relative_dimension
from lightning_sloppy.measures.sloppiness import entropy_rank, participation_ratio, sloppiness
from lightning_sloppy.records import Estimate, Spectrum

DOUBT_DOWN: Mapping[str, float] = {"largest": 1.4, "effective_dimension": 1.0}
"""Its part on the lower side, where it differs. The bias of an eigenvalue at the edge of many others falls like the
square root of n, so that 2.4 times the correction is right; that of the effective dimension falls faster than 1/n."""

DOUBT_UP: Mapping[str, float] = {"largest": 1.0}
"""The same on the upper side."""

SMALL_ONES = ("entropy_rank", "effective_dimension")
"""Numbers that depend on small eigenvalues: they have no interval where missing values hide some of these."""

SPREAD_NAMES = ("decades", "slope", "slope_times_rank", "knee")
"""Numbers of the smallest eigenvalues: only their spread over halves is given, not an interval of confidence."""


@dataclass(frozen=True)
class SampledInterval:
    """A range around a number.

    Attributes:
        low: Lower end.
        high: Upper end.
        confidence: Whether it is to hold the number of the population with a probability of 95 %. Otherwise it is the
            spread over halves of the samples, moved onto the value.
    """

    low: float
    high: float
    confidence: bool


def spectrum_intervals(spectrum: Spectrum) -> dict[str, SampledInterval]:
    """Intervals of the numbers of a spectrum, from the spectra of random halves of the samples.

    A half of n samples differs from the other half by twice the standard error of n samples, and its bias is twice that
    of n samples where the bias falls like 1/n (delete-half jackknife; Shao and Wu, Annals of Statistics 17, 1989). With
    o the logarithm of the number on all samples, a and b those on a half and on the other, over P pairs of halves:

    * standard error ``s = sqrt(mean((a - b)^2) / 2)``, centre ``c = 2 o - mean((a + b) / 2)``;
    * interval ``exp(c -+ (t g s + q |c - o|))``, t of Student's distribution with P degrees of freedom, g what the
      correction multiplies an error with, and q = 0.4 for the doubt in the correction (more for the largest eigenvalue
      and the effective dimension, whose bias falls otherwise).

    Where the largest eigenvalues may be equal, the lower end is that of their mean. With missing values o, a and b of
    the participation ratio are those of the signed eigenvalues, before the repair; where eigenvalues are hidden below
    the noise floor, entropy rank and effective dimension have no interval.

    So the interval is corrected for bias, and the number on all samples may lie outside. Samples are taken as
    independent. Decades, slope and knee depend on the smallest eigenvalues, whose bias halves cannot correct: theirs is
    the range of 95 % over halves, moved onto the value.

    Args:
        spectrum: From :func:`~lightning_sloppy.input_spectrum` with ``intervals=True``.

    Returns:
        By name: ``participation_ratio``, ``entropy_rank``, ``effective_dimension``, ``largest``, and
        spreads ``decades``, ``slope``, ``slope_times_rank``, ``knee``. Empty if no halves were taken.

    >>> import torch
    >>> from lightning_sloppy.inputs.spectrum import input_spectrum
    >>> inputs = torch.randn(2_000, 10, generator=torch.Generator().manual_seed(0))
    >>> interval = spectrum_intervals(input_spectrum(inputs, intervals=True))["participation_ratio"]
    >>> interval.low < 10 <= interval.high  # independent columns
    True
    """
    if spectrum.halves is None or not len(spectrum.halves) or bool(spectrum.halves.isnan().any()):
        return {}
    pairs = [[_as_half(spectrum, values) for values in pair] for pair in spectrum.halves]
    found: dict[str, SampledInterval] = {}
    for name, function in _functions().items():
        interval = _confidence(name, function, spectrum, pairs)
        if interval is not None:
            found[name] = interval
    shapes = [sloppiness(half) for pair in pairs for half in pair]
    own = sloppiness(spectrum)
    for name in SPREAD_NAMES:
        value = float(getattr(own, name) or 0.0)
        ends = moved_spread(value, [float(getattr(shape, name) or 0.0) for shape in shapes])
        if ends is not None:
            low = ends[0] if name.startswith("slope") else max(ends[0], 0.0)
            found[name] = SampledInterval(low, ends[1], confidence=False)
    return found


def interval_estimates(spectrum: Spectrum) -> dict[str, Estimate]:
    """The ends of :func:`spectrum_intervals` as quantities ``<name>_low`` and ``<name>_high``."""
    found: dict[str, Estimate] = {}
    for name, interval in spectrum_intervals(spectrum).items():
        found |= {f"{name}_low": Estimate(interval.low), f"{name}_high": Estimate(interval.high)}
    return found


def _functions() -> dict[str, Callable[[Spectrum], float]]:
    return {
        "participation_ratio": lambda spectrum: participation_ratio(spectrum).value,
        "entropy_rank": lambda spectrum: entropy_rank(spectrum).value,
        "effective_dimension": lambda spectrum: relative_dimension(spectrum).value,
        "largest": lambda spectrum: spectrum.largest,
    }


def _confidence(
    name: str, function: Callable[[Spectrum], float], spectrum: Spectrum, pairs: Sequence[Sequence[Spectrum]]
) -> SampledInterval | None:
    if name in SMALL_ONES and _hides_small_ones(spectrum):
        return None
    value = function(spectrum)
    halves = np.array([[function(half) for half in pair] for pair in pairs])
    if not (np.isfinite(halves).all() and (halves > 0).all() and math.isfinite(value) and value > 0):
        return None
    observed, logs = math.log(value), np.log(halves)
    if name == "participation_ratio" and spectrum.unrepaired is not None and spectrum.halves is not None:
        # Before the repair the sum of squares has a bias of 1 / n, and so has its logarithm.
        observed = math.log(_signed_ratio(spectrum.unrepaired))
        logs = np.log([[_signed_ratio(half) for half in pair] for pair in spectrum.halves])
    error = math.sqrt(float(np.mean((logs[:, 0] - logs[:, 1]) ** 2))) / 2
    bias = float(logs.mean()) - observed
    centre = observed - bias
    values = np.maximum(spectrum.eigenvalues.numpy(), 0.0)
    lowest = centre
    if name == "largest":
        equal = equal_to_the_largest(values, _independent(spectrum))
        factor = correction_factor(values, equal, _independent(spectrum))
        if equal > 1:  # their mean is what each of them is in the population
            tops = np.log([[float(half.eigenvalues[:equal].mean()) for half in pair] for pair in pairs])
            top = math.log(values[:equal].mean())
            lowest = min(centre, 2 * top - float(tops.mean()))
    else:
        # 1 / ratio = 1 / ratio of the population + 1 / n: taking that back multiplies a relative error likewise.
        factor = max(1.0, math.exp(-bias))
    width = float(stats.t.ppf((1 + LEVEL) / 2, len(pairs))) * factor * error
    low = math.exp(lowest - width - DOUBT_DOWN.get(name, DOUBT) * abs(bias))
    high = math.exp(min(centre + width + DOUBT_UP.get(name, DOUBT) * abs(bias), 700.0))
    return SampledInterval(*_within(name, low, high, spectrum), confidence=True)


def _hides_small_ones(spectrum: Spectrum) -> bool:
    """Whether missing values hide eigenvalues, of all samples or of a half."""
    if spectrum.unrepaired is None or spectrum.halves is None:
        return False
    return bool((spectrum.eigenvalues <= spectrum.noise_floor).any()) or bool((spectrum.halves < 0).any())


def _mean(spectrum: Spectrum) -> float:
    """The mean eigenvalue, before a repair raised it."""
    values = spectrum.eigenvalues if spectrum.unrepaired is None else spectrum.unrepaired
    return float(values.sum()) / spectrum.dim


def _independent(spectrum: Spectrum) -> float:
    """Samples behind an average entry of the matrix."""
    return float(spectrum.detail.get("mean_overlap", spectrum.num_samples))


def _signed_ratio(values: Tensor) -> float:
    """Participation ratio of signed eigenvalues."""
    return float(values.sum() ** 2 / values.square().sum())


def _within(name: str, low: float, high: float, spectrum: Spectrum) -> tuple[float, float]:
    """The part of an interval that is possible: at most d directions; the largest is at least the mean eigenvalue."""
    d = spectrum.dim
    if name != "largest":
        most = d / (1 + THOUSANDTH * d) if name == "effective_dimension" else float(d)
        least = 0.0 if name == "effective_dimension" else 1.0
        low, high = max(low, least), min(high, most)
        return min(low, high), high
    mean = _mean(spectrum)
    low = mean if _may_be_noise(spectrum) else max(low, mean)
    return low, max(min(high, mean * d), low)


def _may_be_noise(spectrum: Spectrum) -> bool:
    """Whether independent columns of one scale could show so large an eigenvalue (Marchenko and Pastur 1967)."""
    mean = _mean(spectrum)
    return spectrum.largest <= BARELY * mean * (1 + math.sqrt(spectrum.dim / _independent(spectrum))) ** 2


def _as_half(spectrum: Spectrum, signed: Tensor) -> Spectrum:
    """The spectrum with the eigenvalues of a half."""
    largest, smallest, samples = float(signed[0]), float(signed[-1]), spectrum.num_samples // 2
    floor = spectrum.floor * largest / spectrum.largest if spectrum.largest > 0 else spectrum.floor
    incomplete = spectrum.noise_floor > 0
    return replace(
        spectrum,
        eigenvalues=signed.clamp_min(0.0) if incomplete else signed,
        largest=largest,
        smallest=0.0 if incomplete else smallest,
        floor=floor,
        noise_floor=max(floor, -smallest) if incomplete else 0.0,
        num_samples=samples,
        rank_bound=min(samples - 1, spectrum.dim),
        trace=None,
        halves=None,
    )
