from __future__ import annotations

import pytest
import torch
from support.spectra import PoisonedOperator, padded, with_eigenvalues
from torch import Tensor

from lightning_sloppy.linalg.lanczos import NonFiniteProductError
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import exact_density, gauss, gauss_radau, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.records import Density


def density_of(matrix: Tensor, steps: int, vectors: int = 1, seed: int = 0) -> tuple[Density, Tensor]:
    probes = rademacher(len(matrix), vectors, generator(seed))
    density = lanczos_density(
        DenseOperator(matrix), probes, steps=steps, rng=generator(9), positive_semidefinite=bool(matrix.trace() > 0)
    )
    return density, probes


def exact_moment(matrix: Tensor, vector: Tensor, power: int) -> float:
    vector = vector.double() / len(vector) ** 0.5
    return float(vector @ torch.linalg.matrix_power(matrix, power) @ vector)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_integrates_polynomials_up_to_twice_its_depth(steps: int) -> None:
    matrix = with_eigenvalues(torch.linspace(-1, 2, 40))
    density, (vector,) = density_of(matrix, steps)
    nodes, weights = gauss(density.diagonals[0], density.offdiagonals[0])
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)
    assert nodes.tolist() == sorted(nodes.tolist())
    for power in range(2 * steps):
        value = float((weights * nodes**power).sum())
        assert value == pytest.approx(exact_moment(matrix, vector, power), abs=1e-10)
    beyond = float((weights * nodes ** (2 * steps)).sum())
    assert beyond != pytest.approx(exact_moment(matrix, vector, 2 * steps), rel=1e-8)


@pytest.mark.parametrize("node", [-1.5, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_radau_has_the_node_and_one_degree_more(steps: int, node: float) -> None:
    matrix = with_eigenvalues(torch.linspace(-1, 2, 40))
    density, (vector,) = density_of(matrix, steps)
    nodes, weights = gauss_radau(density.diagonals[0], density.offdiagonals[0], node)
    assert len(nodes) == steps + 1
    assert float((nodes - node).abs().min()) < 1e-10
    for power in range(2 * steps + 1):
        value = float((weights * nodes**power).sum())
        assert value == pytest.approx(exact_moment(matrix, vector, power), rel=1e-8, abs=1e-9)


def test_prescribed_node_that_the_gauss_rule_has_already_changes_nothing() -> None:
    diagonal, offdiagonal = torch.tensor([2.0, 2.0]).double(), torch.tensor([1.0, 0.5]).double()
    for node in (1.0, 3.0):
        nodes, weights = gauss_radau(diagonal, offdiagonal, node)
        inside = nodes.abs() < 100
        assert nodes[inside].tolist() == pytest.approx([1.0, 3.0])
        assert weights[inside].tolist() == pytest.approx([0.5, 0.5])


def test_exhausted_rule_is_exact_and_stays_as_it_is() -> None:
    matrix = with_eigenvalues(padded(60, 4.0, 2.0, 1.0))
    density, (vector,) = density_of(matrix, 20)
    assert len(density.diagonals[0]) == 4
    assert float(density.offdiagonals[0][-1]) == 0.0
    radau = gauss_radau(density.diagonals[0], density.offdiagonals[0], 0.5)
    assert torch.equal(radau[0], gauss(density.diagonals[0], density.offdiagonals[0])[0])
    values, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ vector.double()) ** 2
    expected = [float(weights[:-3].sum()), *weights[-3:].tolist()]
    assert density.weights[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert density.nodes[0].tolist() == pytest.approx([0.0, *values[-3:].tolist()], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 50, 90])
def test_mass_trace_and_second_moment_of_the_density(steps: int) -> None:
    """Rademacher vectors integrate a diagonal matrix without error; every row is padded with mass zero."""
    values = torch.linspace(1, 5, 50).double()
    density, _ = density_of(torch.diag(values), steps, vectors=3)
    assert density.nodes.shape == density.weights.shape == (3, min(steps, 50))
    assert density.weights.sum(1).tolist() == pytest.approx([50.0] * 3)
    assert (density.weights * density.nodes).sum(1).tolist() == pytest.approx([float(values.sum())] * 3)
    if steps > 1:
        squares = float(values.square().sum())
        assert (density.weights * density.nodes**2).sum(1).tolist() == pytest.approx([squares] * 3)


def test_rows_of_different_depth_are_padded_with_zeros() -> None:
    matrix = torch.diag(torch.linspace(1, 2, 12)).double()
    probes = rademacher(12, 2, generator(0)).double()
    probes[0] = 0
    probes[0, 4] = 12**0.5
    density = lanczos_density(DenseOperator(matrix), probes, steps=6, rng=generator(0), positive_semidefinite=True)
    assert [len(d) for d in density.diagonals] == [1, 6]
    assert density.weights[0].tolist() == pytest.approx([12.0, 0, 0, 0, 0, 0])
    assert density.nodes[0, 0] == pytest.approx(float(matrix[4, 4]))


def test_two_atoms_have_half_the_mass_each() -> None:
    matrix = torch.diag(torch.tensor([1.0, 5.0]).repeat(30)).double()
    density, _ = density_of(matrix, 40, vectors=2)
    assert density.nodes.shape == (2, 2)
    torch.testing.assert_close(density.nodes, torch.tensor([[1.0, 5.0]] * 2).double())
    torch.testing.assert_close(density.weights, torch.full((2, 2), 30.0).double())


def test_enough_stops_each_vector_on_its_own() -> None:
    matrix = with_eigenvalues(torch.linspace(0, 1, 80))
    asked: list[int] = []

    def enough(diagonal: Tensor, offdiagonal: Tensor) -> bool:
        assert len(diagonal) == len(offdiagonal)
        asked.append(len(diagonal))
        return len(diagonal) >= 20

    operator = DenseOperator(matrix)
    density = lanczos_density(
        operator,
        rademacher(80, 2, generator(0)),
        steps=60,
        rng=generator(0),
        positive_semidefinite=True,
        enough=enough,
    )
    assert asked == [10, 20, 10, 20]
    assert operator.products == 40
    assert density.nodes.shape == (2, 20)


def test_nan_in_a_product_is_an_error() -> None:
    operator = PoisonedOperator(with_eigenvalues(torch.linspace(1, 2, 30)), after=12)
    with pytest.raises(NonFiniteProductError):
        lanczos_density(
            operator, rademacher(30, 2, generator(0)), steps=9, rng=generator(0), positive_semidefinite=True
        )


@pytest.mark.slow
def test_trace_of_a_rotated_matrix_within_its_standard_error() -> None:
    """Hutchinson: unrotated, the variance of signs is zero. The first entry of T is v^T A v / p."""
    size, vectors = 80, 20
    values = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    matrix = with_eigenvalues(values)
    inside = 0
    seeds = 300
    for seed in range(seeds):
        density, _ = density_of(matrix, 1, vectors, seed)
        samples = torch.stack([diagonal[0] for diagonal in density.diagonals]) * size
        error = float(samples.std()) / vectors**0.5
        inside += abs(float(samples.mean()) - float(values.sum())) <= 3 * error
    # With 20 vectors the error of the error matters: Student's t has .993 inside 3.
    assert inside / seeds >= 0.97


@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(-2, 3, 37),
        torch.tensor([4.0, 1.0, 0.0]),
        padded(100, 5.0, 5.0, 2.0, -1.0),
        torch.zeros(6),
        torch.tensor([2.0]),
    ],
)
def test_exact_density_is_the_spectrum(values: Tensor) -> None:
    values = values.double()
    density = exact_density(values.sort(descending=True).values, positive_semidefinite=False)
    assert all(float(off[-1]) == 0.0 for off in density.offdiagonals)
    torch.testing.assert_close(density.nodes[0], density.nodes[1], atol=0, rtol=0)
    unique, counts = values.unique(return_counts=True)
    torch.testing.assert_close(density.nodes[0], unique, atol=1e-9, rtol=0)
    torch.testing.assert_close(density.weights[0], counts.double(), atol=1e-6, rtol=0)
