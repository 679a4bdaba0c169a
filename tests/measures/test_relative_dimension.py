"""The dimension at a fraction of the trace: closed forms, invariances, and the error of trace and sum together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.seen import DIM, of_a_network, rotated, seen_through, top_pairs, whole

from lightning_sloppy import ConfigurationError, Estimate, Status, relative_dimension
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.relative_dimension import directions_holding, relative_estimates


def exact(values: torch.Tensor, c: float) -> float:
    positive = values.clamp(min=0)
    return float((positive / (positive + c * positive.sum())).sum())


@given(rank=st.integers(1, 400), c=st.floats(1e-5, 0.5), size=st.floats(1e-6, 1e6))
def test_of_a_flat_spectrum_it_is_the_closed_form(rank: int, c: float, size: float) -> None:
    values = torch.cat([torch.full((rank,), size), torch.zeros(7)]).double()
    found = relative_dimension(whole(values), c)
    assert found.value == pytest.approx(rank / (1 + c * rank), rel=1e-9)
    assert found.value <= 1 / c
    assert found.total_error == 0


def test_multiplying_the_matrix_changes_nothing() -> None:
    values = of_a_network(negative=False)
    assert relative_dimension(whole(values)).value == pytest.approx(relative_dimension(whole(10 * values)).value)


def test_it_counts_directions_that_hold_more_than_a_thousandth() -> None:
    values = torch.cat([torch.full((20,), 1.0), torch.full((200,), 1e-7)]).double()
    assert relative_dimension(whole(values)).value == pytest.approx(20 / 1.02, abs=0.3)


@pytest.mark.parametrize("c", [0.0, 1.0, -1e-3, math.nan, 2.0])
def test_a_fraction_out_of_range_is_refused(c: float) -> None:
    with pytest.raises(ConfigurationError, match="is not a fraction of the trace"):
        relative_dimension(whole(torch.ones(3).double()), c)
    with pytest.raises(ConfigurationError, match="fraction="):
        directions_holding(whole(torch.ones(3).double()), c)


def test_no_directions_and_no_right_to_count_them() -> None:
    nothing = whole(torch.zeros(5).double())
    assert relative_dimension(nothing) == directions_holding(nothing, 0.9) == Estimate(0.0)
    indefinite = whole(of_a_network(negative=True))
    assert relative_dimension(indefinite).status is directions_holding(indefinite, 0.9).status is Status.UNAVAILABLE


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("c", [1e-3, 1e-2])
def test_the_standard_error_is_that_of_trace_and_sum_together(c: float, beside: bool) -> None:
    """Over many seeds the values scatter as the error says, which neither sum alone would give."""
    values = of_a_network(negative=False)
    matrix, right = rotated(values), exact(values, c)
    known = top_pairs(matrix, 4) if beside else None
    deviations, errors = [], []
    for seed in range(60):
        vectors = rademacher(DIM, 6, generator(seed))
        found = relative_dimension(seen_through(matrix, vectors, positive=True, steps=60, known=known), c)
        assert found.status is Status.CONVERGED
        deviations.append(found.value - right)
        errors.append(found.standard_error)
    scatter = torch.tensor(deviations).std()
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(float(scatter), rel=0.35)
    assert abs(float(torch.tensor(deviations).mean())) < 4 * float(scatter) / len(deviations) ** 0.5 + 0.02 * right


def test_the_truncation_error_covers_what_few_steps_miss() -> None:
    values = of_a_network(negative=False)
    matrix = rotated(values)
    vectors = rademacher(DIM, 8, generator(3))
    long = relative_dimension(seen_through(matrix, vectors, positive=True, steps=150))
    short = relative_dimension(seen_through(matrix, vectors, positive=True, steps=25))
    assert long.truncation_error < 1e-6
    assert abs(short.value - long.value) <= short.truncation_error + 1e-6


def test_one_probe_vector_resolves_nothing() -> None:
    values = of_a_network(negative=False)
    density = seen_through(rotated(values), rademacher(DIM, 2, generator(0)), positive=True).density
    assert density is not None
    one = replace(
        density,
        diagonals=density.diagonals[:1],
        offdiagonals=density.offdiagonals[:1],
        nodes=density.nodes[:1],
        weights=density.weights[:1],
        masses=density.masses[:1],
    )
    seen = replace(whole(values), truncated=True, density=one)
    assert relative_dimension(seen).status is Status.UNRESOLVED


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.95, 0.99])
def test_the_fewest_directions_that_hold_a_fraction(fraction: float) -> None:
    values = of_a_network(negative=False).sort(descending=True).values
    found = int(directions_holding(whole(values), fraction).value)
    total = float(values.sum())
    assert float(values[:found].sum()) >= fraction * total * (1 - 1e-9)
    assert float(values[: found - 1].sum()) < fraction * total


def test_all_of_them_together_with_those_of_half_of_the_samples() -> None:
    values = of_a_network(negative=False).sort(descending=True).values
    half = values[:50]
    found = relative_estimates(replace(whole(values), half_eigenvalues=half), "covariance_")
    assert found["covariance_effective_dimension"].value == pytest.approx(exact(values, 1e-3))
    assert found["covariance_effective_dimension_coarse"].value == pytest.approx(exact(values, 1e-2))
    assert found["covariance_effective_dimension_fine"].value == pytest.approx(exact(values, 1e-4))
    assert found["covariance_effective_dimension_half_samples"].value == pytest.approx(exact(half, 1e-3))
    assert found["covariance_n90"] == directions_holding(whole(values), 0.9)
    assert set(relative_estimates(whole(values))) == {
        "effective_dimension", "effective_dimension_coarse", "effective_dimension_fine", "n90",
    }  # fmt: skip
