from __future__ import annotations

import math

import pytest
import torch
from support.spectra import padded, with_eigenvalues
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import exact_density, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.brackets import (
    count_is_resolved,
    density_is_resolved,
    positive_soft_count_bracket,
    soft_count_bracket,
    step_count_bracket,
)
from lightning_sloppy.measures.effective_dimension import (
    converged_above,
    curvature_scale,
    effective_dimension,
    eigenvalue_count,
    of_half_the_samples,
)
from lightning_sloppy.records import Density, Estimate, Spectrum, Status

EMPTY = torch.zeros(0, dtype=torch.float64)


def whole(values: Tensor, *, floor: float = 0.0) -> Spectrum:
    values = values.double().sort(descending=True).values
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        dim=len(values),
        num_samples=8,
        matrix="fisher_empirical",
        floor=floor,
        status=Status.EXACT,
        largest=float(values[0]),
        smallest=float(values[-1]),
    )


def part(dim: int, *, values: Tensor = EMPTY, residuals: Tensor = EMPTY, density: Density | None = None) -> Spectrum:
    return Spectrum(
        eigenvalues=values,
        residuals=residuals,
        dim=dim,
        num_samples=8,
        matrix="hessian",
        floor=0.0,
        status=Status.CONVERGED,
        largest=0.0,
        smallest=0.0,
        density=density,
        truncated=True,
    )


def seen_through(matrix: Tensor, *, steps: int, vectors: int, positive: bool, seed: int = 0) -> Spectrum:
    probes = rademacher(len(matrix), vectors, generator(seed))
    density = lanczos_density(
        DenseOperator(matrix), probes, steps=steps, rng=generator(1), positive_semidefinite=positive
    )
    return part(len(matrix), density=density)


def soft(values: Tensor, z: float) -> Tensor:
    positive = values.clamp_min(0)
    return positive / (positive + z)


def test_effective_dimension_of_three_known_eigenvalues() -> None:
    estimate = effective_dimension(whole(torch.tensor([4.0, 1.0, 0.0])), 1.0)
    assert estimate == Estimate(pytest.approx(1.3), 0.0, 0.0, Status.EXACT)


def test_negative_eigenvalues_and_rounding_noise_do_not_count() -> None:
    spectrum = whole(torch.tensor([4.0, 1.0, 1e-9, -0.999]), floor=1e-8)
    assert effective_dimension(spectrum, 1.0).value == pytest.approx(1.3, rel=1e-15)
    assert effective_dimension(spectrum, 1e-12).value == pytest.approx(2.0)


def test_count_includes_the_threshold() -> None:
    spectrum = whole(torch.tensor([4.0, 1.0, 0.5, -3.0]))
    assert [eigenvalue_count(spectrum, z).value for z in (0.5, 1.0, 1.1, 5.0)] == [3.0, 2.0, 1.0, 0.0]


def test_pairs_cut_at_k_feed_no_functional_but_a_lower_bound() -> None:
    spectrum = part(500, values=torch.tensor([4.0, 1.0]).double(), residuals=torch.tensor([0.1, 0.6]).double())
    for estimate in (effective_dimension(spectrum, 0.5), eigenvalue_count(spectrum, 0.5)):
        assert estimate.status is Status.UNAVAILABLE
        assert math.isnan(estimate.value)
    above = converged_above(spectrum, 0.5)
    assert above.value == 1.0
    assert above.lower_bound


def test_converged_count_never_exceeds_the_true_count() -> None:
    from lightning_sloppy.linalg.eigensolver import top_eigenpairs

    values = torch.cat([torch.linspace(1, 3, 40), torch.linspace(-1, 1, 260)]).double()
    matrix = with_eigenvalues(values)
    for budget in (12, 25, 60):
        found = top_eigenpairs(DenseOperator(matrix), 12, rng=generator(0), max_products=budget)
        spectrum = part(300, values=found.values, residuals=found.residuals)
        counts = [converged_above(spectrum, z).value for z in (0.5, 1.0, 2.0, 2.9)]
        assert all(count <= float((values > z).sum()) for count, z in zip(counts, (0.5, 1.0, 2.0, 2.9), strict=True))
    assert counts == [12.0, 12.0, 12.0, 2.0]


@pytest.mark.parametrize("depth", [1, 2, 5, 12, 25])
def test_gauss_and_radau_bracket_every_vector_of_a_positive_semidefinite_matrix(depth: int) -> None:
    rng = torch.Generator().manual_seed(0)
    for seed in range(10):
        values = padded(60, *(10 ** (-4 * torch.rand(25, generator=rng))).tolist())
        matrix = with_eigenvalues(values, seed)
        density = seen_through(matrix, steps=depth, vectors=2, positive=True, seed=seed).density
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        probes = rademacher(60, 2, generator(seed)).double() / 60**0.5
        for z in (1e-4, 1e-2, 1.0):
            for index, probe in enumerate(probes):
                lower, upper = soft_count_bracket(density.diagonals[index], density.offdiagonals[index], z)
                exact = float(((vectors.T @ probe) ** 2 * soft(eigenvalues, z)).sum())
                assert lower - 1e-9 <= exact <= upper + 1e-9
                assert upper - lower < (1.0 if depth < 25 else 1e-4)


@pytest.mark.parametrize("depth", [1, 2, 4, 9, 20])
def test_step_bracket_holds_for_indefinite_matrices(depth: int) -> None:
    """Chebyshev, Markov and Stieltjes: for thresholds anywhere, also outside the spectrum and below zero."""
    rng = torch.Generator().manual_seed(1)
    widths = []
    for seed in range(25):
        values = torch.randn(40, generator=rng).double() * 10 ** (2 * torch.rand(40, generator=rng).double() - 1)
        values[:8] = 0
        matrix = with_eigenvalues(values, seed)
        density = seen_through(matrix, steps=depth, vectors=1, positive=False, seed=seed).density
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        weights = (vectors.T @ (rademacher(40, 1, generator(seed))[0].double() / 40**0.5)) ** 2
        for z in (-50.0, -0.3, 1e-3, 0.2, 1.0, 3.0, 50.0):
            lower, upper = step_count_bracket(density.diagonals[0], density.offdiagonals[0], z)
            assert lower - 1e-9 <= float(weights[eigenvalues >= z].sum()) <= upper + 1e-9
            widths.append(upper - lower)
    assert max(widths) < 1.0 + 1e-9
    assert depth == 1 or sum(widths) / len(widths) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 6, 15, 30])
def test_bracket_of_the_positive_part_holds_for_indefinite_matrices(depth: int) -> None:
    rng = torch.Generator().manual_seed(2)
    for seed in range(10):
        values = torch.randn(50, generator=rng).double() * 10 ** (3 * torch.rand(50, generator=rng).double() - 2)
        values[:20] = 0
        matrix = with_eigenvalues(values, seed)
        density = seen_through(matrix, steps=depth, vectors=1, positive=False, seed=seed).density
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        weights = (vectors.T @ (rademacher(50, 1, generator(seed))[0].double() / 50**0.5)) ** 2
        for z in (1e-2, 0.3, 3.0):
            lower, upper = positive_soft_count_bracket(density.diagonals[0], density.offdiagonals[0], z)
            exact = float((weights * soft(eigenvalues, z)).sum())
            # What 24 terms make of steps at the 30 positive eigenvalues, of mass 1/50 each.
            assert lower - 1e-3 <= exact <= upper + 1e-3


@pytest.mark.slow
def test_estimates_lie_within_their_errors_over_many_seeds() -> None:
    """A right standard error is exceeded threefold in few seeds, and a bracket never misses."""
    values = padded(90, *(10 ** -torch.linspace(0, 4, 45)).tolist())
    matrix = with_eigenvalues(values)
    z = 1e-2
    truths = {effective_dimension: float(soft(values, z).sum()), eigenvalue_count: float((values >= z).sum())}
    for function, truth in truths.items():
        inside, errors = 0, []
        for seed in range(200):
            estimate = function(seen_through(matrix, steps=12, vectors=6, positive=True, seed=seed), z)
            inside += abs(estimate.value - truth) <= 3 * estimate.standard_error + estimate.truncation_error
            errors.append(estimate.value - truth)
            assert estimate.standard_error > 0
        assert inside / 200 >= 0.97
        if function is effective_dimension:
            # Without a bias that the errors would hide.
            mean = sum(errors) / len(errors)
            assert abs(mean) < 4 * float(torch.tensor(errors).std()) / 200**0.5 + 0.02 * truth


def test_resolution_is_the_width_of_the_bracket() -> None:
    values = padded(200, *(10 ** -torch.linspace(0, 4, 150)).tolist())
    matrix = with_eigenvalues(values)
    shallow = effective_dimension(seen_through(matrix, steps=3, vectors=4, positive=True), 1e-3)
    deep = effective_dimension(seen_through(matrix, steps=60, vectors=4, positive=True), 1e-3)
    assert shallow.status is Status.UNRESOLVED
    assert not shallow.status.ok
    assert deep.status is Status.CONVERGED
    assert deep.truncation_error < 0.01 * deep.value < shallow.truncation_error


def test_one_probe_vector_has_no_standard_error_and_is_unresolved() -> None:
    estimate = effective_dimension(seen_through(torch.eye(30).double(), steps=5, vectors=1, positive=True), 1.0)
    assert estimate.value == pytest.approx(15.0)
    assert estimate.standard_error == math.inf
    assert estimate.status is Status.UNRESOLVED


def test_functionals_of_an_exact_density_are_exact() -> None:
    values = torch.cat([torch.linspace(-1, 4, 30), torch.zeros(10)]).double().sort(descending=True).values
    spectrum = part(40, density=exact_density(values, positive_semidefinite=False))
    for function in (effective_dimension, eigenvalue_count):
        estimate, truth = function(spectrum, 0.3), function(whole(values), 0.3)
        assert estimate.value == pytest.approx(truth.value, rel=1e-9)
        assert (estimate.standard_error, estimate.truncation_error) == (0.0, 0.0)
        assert estimate.status is Status.CONVERGED


def test_when_to_stop_asks_every_scale() -> None:
    spectrum = seen_through(with_eigenvalues(10 ** -torch.linspace(0, 6, 150)), steps=14, vectors=1, positive=True)
    diagonal, offdiagonal = spectrum.density.diagonals[0], spectrum.density.offdiagonals[0]
    assert density_is_resolved(diagonal, offdiagonal, (0.1, 1.0), 0.02)
    assert not density_is_resolved(diagonal, offdiagonal, (0.1, 1.0, 1e-6), 0.02)


def test_when_to_stop_asks_the_count_too() -> None:
    matrix = with_eigenvalues(10 ** -torch.linspace(0, 6, 150))
    early, late = (seen_through(matrix, steps=steps, vectors=1, positive=True).density for steps in (6, 60))
    assert not count_is_resolved(early.diagonals[0], early.offdiagonals[0], 1e-2, 150)
    assert count_is_resolved(late.diagonals[0], late.offdiagonals[0], 1e-2, 150)
    nothing = seen_through(matrix, steps=30, vectors=1, positive=True).density
    assert count_is_resolved(nothing.diagonals[0], nothing.offdiagonals[0], 50.0, 150)


def test_a_count_of_nothing_is_resolved() -> None:
    spectrum = seen_through(with_eigenvalues(10 ** -torch.linspace(0, 6, 150)), steps=30, vectors=4, positive=True)
    estimate = eigenvalue_count(spectrum, 50.0)
    assert estimate.status is Status.CONVERGED
    assert estimate.value < 0.5


def test_half_of_the_samples() -> None:
    spectrum = whole(torch.tensor([4.0, 1.0]))
    assert of_half_the_samples(spectrum) is None
    from dataclasses import replace

    half = of_half_the_samples(replace(spectrum, half_eigenvalues=torch.tensor([2.0]).double()))
    assert half is not None
    assert (half.num_samples, half.largest, half.rank_bound) == (4, 2.0, 1)
    assert effective_dimension(half, 2.0).value == 0.5


@pytest.mark.parametrize(("epsilon", "n"), [(0.0, 10), (-1.0, 10), (math.inf, 10), (math.nan, 10), (1.0, 1)])
def test_scale_out_of_range_says_what_to_pass(epsilon: float, n: int) -> None:
    with pytest.raises(ConfigurationError, match="pass a positive epsilon= and at least two training samples"):
        curvature_scale(epsilon, n)


@pytest.mark.parametrize("z", [0.0, -1.0, math.nan])
def test_scale_must_be_positive(z: float) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        effective_dimension(whole(torch.tensor([1.0])), z)


def test_scale_formula() -> None:
    assert curvature_scale(3.0, 55_001) == 3.0 / 110_000
