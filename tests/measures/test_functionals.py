"""Functionals of a whole spectrum against all its eigenvalues, with errors that keep what they promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from scipy.stats import t as student
from support.seen import DIM, of_a_network, rotated, seen_through, top_pairs, whole
from torch import Tensor

from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import joined, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.brackets import count_is_resolved
from lightning_sloppy.measures.effective_dimension import effective_dimension, eigenvalue_count
from lightning_sloppy.measures.functionals import (
    averaged,
    frobenius_norm,
)
from lightning_sloppy.measures.relative_dimension import relative_dimension
from lightning_sloppy.records import Estimate, Spectrum, Status

Functional = Callable[[Spectrum], Estimate]

QUANTILE = float(student.ppf(0.995, 29))
"""Of 30 probe vectors, for 99 % in the middle."""


def trace(spectrum: Spectrum) -> Estimate:
    assert spectrum.trace is not None
    return spectrum.trace


POSITIVE: dict[str, Functional] = {
    "trace": trace,
    "frobenius": frobenius_norm,
    "effective dimension": lambda s: effective_dimension(s, 1e-2),
    "count": lambda s: eigenvalue_count(s, 1e-2),
}
INDEFINITE: dict[str, Functional] = {"trace": trace, "frobenius": frobenius_norm}


def remember(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The rules of one T are asked for again and again: keep them."""
    room, _, attribute = name.rpartition(".")
    function = getattr(import_module(room), attribute)
    seen: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def again(diagonal: Tensor, offdiagonal: Tensor, *node: float) -> tuple[Tensor, Tensor]:
        key = (diagonal.data_ptr(), len(diagonal), *node)
        if key not in seen:
            seen[key] = function(diagonal, offdiagonal, *node)
        return seen[key]

    monkeypatch.setattr(name, again)


@pytest.mark.slow
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("positive", [True, False])
def test_the_truth_lies_in_the_interval_as_often_as_it_says(
    positive: bool, deflated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nominal 99 % with 30 probe vectors; at least 97 % of 300 seeds."""
    for name in ("brackets.gauss", "brackets.gauss_radau"):
        remember(monkeypatch, f"lightning_sloppy.measures.{name}")
    values = of_a_network(negative=not positive)
    matrix = rotated(values)
    functionals = POSITIVE if positive else INDEFINITE
    truths = {name: functional(whole(values)).value for name, functional in functionals.items()}
    known = top_pairs(matrix, 4, noise=1e-4) if deflated else None
    pool = seen_through(matrix, rademacher(DIM, 1500, generator(1)).double(), positive=positive, known=known)
    density = pool.density
    assert density is not None
    hits = dict.fromkeys(functionals, 0)
    rng = torch.Generator().manual_seed(2)
    for _ in range(300):
        # Vectors are independent, so that a draw of 30 from a large pool is as good as 30 new ones.
        draw = torch.randperm(1500, generator=rng)[:30]
        part = replace(
            density,
            diagonals=tuple(density.diagonals[i] for i in draw),
            offdiagonals=tuple(density.offdiagonals[i] for i in draw),
            nodes=density.nodes[draw],
            weights=density.weights[draw],
            masses=density.masses[draw],
        )
        samples = torch.stack([d[0] for d in part.diagonals]) * part.masses + part.known.sum()
        estimate = Estimate(float(samples.mean()), float(samples.std()) / 30**0.5, status=Status.CONVERGED)
        seen = replace(pool, density=part, trace=estimate)
        for name, functional in functionals.items():
            found = functional(seen)
            reach = QUANTILE * found.standard_error + found.truncation_error
            hits[name] += abs(found.value - truths[name]) <= reach + 1e-9
    assert all(count >= 291 for count in hits.values()), hits


def test_trace_of_a_harmonic_spectrum_is_within_three_standard_errors() -> None:
    values = 1 / torch.arange(1, 81).double()
    matrix = rotated(values)
    inside = 0
    for seed in range(1000):
        vectors = rademacher(80, 100, generator(seed)).double()
        samples = ((vectors @ matrix) * vectors).sum(1)
        inside += abs(float(samples.mean() - values.sum())) <= 3 * float(samples.std()) / 10
    assert inside >= 990


def test_known_pairs_take_the_variance_of_the_trace_with_them() -> None:
    values = of_a_network(negative=True)
    matrix = rotated(values)
    vectors = rademacher(DIM, 40, generator(3)).double()
    plain = seen_through(matrix, vectors, positive=False)
    beside = seen_through(matrix, vectors, positive=False, known=top_pairs(matrix, 4))
    assert abs(trace(beside).value - float(values.sum())) < 4 * trace(beside).standard_error
    # Hutchinson's variance is that of the Frobenius norm: 22.6 with the four largest, 1.9 without.
    assert trace(beside).standard_error < 0.2 * trace(plain).standard_error
    assert frobenius_norm(beside).standard_error < 0.05 * frobenius_norm(plain).standard_error


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_pairs_that_are_a_little_wrong_cost_what_the_truncation_error_says(noise: float) -> None:
    """All 400 unit vectors as probes: no error of chance is left, only that of the blocks taken apart."""
    values = of_a_network(negative=False)
    matrix = rotated(values)
    known = top_pairs(matrix, 4, noise=noise)
    units = torch.eye(DIM, dtype=torch.float64) * DIM**0.5
    seen = seen_through(matrix, units, positive=True, known=known, steps=60)
    for name in ("effective dimension",):
        estimate, truth = POSITIVE[name](seen), POSITIVE[name](whole(values)).value
        assert abs(estimate.value - truth) <= estimate.truncation_error + 1e-9, name
    for name in ("trace", "frobenius"):
        assert POSITIVE[name](seen).value == pytest.approx(POSITIVE[name](whole(values)).value, rel=1e-9)


def test_joined_densities_are_the_density_of_all_vectors() -> None:
    matrix = rotated(of_a_network(negative=True))
    vectors = rademacher(DIM, 6, generator(0)).double()
    known = top_pairs(matrix, 3)
    options = {"steps": 12, "rng": generator(0), "positive_semidefinite": False, "known": known}
    whole_run = lanczos_density(DenseOperator(matrix), vectors, **options)
    parts = [lanczos_density(DenseOperator(matrix), part, **options) for part in (vectors[:4], vectors[4:])]
    both = joined(*parts)
    torch.testing.assert_close(both.nodes, whole_run.nodes)
    torch.testing.assert_close(both.weights, whole_run.weights)
    torch.testing.assert_close(both.known, whole_run.known)
    lockstep = lanczos_density(DenseOperator(matrix), vectors, together=True, **options)
    torch.testing.assert_close(lockstep.nodes, whole_run.nodes)


def test_what_is_not_known_is_not_invented() -> None:
    values = of_a_network(negative=True)
    pairs_only = replace(whole(values), eigenvalues=values[:3], truncated=True)
    assert frobenius_norm(pairs_only).status is Status.UNAVAILABLE


@pytest.mark.parametrize(("half_width", "status"), [(0.09, Status.CONVERGED), (0.11, Status.UNRESOLVED)])
def test_resolved_is_half_a_bracket_of_a_tenth(
    half_width: float, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known to within a tenth either way, so a bracket of a fifth of the value."""
    spectrum = seen_through(rotated(of_a_network(negative=False)), rademacher(DIM, 4, generator(0)), positive=True)

    def bracket(*_: object) -> tuple[float, float]:
        return 0.02 * (1 - half_width), 0.02 * (1 + half_width)

    found = averaged(spectrum.density, bracket, lambda values: 0.0)
    assert found.value == pytest.approx(0.02 * DIM)
    assert found.truncation_error == pytest.approx(half_width * found.value)
    assert found.status is status
    monkeypatch.setattr("lightning_sloppy.measures.relative_dimension.soft_count_bracket", bracket)
    dimension = relative_dimension(spectrum)
    assert dimension.truncation_error == pytest.approx(half_width * dimension.value)
    assert dimension.status is status
    monkeypatch.setattr("lightning_sloppy.measures.brackets.step_count_bracket", bracket)
    resolved = count_is_resolved(torch.ones(2), torch.ones(2), 1.0, dim=10_000)
    assert resolved is (status is Status.CONVERGED)


def test_a_count_of_few_is_known_to_half_an_eigenvalue(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, known in ((0.9, True), (1.1, False)):
        mass = (2.0 / DIM, (2.0 + width) / DIM)
        monkeypatch.setattr("lightning_sloppy.measures.brackets.step_count_bracket", lambda *_, mass=mass: mass)
        assert count_is_resolved(torch.ones(2), torch.ones(2), 1.0, dim=DIM) is known
