"""Restarts, ends, storage: the same pairs in less memory, from either end, with honest residuals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.spectra import with_eigenvalues
from torch import Tensor

from lightning_sloppy.linalg.basis import SPARE, Basis, BasisMemoryError
from lightning_sloppy.linalg.eigenpairs import Eigenpairs, rayleigh_ritz
from lightning_sloppy.linalg.eigensolver import top_eigenpairs
from lightning_sloppy.linalg.lanczos import Lanczos
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.vectors import generator, unit_gaussian
from lightning_sloppy.linalg.which import Which, chosen
from lightning_sloppy.records import Status


def sloppy(dim: int = 500) -> Tensor:
    """Many tiny eigenvalues, a sloppy top, a few negative ones."""
    top = 10 ** torch.linspace(1, -4, 60, dtype=torch.float64)
    below = -(10 ** torch.linspace(0.5, -3, 15, dtype=torch.float64))
    return with_eigenvalues(torch.cat([top, torch.zeros(dim - 75, dtype=torch.float64), below]))


def wishart(dim: int, columns: int, sign: float) -> Tensor:
    factor = torch.randn(dim, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return sign * factor @ factor.T / columns


def true_residuals(matrix: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    vectors = vectors.double()
    return torch.linalg.vector_norm(matrix.double() @ vectors - vectors * values, dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest", "both"])
@pytest.mark.parametrize("spare", [SPARE, 25, 400])
def test_the_same_pairs_in_any_memory(spare: int, which: Which, dtype: torch.dtype) -> None:
    matrix = sloppy().to(dtype)
    k = 7
    memory = (k + spare) * 500 * dtype.itemsize
    operator = DenseOperator(matrix)
    found = top_eigenpairs(
        operator, k, which=which, rng=generator(0), basis_memory=memory, eigenvectors=True, verify_multiplicity=False
    )
    values = torch.linalg.eigvalsh(matrix.double())
    torch.testing.assert_close(
        found.values, values[chosen(values, k, which)], rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9
    )
    assert found.status is Status.CONVERGED
    assert bool(found.converged.all())
    assert found.vectors is not None
    rounding = 20 * torch.finfo(dtype).eps * float(values.abs().max())
    assert bool((true_residuals(matrix, found.vectors, found.values) <= found.residuals + rounding).all())
    overlap = found.vectors.double().T @ found.vectors.double()
    torch.testing.assert_close(overlap, torch.eye(k).double(), rtol=0, atol=200 * torch.finfo(dtype).eps)
    assert found.restarts > 0 if spare == SPARE else spare < 400 or found.restarts == 0
    assert found.basis_bytes <= memory + 500 * dtype.itemsize
    assert operator.products <= 400


def test_a_restarted_basis_is_orthonormal_and_its_matrix_the_projection() -> None:
    matrix = sloppy(300)
    process = Lanczos(DenseOperator(matrix), unit_gaussian(300, generator(1)), rng=generator(2), capacity=20, most=20)
    process.advance(19)
    for _ in range(3):
        assert process.full
        values, weights = torch.linalg.eigh(process.projected())
        keep = chosen(values, 9, "magnitude")
        process.restart(values[keep], weights[:, keep])
        process.advance(100)
        basis = process.basis
        torch.testing.assert_close(basis @ basis.T, torch.eye(19).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(basis @ matrix @ basis.T, process.projected(), rtol=0, atol=1e-12)


def test_a_basis_that_does_not_fit_says_what_would() -> None:
    matrix = sloppy()
    with pytest.raises(BasisMemoryError, match="k = 4 would fit") as error:
        top_eigenpairs(DenseOperator(matrix), 10, rng=generator(0), basis_memory=14 * 500 * 8)
    assert error.value.fits == 4
    assert error.value.needed == 20 * 500 * 8
    with pytest.raises(BasisMemoryError, match="no k fits"):
        top_eigenpairs(DenseOperator(matrix), 10, rng=generator(0), basis_memory=3 * 500 * 8)


def test_low_rank_under_restarts_ends_exactly() -> None:
    matrix = with_eigenvalues(torch.cat([torch.tensor([3.0, 2.0, -1.0]).double(), torch.zeros(397).double()]))
    found = top_eigenpairs(DenseOperator(matrix), 6, rng=generator(0), basis_memory=16 * 400 * 8)
    torch.testing.assert_close(found.values, torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0, -1.0]).double(), rtol=0, atol=1e-10)
    assert found.status is Status.CONVERGED


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, -30.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_wishart_ends(sign: float, shift: float) -> None:
    for which in ("largest", "smallest"):
        matrix = wishart(320, 400, sign) + shift * torch.eye(320).double()
        values = torch.linalg.eigvalsh(matrix)
        expected = values[chosen(values, 5, which)]
        found = top_eigenpairs(DenseOperator(matrix), 5, which=which, rng=generator(0), max_products=600)
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)


def test_repeated_eigenvalues_at_both_ends_are_all_found() -> None:
    spectrum = torch.cat([torch.tensor([5.0, 5, 5, 4, -6, -6]).double(), torch.linspace(-1, 1, 314).double()])
    matrix = with_eigenvalues(spectrum)
    both = top_eigenpairs(DenseOperator(matrix), 7, which="both", rng=generator(0))
    expected = torch.tensor([5.0, 5, 5, 4, float(spectrum[6]), -6, -6]).double()
    expected[4] = spectrum.sort().values[2]
    torch.testing.assert_close(both.values, expected.sort(descending=True).values, rtol=0, atol=1e-7)
    largest = top_eigenpairs(DenseOperator(matrix), 4, which="largest", rng=generator(0))
    torch.testing.assert_close(largest.values, torch.tensor([5.0, 5, 5, 4]).double(), rtol=0, atol=1e-7)
    smallest = top_eigenpairs(DenseOperator(matrix), 2, which="smallest", rng=generator(0))
    torch.testing.assert_close(smallest.values, torch.tensor([-6.0, -6]).double(), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_three_spikes_on_a_wishart_bulk_are_found_once_each() -> None:
    rng = torch.Generator().manual_seed(0)
    factor = torch.randn(2000, 4000, generator=rng)
    spikes = torch.linalg.qr(torch.randn(2000, 3, generator=rng)).Q
    matrix = factor @ factor.T / 4000 * 0.3 + spikes @ torch.diag(torch.tensor([5.0, 4.0, 3.0])) @ spikes.T
    found = top_eigenpairs(DenseOperator(matrix), 10, rng=generator(0), verify_multiplicity=False, max_products=60)
    outliers = found.values[found.values > 2]
    assert len(outliers) == 3
    expected = torch.linalg.eigvalsh(matrix.double())[-3:].flip(0)
    torch.testing.assert_close(outliers, expected, rtol=0, atol=1e-4)


def test_a_warm_start_never_costs_a_product() -> None:
    matrix = sloppy()
    cold = DenseOperator(matrix)
    first = top_eigenpairs(cold, 6, rng=generator(0), eigenvectors=True, verify_multiplicity=False)
    skew = torch.randn(500, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 1e-3
    turn = torch.linalg.matrix_exp(skew - skew.T)
    moved = turn @ matrix @ turn.T
    again, warm = DenseOperator(moved), DenseOperator(moved)
    reference = top_eigenpairs(again, 6, rng=generator(0), verify_multiplicity=False)
    assert first.vectors is not None
    found = top_eigenpairs(warm, 6, rng=generator(0), start=first.vectors.sum(1), verify_multiplicity=False)
    torch.testing.assert_close(found.values, reference.values, rtol=0, atol=1e-7)
    assert warm.products <= again.products


def test_pairs_of_a_basis_in_half_precision_carry_their_true_residuals() -> None:
    matrix = sloppy(800).float()
    values = torch.linalg.eigvalsh(matrix.double())
    expected = values[chosen(values, 5, "magnitude")]
    operator = DenseOperator(matrix)
    found = top_eigenpairs(
        operator, 5, rng=generator(0), basis="half", eigenvectors=True, max_products=80, verify_multiplicity=False
    )
    assert found.vectors is not None
    torch.testing.assert_close(
        found.residuals, true_residuals(matrix, found.vectors, found.values), rtol=1e-2, atol=1e-5
    )
    scale = float(values.abs().max())
    assert float((found.values - expected).abs().max()) < 1e-3 * scale
    assert 1e-5 * scale < float(found.residuals.max()) < 3e-2 * scale
    full = top_eigenpairs(DenseOperator(matrix), 5, rng=generator(0), verify_multiplicity=False)
    assert found.basis_bytes / full.basis_bytes < 0.9
    assert (found.status is Status.CONVERGED) == bool(found.converged.all())


@pytest.mark.parametrize("storage", ["device", "half", "host"])
def test_a_basis_by_columns_does_what_one_tensor_does(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sloppy.linalg.basis.CHUNK_BYTES", 256)
    rows = torch.linalg.qr(torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q.T
    basis = Basis(6, 50, dtype=torch.float64, device=torch.device("cpu"), storage=storage)
    basis._direct = False
    for index, row in enumerate(rows):
        basis.put(index, row)
    stored = basis.rows(6).clone()
    assert float((stored - rows).abs().max()) < (4e-3 if storage == "half" else 1e-15)
    vector = torch.randn(50, dtype=torch.float64)
    result, coefficients = basis.project_out(vector, 1, 5)
    torch.testing.assert_close(coefficients, stored[1:5] @ vector)
    torch.testing.assert_close(result, vector - stored[1:5].T @ (stored[1:5] @ vector))
    rotation = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q
    torch.testing.assert_close(basis.combined(rotation), stored.T @ rotation)
    basis.rotate(rotation)
    allowed = 4e-3 if storage == "half" else 1e-14
    torch.testing.assert_close(basis.rows(3), rotation.T @ stored, rtol=0, atol=allowed)


def test_pairs_of_half_precision_are_not_converged_where_the_search_was_not() -> None:
    """Good pairs of a space that was left too early need not be the wanted ones."""
    matrix = sloppy()
    values, vectors = torch.linalg.eigh(matrix)
    found = Eigenpairs(
        values=values[-2:].flip(0),
        vectors=vectors[:, -2:].flip(1),
        residuals=torch.zeros(2).double(),
        converged=torch.ones(2, dtype=torch.bool),
        largest=(float(values[-1]), 0.0),
        smallest=(float(values[0]), 0.0),
        spectrum=None,
        tolerance=1e-6,
        status=Status.NOT_CONVERGED,
        method="lanczos",
    )
    assert rayleigh_ritz(DenseOperator(matrix), found).status is Status.NOT_CONVERGED
    assert rayleigh_ritz(DenseOperator(matrix), replace(found, status=Status.CONVERGED)).status is Status.CONVERGED
    spent = top_eigenpairs(DenseOperator(matrix), 5, rng=generator(0), basis="half", max_products=8)
    assert spent.status is Status.NOT_CONVERGED


def test_a_restart_keeps_the_wanted_pairs_and_half_of_the_other_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, restart = [], Lanczos.restart

    def seen(self: Lanczos, values: Tensor, rotation: Tensor) -> None:
        kept.append((len(values), self.steps))
        restart(self, values, rotation)

    monkeypatch.setattr(Lanczos, "restart", seen)
    k, rows = 5, 5 + SPARE
    top_eigenpairs(DenseOperator(sloppy()), k, rng=generator(0), basis_memory=rows * 500 * 8, verify_multiplicity=False)
    assert set(kept) == {(k + (rows - 1 - k) // 2, rows - 1)}, "one row is for the residual"


def test_a_step_goes_once_past_its_two_predecessors_and_once_past_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory traffic is that of one pass over the basis, not of two."""
    passes, project = [], Basis.project_out

    def seen(self: Basis, vector: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        passes.append(last - first)
        return project(self, vector, first, last)

    process = Lanczos(DenseOperator(sloppy()), unit_gaussian(500, generator(0)), rng=generator(1))
    monkeypatch.setattr(Basis, "project_out", seen)
    process.advance(20)
    assert passes == [rows for step in range(20) for rows in (min(step + 1, 2), step + 1)]
