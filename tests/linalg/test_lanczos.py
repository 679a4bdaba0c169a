from __future__ import annotations

import pytest
import torch
from support.spectra import PoisonedOperator, padded, with_eigenvalues
from torch import Tensor

from lightning_sloppy.linalg.lanczos import Lanczos, NonFiniteProductError
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.vectors import generator, unit_gaussian


def started(matrix: Tensor, *, capacity: int = 48, locked: Tensor | None = None) -> Lanczos:
    start = unit_gaussian(len(matrix), generator(3))
    return Lanczos(DenseOperator(matrix), start, rng=generator(4), capacity=capacity, locked=locked)


def assert_projection(process: Lanczos, matrix: Tensor, tolerance: float) -> None:
    basis = process.basis.double()
    eye = torch.eye(len(basis), dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, eye, atol=tolerance, rtol=0)
    torch.testing.assert_close(basis @ matrix.double() @ basis.T, process.projected(), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("chunk", [1, 3, 13])
def test_basis_is_orthonormal_and_t_is_the_projection(dtype: torch.dtype, tolerance: float, chunk: int) -> None:
    matrix = with_eigenvalues(torch.arange(1, 2 + 1e-9, 1 / 12, dtype=torch.float64)).to(dtype)
    process = started(matrix, capacity=2)
    while not process.exhausted:
        process.advance(chunk)
        assert_projection(process, matrix, tolerance)
    values = torch.linalg.eigvalsh(process.projected())
    torch.testing.assert_close(values, torch.linspace(1, 2, 13, dtype=torch.float64), atol=tolerance, rtol=0)


def test_last_entry_is_the_norm_of_the_residual() -> None:
    matrix = with_eigenvalues(torch.linspace(-1, 4, 60))
    process = started(matrix)
    process.advance(12)
    residual = matrix @ process.basis.T - process.basis.T @ process.projected()
    assert float(residual[:, :-1].abs().max()) < 1e-12
    norm = float(torch.linalg.vector_norm(residual[:, -1]))
    assert norm == pytest.approx(float(process.offdiagonal[-1]), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [1, 7])
def test_breakdown_restarts_without_inventing_eigenvalues(dtype: torch.dtype, chunk: int) -> None:
    matrix = with_eigenvalues(padded(100, 3.0, 2.0, -1.0)).to(dtype)
    process = started(matrix)
    while process.steps < 20:
        process.advance(chunk)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_projection(process, matrix, tolerance)
    values = torch.linalg.eigvalsh(process.projected())
    assert values[values.abs() > tolerance].tolist() == pytest.approx([-1.0, 2.0, 3.0], abs=tolerance)
    # The Krylov space of a matrix of rank three has four dimensions.
    assert int((process.offdiagonal == 0).nonzero()[0]) == 3


def test_zero_matrix_is_a_sequence_of_breakdowns() -> None:
    process = started(torch.zeros(9, 9, dtype=torch.float64))
    while not process.exhausted:
        process.advance(4)
    assert float(process.projected().abs().max()) == 0.0
    assert_projection(process, torch.zeros(9, 9), 1e-12)


def test_locked_directions_are_never_entered() -> None:
    matrix = with_eigenvalues(torch.arange(1.0, 31.0))
    vectors = torch.linalg.eigh(matrix).eigenvectors
    locked = vectors[:, -3:].T.contiguous()
    process = started(matrix, locked=locked)
    while not process.exhausted:
        process.advance(5)
    assert process.steps == 27
    assert float((process.basis @ locked.T).abs().max()) < 1e-12
    values = torch.linalg.eigvalsh(process.projected())
    torch.testing.assert_close(values, torch.arange(1.0, 28.0, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("after", [0, 2])
def test_product_with_nan_is_an_error(after: int) -> None:
    operator = PoisonedOperator(with_eigenvalues(torch.arange(1.0, 10.0)), after)
    process = Lanczos(operator, torch.ones(9), rng=generator(0))
    with pytest.raises(NonFiniteProductError):
        process.advance(5)


def test_more_steps_than_dimensions_stop_at_the_dimension() -> None:
    process = started(with_eigenvalues(torch.arange(1.0, 6.0)))
    process.advance(50)
    process.advance(1)
    assert process.steps == 5
    assert process.operator.products == 5
