from __future__ import annotations

import pytest
import torch
from support.spectra import PoisonedOperator, padded, rotation, with_eigenvalues
from torch import Tensor

from lightning_sloppy.linalg.eigenpairs import Eigenpairs
from lightning_sloppy.linalg.eigensolver import default_tolerance, top_eigenpairs
from lightning_sloppy.linalg.lanczos import NonFiniteProductError
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.records import Status


def spiked(size: int = 400) -> Tensor:
    """Spikes 5, 4 and 3 on a Wishart bulk that ends near 1."""
    rng = torch.Generator().manual_seed(1)
    sample = torch.randn(size, size // 4, generator=rng, dtype=torch.float64)
    basis = rotation(size)[:, :3]
    wishart = sample @ sample.T / size / 2.3
    return wishart + basis * torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64) @ basis.T


MATRICES = {
    "spiked": spiked(),
    "decaying": with_eigenvalues(2.0 ** -torch.arange(300, dtype=torch.float64)),
    "rank three": with_eigenvalues(padded(300, 3.0, 2.0, 1.0)),
    "negative end": with_eigenvalues(torch.cat([torch.tensor([-9.0, -5.0]), torch.linspace(-1, 4, 298)])),
    "negative definite": -with_eigenvalues(torch.linspace(1, 2, 300).double() ** 8),
    "zero": torch.zeros(300, 300, dtype=torch.float64),
    "small": with_eigenvalues(torch.tensor([-2.0, -1.0, 3.0, 4.0, 5.0])),
}


def dense_top(matrix: Tensor, k: int) -> Tensor:
    values = torch.linalg.eigvalsh(matrix.double())
    return values[values.abs().argsort(descending=True)[:k]].sort(descending=True).values


def assert_honest(found: Eigenpairs, matrix: Tensor, dtype: torch.dtype) -> None:
    """Orthonormal vectors, and true residuals no larger than reported, up to rounding."""
    scale = max(float(torch.linalg.matrix_norm(matrix.double(), 2)), 1e-30)
    eps = torch.finfo(dtype).eps
    vectors = found.vectors.double()
    eye = torch.eye(vectors.shape[1], dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ vectors, eye, atol=100 * eps, rtol=0)
    true = torch.linalg.vector_norm(matrix.double() @ vectors - vectors * found.values, dim=0)
    assert bool((true <= found.residuals * (1 + 1e-6) + 100 * eps * scale).all())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("name", MATRICES)
def test_top_pairs_of_prescribed_spectra(name: str, k: int, dtype: torch.dtype) -> None:
    matrix = MATRICES[name].to(dtype)
    operator = DenseOperator(matrix)
    found = top_eigenpairs(operator, k, eigenvectors=True, rng=generator(0))
    wanted = min(k, len(matrix))
    expected = dense_top(matrix, wanted)
    scale = float(torch.linalg.matrix_norm(matrix.double(), 2))
    assert found.values.shape == found.residuals.shape == (wanted,)
    assert found.values.dtype == torch.float64
    assert found.vectors.shape == (len(matrix), wanted)
    assert found.vectors.dtype == dtype
    assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)
    torch.testing.assert_close(found.values, expected, atol=default_tolerance(dtype) * scale, rtol=0)
    assert found.status is (Status.EXACT if len(matrix) <= 256 else Status.CONVERGED)
    assert found.tolerance == pytest.approx(default_tolerance(dtype) * scale, rel=1e-2)
    assert bool((found.residuals <= found.tolerance).all())
    assert_honest(found, matrix, dtype)


@pytest.mark.parametrize("k", [5, 9])
def test_more_pairs_than_dimensions(k: int) -> None:
    found = top_eigenpairs(DenseOperator(MATRICES["small"]), k, eigenvectors=True, rng=generator(0))
    assert found.values.tolist() == pytest.approx([5.0, 4.0, 3.0, -1.0, -2.0])
    assert found.spectrum is not None
    assert (found.smallest[0], found.largest[0]) == pytest.approx((-2.0, 5.0))


def test_more_pairs_than_dimensions_without_forming_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sloppy.linalg.eigensolver.DENSE_LIMIT", 0)
    found = top_eigenpairs(DenseOperator(MATRICES["small"]), 9, eigenvectors=True, rng=generator(0))
    assert found.values.tolist() == pytest.approx([5.0, 4.0, 3.0, -1.0, -2.0])
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [3, 7, 12])
def test_repeated_eigenvalues_are_found_with_their_multiplicity(k: int, dtype: torch.dtype) -> None:
    values = torch.cat([torch.tensor([5.0] * 4 + [-4.0] * 3 + [3.0] * 3), torch.linspace(0, 1, 290)])
    matrix = with_eigenvalues(values).to(dtype)
    found = top_eigenpairs(DenseOperator(matrix), k, eigenvectors=True, rng=generator(0))
    expected = dense_top(matrix, k)
    torch.testing.assert_close(found.values, expected, atol=5 * default_tolerance(dtype), rtol=0)
    assert found.status is Status.CONVERGED
    assert_honest(found, matrix, dtype)


def test_unverified_multiplicity_costs_less_and_sees_one_copy() -> None:
    values = torch.cat([torch.tensor([5.0, 5.0, 3.0]), torch.linspace(0, 1, 297)])
    matrix = with_eigenvalues(values)
    plain, verified = DenseOperator(matrix), DenseOperator(matrix)
    single = top_eigenpairs(plain, 2, eigenvectors=True, rng=generator(0), verify_multiplicity=False)
    double = top_eigenpairs(verified, 2, eigenvectors=True, rng=generator(0), verify_multiplicity=True)
    assert single.values.tolist() == pytest.approx([5.0, 3.0])
    assert double.values.tolist() == pytest.approx([5.0, 5.0])
    assert plain.products < verified.products


def test_a_hidden_copy_of_the_negative_end_is_reported_as_smallest() -> None:
    values = torch.cat([torch.tensor([-5.0, -5.0, 4.0]), torch.linspace(0, 1, 297)])
    found = top_eigenpairs(DenseOperator(with_eigenvalues(values)), 3, eigenvectors=True, rng=generator(0))
    assert found.values.tolist() == pytest.approx([4.0, -5.0, -5.0])
    assert found.smallest[0] == pytest.approx(-5.0)
    assert found.largest[0] == pytest.approx(4.0)


@pytest.mark.parametrize("budget", [1, 6, 20])
def test_bounded_products_end_as_not_converged_with_all_the_pairs(budget: int) -> None:
    matrix = with_eigenvalues(torch.linspace(0, 1, 400))
    operator = DenseOperator(matrix)
    found = top_eigenpairs(operator, 6, eigenvectors=True, rng=generator(0), max_products=budget)
    assert found.status is Status.NOT_CONVERGED
    assert operator.products == max(budget, 6)
    assert len(found.values) == 6
    assert float(found.residuals.max()) > found.tolerance
    assert_honest(found, matrix, torch.float64)


def test_budget_that_ends_before_the_verification_is_not_called_converged() -> None:
    matrix = with_eigenvalues(torch.cat([torch.tensor([5.0, 5.0, 3.0]), torch.linspace(0, 1, 297)]))
    free = DenseOperator(matrix)
    top_eigenpairs(free, 2, eigenvectors=True, rng=generator(0), verify_multiplicity=False)
    for spare in (0, 3):
        found = top_eigenpairs(
            DenseOperator(matrix), 2, eigenvectors=True, rng=generator(0), max_products=free.products + spare
        )
        assert found.status is Status.NOT_CONVERGED


@pytest.mark.parametrize(("size", "after"), [(20, 3), (300, 0), (300, 15)])
def test_nan_in_a_product_is_an_error(size: int, after: int) -> None:
    operator = PoisonedOperator(with_eigenvalues(torch.linspace(1, 2, size)), after)
    with pytest.raises(NonFiniteProductError):
        top_eigenpairs(operator, 5, eigenvectors=True, rng=generator(0))


def test_same_seed_same_pairs() -> None:
    first, second = (
        top_eigenpairs(DenseOperator(MATRICES["spiked"]), 4, eigenvectors=True, rng=generator(5)) for _ in range(2)
    )
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_residuals_of_loose_solves_are_upper_bounds(seed: int) -> None:
    """Also those found by the second search, whose own residual misses what lies along the first."""
    values = torch.cat([torch.tensor([5.0, 5.0, 4.0, 4.0]), torch.linspace(0, 3.8, 296)])
    matrix = with_eigenvalues(values, seed)
    found = top_eigenpairs(DenseOperator(matrix), 4, eigenvectors=True, rng=generator(seed), tol=3e-2)
    assert_honest(found, matrix, torch.float64)
