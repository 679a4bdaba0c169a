"""Sloppiness and the dimensions without a scale, on spectra whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lightning_sloppy.inputs.spectrum import input_spectrum
from lightning_sloppy.measures.sloppiness import (
    effective_rank,
    entropy_rank,
    input_estimates,
    participation_ratio,
    sloppiness,
)
from lightning_sloppy.records import Estimate, Spectrum, Status


def spectrum_of(values: object, *, floor: float = 0.0, truncated: bool = False) -> Spectrum:
    eigenvalues = torch.sort(torch.as_tensor(np.asarray(values, dtype=np.float64)), descending=True).values
    return Spectrum(
        eigenvalues=eigenvalues,
        dim=len(eigenvalues),
        num_samples=50,
        matrix="covariance",
        floor=floor,
        status=Status.EXACT,
        residuals=torch.zeros_like(eigenvalues),
        largest=float(eigenvalues[0]),
        smallest=float(eigenvalues[-1]),
        truncated=truncated,
    )


def geometric(count: int, slope: float, start: float = 0.0) -> np.ndarray:
    return 10.0 ** (start + slope * np.arange(count))


def test_geometric_spectrum_is_straight() -> None:
    shape = sloppiness(spectrum_of(geometric(120, -0.05)))
    assert shape.knee is None
    assert shape.shoulder is None
    assert shape.slope == pytest.approx(-0.05, rel=1e-9)
    assert shape.r_squared == pytest.approx(1.0, abs=1e-12)
    assert shape.decades == pytest.approx(0.05 * 119)
    assert shape.resolved == 120
    assert not shape.truncated


@pytest.mark.parametrize("spikes", [1, 2, 5, 20])
def test_knee_is_the_number_of_spikes(spikes: int) -> None:
    values = np.concatenate([geometric(spikes, -0.05, start=3.0), geometric(150, -0.02)])
    shape = sloppiness(spectrum_of(values))
    assert shape.knee == spikes
    assert shape.shoulder is None
    assert shape.slope == pytest.approx(-0.02, rel=1e-9)
    assert shape.r_squared == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("fallen", [1, 3, 10])
def test_a_fast_fall_at_the_far_end_does_not_tilt_the_line(fallen: int) -> None:
    values = np.concatenate([geometric(5, -0.1, start=3.0), geometric(500, -0.01), geometric(fallen, -0.5, -7.0)])
    shape = sloppiness(spectrum_of(values))
    assert (shape.knee, shape.shoulder) == (5, 504)
    assert shape.slope == pytest.approx(-0.01, rel=1e-9)
    assert shape.decades == pytest.approx(10 + 0.5 * (fallen - 1))


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_isotropic_inputs_have_no_knee_and_few_decades(share: float) -> None:
    inputs = torch.randn(int(100 / share), 100, generator=torch.Generator().manual_seed(0))
    shape = sloppiness(input_spectrum(inputs, "covariance"))
    edge = math.sqrt(share)
    assert shape.decades == pytest.approx(2 * math.log10((1 + edge) / (1 - edge)), rel=0.06)
    assert shape.knee is None


def test_digits_have_a_knee_a_shoulder_and_an_even_middle() -> None:
    inputs = torch.from_numpy(load_digits().data)
    correlation = sloppiness(input_spectrum(inputs))
    assert correlation.resolved == 61
    assert correlation.decades == pytest.approx(2.16, abs=0.01)
    assert correlation.knee == 8
    assert correlation.slope == pytest.approx(-0.0273, abs=1e-4)
    assert correlation.r_squared > 0.99
    covariance = sloppiness(input_spectrum(inputs, "covariance"))
    assert covariance.decades == pytest.approx(5.64, abs=0.01)
    assert covariance.shoulder == 47  # the border pixels, almost always empty, lie behind it
    assert covariance.slope == pytest.approx(-0.0364, abs=1e-4)


def test_only_what_lies_above_the_floor_counts() -> None:
    noisy = spectrum_of([*geometric(30, -0.1), 1e-16, 0.0, -1e-16], floor=1e-14)
    shape = sloppiness(noisy)
    assert shape.resolved == 30
    assert shape.floor == 1e-14
    assert shape.decades == pytest.approx(2.9)
    assert participation_ratio(noisy).value == pytest.approx(
        participation_ratio(spectrum_of(geometric(30, -0.1))).value
    )


def test_a_truncated_spectrum_gives_lower_bounds_and_no_dimension() -> None:
    spectrum = spectrum_of(geometric(20, -0.1), truncated=True)
    assert sloppiness(spectrum).truncated
    estimates = input_estimates(spectrum)
    assert estimates["decades"].lower_bound
    assert estimates["resolved"].lower_bound
    for name in ("participation_ratio", "entropy_rank", "effective_rank", "trace"):
        assert estimates[name].status is Status.UNAVAILABLE
        assert math.isnan(estimates[name].value)


def test_an_estimated_trace_hands_on_its_errors() -> None:
    trace = Estimate(10.0, standard_error=1.0, truncation_error=0.5, status=Status.CONVERGED)
    rank = effective_rank(replace(spectrum_of([4.0, 1.0], truncated=True), trace=trace))
    assert rank == Estimate(2.5, standard_error=0.25, truncation_error=0.125, status=Status.CONVERGED)


def test_an_indefinite_matrix_has_no_shares() -> None:
    spectrum = spectrum_of([4.0, 1.0, -1.0], floor=1e-12)
    assert participation_ratio(spectrum).status is Status.UNAVAILABLE
    assert entropy_rank(spectrum).status is Status.UNAVAILABLE
    assert effective_rank(spectrum).value == 1.0


def test_closed_forms() -> None:
    spectrum = spectrum_of([4.0, 1.0, 0.0], floor=1e-15)
    assert participation_ratio(spectrum).value == pytest.approx(25 / 17)
    assert entropy_rank(spectrum).value == pytest.approx(1.6494, abs=5e-5)
    assert effective_rank(spectrum).value == 1.25
    assert participation_ratio(spectrum).total_error == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(min_value=-280, max_value=280), min_size=1, max_size=30))
def test_ranks_are_ordered_as_renyi_entropies_are(logs: list[float]) -> None:
    spectrum = spectrum_of(10.0 ** np.array(logs))
    ranks = [1.0, effective_rank(spectrum).value, participation_ratio(spectrum).value, entropy_rank(spectrum).value]
    ranks.append(float(len(logs)))
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(ranks))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(min_value=-12, max_value=3), min_size=3, max_size=60), st.floats(min_value=-9, max_value=9))
def test_a_factor_changes_no_shape(logs: list[float], factor: float) -> None:
    logs = [round(log, 3) for log in logs]
    plain, scaled = (sloppiness(spectrum_of(10.0 ** (np.array(logs) + shift))) for shift in (0.0, factor))
    assert scaled.decades == pytest.approx(plain.decades, abs=1e-9)
    assert plain.resolved == scaled.resolved == len(logs)
    if (plain.knee, plain.shoulder) == (scaled.knee, scaled.shoulder):  # ties may break otherwise by rounding
        assert scaled.slope == pytest.approx(plain.slope, abs=1e-9, nan_ok=True)
    assert plain.slope <= 1e-12 or math.isnan(plain.slope)
    assert not plain.r_squared > 1


@pytest.mark.parametrize(
    ("values", "decades", "slope", "r_squared"),
    [([1.0] * 10, 0.0, 0.0, math.nan), ([1.0, 0.1], 1.0, math.nan, math.nan), ([2.0], 0.0, math.nan, math.nan)],
)
def test_too_little_for_a_line(values: list[float], decades: float, slope: float, r_squared: float) -> None:
    shape = sloppiness(spectrum_of(values))
    assert shape.knee is None
    np.testing.assert_equal([shape.decades, shape.slope, shape.r_squared], [decades, slope, r_squared])


def test_nothing_resolved_is_unavailable() -> None:
    estimates = input_estimates(spectrum_of([0.0, 0.0]))
    assert estimates["resolved"].value == 0
    for name in ("decades", "slope", "slope_r_squared", "participation_ratio", "entropy_rank", "effective_rank"):
        assert estimates[name].status is Status.UNAVAILABLE
    assert estimates["trace"].value == 0


def test_input_estimates_name_every_quantity() -> None:
    inputs = torch.from_numpy(load_digits().data)
    estimates = input_estimates(input_spectrum(inputs))
    assert set(estimates) == {
        "decades",
        "slope",
        "slope_times_rank",
        "slope_r_squared",
        "knee",
        "floor",
        "resolved",
        "participation_ratio",
        "effective_rank",
        "entropy_rank",
        "trace",
        "largest",
        "num_features",
        "constant_columns",
        "num_samples",
    }
    assert all(math.isfinite(estimate.value) and estimate.status.ok for estimate in estimates.values())
    assert estimates["num_features"].value == estimates["trace"].value == 61
    assert estimates["constant_columns"].value == 3
    assert estimates["num_samples"].value == 1797
    assert estimates["trace"].value / estimates["largest"].value == pytest.approx(estimates["effective_rank"].value)
