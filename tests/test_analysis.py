"""The numbers of the functions against dense matrices; test_analysis_promises.py has the rest of their contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cases import Case, case, dense_gauss_newton, dense_hessian, gradients
from torch import Tensor, nn

from lightning_sloppy.analysis import Quadrature, fisher_spectrum, gauss_newton_of, hessian_spectrum, input_spectrum
from lightning_sloppy.curvature.assembly import trace_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.preserve import preserved
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.effective_dimension import effective_dimension, eigenvalue_count
from lightning_sloppy.records import Spectrum, Status


def measured(function: Callable[..., Spectrum], this: Case, *args: Any, **options: Any) -> Spectrum:
    return function(this.module, this.batches, this.loss, *args, **options)


def wide(seed: int = 0) -> Case:
    """459 parameters: too many to be formed, few enough for a dense reference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(20, 18), nn.Tanh(), nn.Linear(18, 3), nn.Linear(3, 6)).double()
        batches = [(torch.randn(n, 20, dtype=torch.float64), torch.randint(0, 6, (n,))) for n in (30, 41)]
    return Case(module, F.cross_entropy, batches)


def by_magnitude(values: Tensor, k: int) -> Tensor:
    return values[values.abs().argsort(descending=True)[:k]].sort(descending=True).values


# -- the Hessian ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 4, 1000])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "attention"])
def test_small_hessians_are_exact(name: str, k: int) -> None:
    this = case(name)
    spectrum = measured(hessian_spectrum, this, k)
    expected = torch.linalg.eigvalsh(dense_hessian(this))
    torch.testing.assert_close(spectrum.eigenvalues, by_magnitude(expected, k), atol=1e-11, rtol=1e-8)
    assert spectrum.eigenvalues.dtype == torch.float64
    assert len(spectrum.eigenvalues) == len(spectrum.residuals) == min(k, this.dim)
    assert (spectrum.largest, spectrum.smallest) == pytest.approx((float(expected[-1]), float(expected[0])))
    assert spectrum.trace is not None
    assert spectrum.trace.value == pytest.approx(float(expected.sum()))
    assert spectrum.trace.total_error == 0.0
    assert (spectrum.status, spectrum.dim, spectrum.num_samples) == (Status.EXACT, this.dim, 7)
    assert spectrum.truncated == (k < this.dim)
    assert spectrum.cost.products == this.dim
    assert spectrum.eigenvectors is None


@pytest.mark.parametrize("probes", [0, 8])
def test_functionals_of_small_hessians_are_exact_whatever_k(probes: int) -> None:
    this = case("mlp mse")
    cut, whole = measured(hessian_spectrum, this, 3, probes=probes), measured(hessian_spectrum, this, 1000)
    for function in (lambda s: effective_dimension(s, 0.1), lambda s: eigenvalue_count(s, 0.1)):
        assert function(cut).value == pytest.approx(function(whole).value, rel=1e-8)
        assert function(cut).total_error == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "kept_graph", "recomputed"])
def test_large_hessian_against_the_dense_one(method: str) -> None:
    this = wide()
    spectrum = measured(hessian_spectrum, this, 10, method=method, eigenvectors=True)
    dense = dense_hessian(this)
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(spectrum.eigenvalues, by_magnitude(values, 10), atol=1e-8, rtol=1e-8)
    assert spectrum.status is Status.CONVERGED
    assert spectrum.cost.method == ("recomputed" if method == "recomputed" else "kept_graph")
    assert spectrum.largest == pytest.approx(float(values[-1]), rel=1e-8)
    # A Ritz value lies inside the spectrum, and an eigenvalue within its residual.
    assert float(values[0]) <= spectrum.smallest + 1e-12 <= float(values[0]) + spectrum.smallest_residual + 1e-3
    vectors = spectrum.eigenvectors
    assert vectors is not None
    assert vectors.shape == (this.dim, 10)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(10, dtype=torch.float64), atol=1e-11, rtol=0)
    true = torch.linalg.vector_norm(dense @ vectors - vectors * spectrum.eigenvalues, dim=0)
    assert bool((true <= spectrum.residuals + 1e-12).all())
    assert bool((spectrum.residuals <= 1e-8 * float(values.abs().max())).all())
    assert spectrum.density is None
    assert spectrum.trace is None


@pytest.mark.slow
def test_probe_vectors_add_trace_and_whole_spectrum_with_honest_errors() -> None:
    this = wide()
    values = torch.linalg.eigvalsh(dense_hessian(this))
    inside = 0
    for seed in range(10):
        spectrum = measured(hessian_spectrum, this, 2, probes=8, steps=30, seed=seed, verify_multiplicity=False)
        assert spectrum.density is not None
        assert spectrum.density.nodes.shape == (8, 30)
        assert not spectrum.density.positive_semidefinite
        assert spectrum.trace is not None
        assert spectrum.trace.standard_error > 0
        inside += abs(spectrum.trace.value - float(values.sum())) <= 3 * spectrum.trace.standard_error
        count = eigenvalue_count(spectrum, 0.01)
        assert abs(count.value - float((values >= 0.01).sum())) <= 4 * count.standard_error + count.truncation_error
    assert inside >= 9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("features", "k"), [(4, 100), (30, 25)])
def test_linear_map_repeats_every_eigenvalue_for_each_output(features: int, k: int, dtype: torch.dtype) -> None:
    """The Hessian of a sum of squares is 2/N X^T X for each of ten outputs; 30 features make 300 parameters."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, features, generator=rng, dtype=torch.float64) * torch.linspace(3, 1, features)
    module = nn.Linear(features, 10, bias=False).to(dtype)
    batches = [(x.to(dtype), torch.zeros(50, 10, dtype=dtype))]
    spectrum = hessian_spectrum(module, batches, lambda f, y: (f - y).square().sum(1).mean(), k)
    single = torch.linalg.eigvalsh(2 / 50 * x.T @ x)
    expected = by_magnitude(single.repeat(10), k)
    scale = float(single.max())
    tolerance = (1e-8 if dtype == torch.float64 else 1e-3) * scale
    torch.testing.assert_close(spectrum.eigenvalues, expected, atol=tolerance, rtol=0)
    assert spectrum.status is (Status.EXACT if features == 4 else Status.CONVERGED)


def test_pairs_beyond_the_rank_are_zeros() -> None:
    """One sample and a linear model: rank one, and 500 parameters."""
    module = nn.Linear(500, 1, bias=False).double()
    x = torch.ones(1, 500, dtype=torch.float64)
    spectrum = hessian_spectrum(module, [(x, torch.zeros(1, 1, dtype=torch.float64))], F.mse_loss, 5)
    assert spectrum.eigenvalues.tolist() == pytest.approx([1000.0, 0, 0, 0, 0], abs=1e-9)
    assert spectrum.status is Status.CONVERGED


def test_flat_loss_has_a_zero_hessian() -> None:
    module = nn.Linear(20, 20)
    spectrum = hessian_spectrum(module, [(torch.ones(2, 20), torch.zeros(2, 20))], lambda f, y: f.mean(), 3, probes=2)
    assert spectrum.eigenvalues.tolist() == [0.0, 0.0, 0.0]
    assert spectrum.status is Status.CONVERGED
    assert effective_dimension(spectrum, 1.0).value == 0.0


def test_too_few_products_are_admitted() -> None:
    spectrum = measured(hessian_spectrum, wide(), 10, max_products=4)
    assert spectrum.status is Status.NOT_CONVERGED
    assert len(spectrum.eigenvalues) == 10
    assert spectrum.cost.products == 10
    assert float(spectrum.residuals.max()) > 1e-3 * spectrum.largest


def test_tolerance_bounds_cost_and_residuals() -> None:
    this = wide()
    loose, tight = (measured(hessian_spectrum, this, 5, tol=tol, verify_multiplicity=False) for tol in (1e-1, 1e-10))
    assert loose.cost.products < tight.cost.products
    assert float(tight.residuals.max()) <= 1e-10 * tight.largest


# -- Fisher and Gauss-Newton ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "gru", "tokens", "sequence", "linear regression"])
def test_empirical_fisher_has_all_eigenvalues_and_those_of_half_the_samples(name: str) -> None:
    this = case(name)
    rows = gradients(this)
    spectrum = measured(fisher_spectrum, this)
    count = min(7, this.dim)
    expected = torch.linalg.eigvalsh(rows.T @ rows / 7).flip(0)
    torch.testing.assert_close(spectrum.eigenvalues, expected[:count], atol=1e-12, rtol=1e-8)
    assert len(spectrum.eigenvalues) == spectrum.rank_bound == count
    assert spectrum.trace is not None
    assert spectrum.trace.value == pytest.approx(float(expected.sum()))
    assert (spectrum.status, spectrum.truncated, spectrum.matrix) == (Status.EXACT, False, "fisher_empirical")
    half = torch.linalg.eigvalsh(rows[:3].T @ rows[:3] / 3).flip(0)[: min(3, this.dim)]
    assert spectrum.half_eigenvalues is not None
    torch.testing.assert_close(spectrum.half_eigenvalues, half, atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "mlp mse", "mlp bce", "softmax regression", "attention"])
def test_exact_fisher_is_the_gauss_newton_matrix(name: str) -> None:
    this = case(name)
    spectrum = measured(fisher_spectrum, this, "exact")
    count = min(21, this.dim)
    expected = torch.linalg.eigvalsh(dense_gauss_newton(this)).flip(0)[:count]
    torch.testing.assert_close(spectrum.eigenvalues, expected, atol=1e-11, rtol=1e-8)
    alone = measured(fisher_spectrum, Case(this.module, this.loss, this.batches[:1]), "exact")
    assert spectrum.half_eigenvalues is not None
    torch.testing.assert_close(spectrum.half_eigenvalues[: min(9, this.dim)], alone.eigenvalues, atol=1e-11, rtol=1e-8)


def test_exact_fisher_of_softmax_regression_is_the_hessian() -> None:
    this = case("softmax regression")
    fisher, hessian = measured(fisher_spectrum, this, "exact"), measured(hessian_spectrum, this, 1000)
    torch.testing.assert_close(fisher.eigenvalues, hessian.eigenvalues, atol=1e-12, rtol=1e-8)


def test_one_sample_is_enough_and_has_no_half() -> None:
    spectrum = measured(fisher_spectrum, case("mlp", (1,)))
    assert len(spectrum.eigenvalues) == 1
    assert spectrum.half_eigenvalues is None


def gauss_newton(this: Case, steps: int = 40) -> Spectrum:
    objective = Objective(this.module, this.loss)
    with preserved(this.module):
        return gauss_newton_of(
            objective,
            objective.prepare(this.batches),
            quadrature=Quadrature(rademacher(this.dim, 4, generator(1)), steps),
            rng=generator(0),
        )


@pytest.mark.parametrize("this", [case("mlp"), wide()], ids=["formed", "by quadrature"])
def test_gauss_newton_spectrum(this: Case) -> None:
    spectrum = gauss_newton(this)
    values = torch.linalg.eigvalsh(dense_gauss_newton(this))
    assert spectrum.largest == pytest.approx(float(values[-1]), rel=1e-8)
    assert -spectrum.floor <= spectrum.smallest <= 1e-4 * spectrum.largest
    assert spectrum.trace is not None
    assert abs(spectrum.trace.value - float(values.sum())) <= 4 * spectrum.trace.standard_error + 1e-9
    estimate = effective_dimension(spectrum, 1e-2)
    truth = float((values.clamp_min(0) / (values.clamp_min(0) + 1e-2)).sum())
    assert abs(estimate.value - truth) <= 4 * estimate.standard_error + estimate.truncation_error + 1e-9
    assert estimate.status.ok


def test_gauss_newton_of_a_loss_that_is_not_convex_promises_no_bracket() -> None:
    this = wide()

    def wavy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (3 * outputs).cos().sum(1).mean()

    spectrum = gauss_newton(Case(this.module, wavy, this.batches))
    assert spectrum.smallest < -spectrum.floor
    assert spectrum.density is not None
    assert not spectrum.density.positive_semidefinite
    convex = gauss_newton(this).density
    assert convex is not None
    assert convex.positive_semidefinite


def test_gauss_newton_that_is_not_finite_has_a_status() -> None:
    this = wide()
    this.batches[0][0][0, 0] = torch.inf
    assert gauss_newton(this).status is Status.NON_FINITE


def test_input_spectrum_is_reexported() -> None:
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.eigvalsh(torch.cov(inputs.T, correction=0)).flip(0)
    torch.testing.assert_close(input_spectrum(inputs, kind="covariance").eigenvalues, expected)


@pytest.mark.parametrize("spectrum", [hessian_spectrum, fisher_spectrum])
@pytest.mark.parametrize("loss", [None, "cross_entropy"])
def test_a_loss_that_is_none_is_refused(spectrum, loss):
    with pytest.raises(ConfigurationError, match=f"The loss must be a function of .outputs, targets., but {loss!r}"):
        spectrum(torch.nn.Linear(2, 2), [(torch.ones(3, 2), torch.zeros(3).long())], loss)


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("sizes", [(5, 6), (11,)])
def test_fisher_eigenvectors_are_of_unit_length_and_those_of_the_dense_matrix(kind: str, sizes: tuple) -> None:
    this = case("mlp", sizes)
    found = fisher_spectrum(this.module, this.batches, this.loss, kind=kind, k=4, eigenvectors=True)
    parameters = [p for p in this.module.parameters() if p.requires_grad]
    if kind == "empirical":
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(this.loss(this.module(x[None]), y[None]), parameters)])
            for inputs, targets in this.batches
            for x, y in zip(inputs, targets, strict=True)
        ]
        matrix = torch.stack(rows).T @ torch.stack(rows) / this.count
    else:
        matrix = dense_gauss_newton(this)
    vectors = found.eigenvectors.double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix @ vectors, vectors * found.eigenvalues[:4], rtol=1e-8, atol=1e-12)


def test_floors_are_above_the_rounding_and_not_far_above_it() -> None:
    """From both sides: zeros of a matrix of known rank lie below, and what is a millionth of the largest above."""
    torch.manual_seed(0)
    module = nn.Linear(40, 3)
    inputs = torch.randn(60, 40) * 10 ** torch.linspace(0, -2.5, 40)
    inputs = torch.cat([inputs, inputs])  # 120 rows of rank 60
    targets = torch.randint(3, (60,)).repeat(2)
    found = fisher_spectrum(module, [(inputs, targets)], nn.CrossEntropyLoss())
    eps = torch.finfo(torch.float32).eps
    largest = float(found.eigenvalues[0])
    assert eps * largest < found.floor <= 16 * eps * largest
    assert int((found.eigenvalues > found.floor).sum()) <= 60
    assert float(found.eigenvalues[60:].abs().max()) < found.floor
    exact = fisher_spectrum(module, [(inputs, targets)], nn.CrossEntropyLoss(), precision="float64")
    assert exact.floor < 1e-6 * found.floor
    resolved = exact.eigenvalues[exact.eigenvalues > 3 * found.floor]
    assert int((found.eigenvalues > found.floor).sum()) >= len(resolved) > 10
    wide = nn.Linear(100, 3)  # more than 256 parameters: by products
    pairs = hessian_spectrum(wide, [(torch.randn(50, 100), torch.randint(3, (50,)))], nn.CrossEntropyLoss(), k=2)
    assert eps * pairs.largest < pairs.floor <= 16 * eps * pairs.largest


def test_the_smallest_eigenvalue_of_a_fisher_matrix_is_zero_where_samples_are_fewer_than_parameters() -> None:
    for sizes in ((3, 4), (60, 61)):
        this = case("linear regression", sizes)
        rows = gradients(this)
        right = torch.linalg.eigvalsh(rows.T @ rows / this.count)
        found = measured(fisher_spectrum, this)
        fewer = this.count < this.dim
        assert found.smallest == pytest.approx(0.0 if fewer else float(right[0]), rel=1e-8, abs=1e-15)
        assert (float(found.eigenvalues[-1]) > 1e-6) or not fewer
    few = case("mlp", (3, 2))
    assert measured(fisher_spectrum, few).smallest == 0.0
    assert float(measured(fisher_spectrum, few).eigenvalues[-1]) > 0


@pytest.mark.parametrize("count", [2, 5, 16])
def test_the_trace_of_probe_vectors_and_its_error_by_hand(count: int) -> None:
    matrix = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    vectors = rademacher(30, count, generator(1)).double()
    density = lanczos_density(DenseOperator(matrix), vectors, steps=1, rng=generator(0), positive_semidefinite=True)
    found = trace_of(None, density)
    products = torch.einsum("ci,ij,cj->c", vectors, matrix, vectors)
    assert found.value == pytest.approx(float(products.mean()), rel=1e-10)
    assert found.standard_error == pytest.approx(float(products.std(correction=1)) / count**0.5, rel=1e-10)


def test_probe_vectors_are_doubled_until_the_trace_is_known_and_none_is_used_twice() -> None:
    this = wide()
    counts = {}
    for rel_error in (1.0, 1e-6):
        found = measured(hessian_spectrum, this, k=2, probes="auto", steps=4, rel_error=rel_error)
        density = found.density
        counts[rel_error] = len(density.diagonals)
        first = {round(float(diagonal[0]), 12) for diagonal in density.diagonals}
        assert len(first) == len(density.diagonals)
    assert counts == {1.0: 4, 1e-6: 64}


@pytest.mark.slow
def test_the_error_that_is_wanted_is_relative_to_the_trace() -> None:
    """A loss in other units has as many probe vectors."""
    this, counts = wide(), []
    for unit in (1e-3, 1.0, 1e3):

        def loss(outputs: Tensor, targets: Tensor, unit: float = unit) -> Tensor:
            return unit * F.cross_entropy(outputs, targets)

        found = hessian_spectrum(this.module, this.batches, loss, k=2, probes="auto", steps=4, rel_error=0.15)
        counts.append(len(found.density.diagonals))
        assert found.trace.standard_error <= 0.15 * abs(found.trace.value) or counts[-1] == 64
    assert counts == [counts[1]] * 3
