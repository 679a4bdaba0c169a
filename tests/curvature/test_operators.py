"""Products with the Hessian and the Gauss-Newton matrix against the dense matrices of plain autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from support.cases import NAMES, Case, case, dense_gauss_newton, dense_hessian
from torch import nn

from lightning_sloppy.curvature.assembly import basis_memory
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.curvature.memory import counted_graph
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.curvature.spectra import Solve, hessian_of
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import generator

METHODS: tuple[Method, ...] = ("kept_graph", "recomputed")
OPERATORS = {"hessian": (HessianOperator, dense_hessian), "gauss-newton": (GaussNewtonOperator, dense_gauss_newton)}
TOLERANCE = {"atol": 1e-11, "rtol": 1e-8}


def operator(kind: type, case: Case, method: Method = "auto") -> SymmetricOperator:
    return kind(Objective(case.module, case.loss), ParameterLayout.of(case.module), case.batches, method=method)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_dense_matrix(name: str, kind: str) -> None:
    this = case(name)
    build, reference = OPERATORS[kind]
    expected = reference(this)
    with double_backward(this.module):
        for method in METHODS:
            products = operator(build, this, method)
            torch.testing.assert_close(products.dense(), expected, **TOLERANCE)
            vectors = torch.randn(this.dim, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(products.matmat(vectors), expected @ vectors, **TOLERANCE)
            assert products.method == method


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("name", ["mlp", "mlp mse"])
def test_an_average_without_weights_would_fail(name: str, kind: str) -> None:
    this = case(name)
    build, reference = OPERATORS[kind]
    apart = [reference(Case(this.module, this.loss, [batch])) for batch in this.batches]
    product = operator(build, this).dense()
    torch.testing.assert_close(product, apart[0] * 3 / 7 + apart[1] * 4 / 7, **TOLERANCE)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(product, (apart[0] + apart[1]) / 2, **TOLERANCE)


def test_linear_regression_in_closed_form() -> None:
    this = case("linear regression", (16,))
    x = this.batches[0][0]
    expected = 2 / 16 * x.T @ x
    for build in (HessianOperator, GaussNewtonOperator):
        torch.testing.assert_close(operator(build, this).dense(), expected, **TOLERANCE)


def test_logistic_regression_in_closed_form() -> None:
    this = case("linear regression", (9, 4))
    flags = [(x, (y > 0).double()) for x, y in this.batches]
    logistic = Case(this.module, F.binary_cross_entropy_with_logits, flags)
    x = torch.cat([x for x, _ in flags])
    probability = this.module(x).sigmoid().detach()
    expected = x.T @ (probability * (1 - probability) * x) / 13
    for build in (HessianOperator, GaussNewtonOperator):
        torch.testing.assert_close(operator(build, logistic).dense(), expected, **TOLERANCE)


def test_softmax_regression_in_closed_form() -> None:
    this = case("softmax regression", (7, 5))
    x = torch.cat([x for x, _ in this.batches])
    probability = this.module(x).softmax(1).detach()
    weighted = torch.diag_embed(probability) - probability.unsqueeze(2) * probability.unsqueeze(1)
    weight = torch.stack([torch.kron(s, torch.outer(a, a)) for s, a in zip(weighted, x, strict=True)]).mean(0)
    bias = weighted.mean(0)
    for build in (HessianOperator, GaussNewtonOperator):
        dense = operator(build, this).dense()
        torch.testing.assert_close(dense[:12, :12], weight, **TOLERANCE)
        torch.testing.assert_close(dense[12:, 12:], bias, **TOLERANCE)


@pytest.mark.parametrize("kind", OPERATORS)
def test_same_product_twice_and_in_float32(kind: str) -> None:
    this = case("mlp")
    build, reference = OPERATORS[kind]
    vector = torch.ones(this.dim, dtype=torch.float64)
    products = operator(build, this)
    assert torch.equal(products.matvec(vector), products.matvec(vector))
    expected = reference(this)
    small = Case(this.module.float(), this.loss, [(x.float(), y) for x, y in this.batches])
    torch.testing.assert_close(operator(build, small).dense(), expected, atol=1e-6, rtol=1e-4)


def test_loss_is_the_weighted_mean() -> None:
    this = case("mlp")
    expected = sum(float(this.loss(this.module(x).detach(), y)) * len(y) / 7 for x, y in this.batches)
    objective, layout = Objective(this.module, this.loss), ParameterLayout.of(this.module)
    spectrum = hessian_of(objective, this.batches, solve=Solve(k=1), rng=generator(0))
    assert spectrum.detail["loss"] == pytest.approx(expected, rel=1e-12)
    assert float(objective.mean_loss(layout.leaves(this.module, torch.float64), this.batches).detach()) == (
        pytest.approx(expected, rel=1e-12)
    )


def test_loss_without_curvature_gives_zero() -> None:
    this = case("linear regression")
    linear = Case(this.module, lambda outputs, targets: outputs.mean(), this.batches)
    constant = Case(this.module, lambda outputs, targets: targets.mean(), this.batches)
    for without in (linear, constant):
        for build in (HessianOperator, GaussNewtonOperator):
            for method in METHODS:
                assert float(operator(build, without, method).dense().abs().max()) == 0.0


def test_graphs_that_would_not_fit_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    this = case("mlp")
    for build in (HessianOperator, GaussNewtonOperator):
        assert operator(build, this).method == "kept_graph"
    monkeypatch.setattr("lightning_sloppy.curvature.kept_graph.free_bytes", lambda device: 100)
    for build in (HessianOperator, GaussNewtonOperator):
        assert operator(build, this).method == "recomputed, micro-batches of 1"
        assert operator(build, this, "kept_graph").method == "kept_graph"


def test_gauss_newton_takes_the_outputs_that_the_loss_uses_and_needs_them_apart() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), x

    batches = [(torch.ones(2, 4), torch.zeros(2, 3))]
    module = Pair()
    objective = Objective(module, lambda outputs, targets: F.mse_loss(outputs[0], targets))
    alone = Objective(module.layer, F.mse_loss)
    torch.testing.assert_close(
        GaussNewtonOperator(objective, ParameterLayout.of(module), batches).dense(),
        GaussNewtonOperator(alone, ParameterLayout.of(module.layer), batches).dense(),
    )
    with pytest.raises(UnsupportedError, match="pass loss_fn="):
        GaussNewtonOperator(Objective(module, None), ParameterLayout.of(module), batches)


@pytest.mark.parametrize("build", [HessianOperator, GaussNewtonOperator])
def test_the_graphs_of_all_batches_are_held_against_the_budget(build: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one fits and all do not, none is kept, and no batch is divided."""
    this, seen = case("mlp", (6, 6, 6)), []

    @contextmanager
    def counted() -> Iterator[list[int]]:
        with counted_graph() as found:
            yield found
        seen.append(found[0])

    monkeypatch.setattr("lightning_sloppy.curvature.kept_graph.counted_graph", counted)
    assert operator(build, this, "kept_graph").method == "kept_graph"
    assert seen[0] > 0
    free = 4 * seen[0]  # a quarter of it is the budget
    for room, method in ((1.5, "recomputed"), (2.9, "recomputed"), (3.6, "kept_graph")):
        monkeypatch.setattr("lightning_sloppy.curvature.kept_graph.free_bytes", lambda device, room=room: room * free)
        assert operator(build, this).method == method


def test_a_tensor_that_a_graph_keeps_twice_is_counted_once() -> None:
    leaf = torch.randn(1000, requires_grad=True)
    with counted_graph() as found:
        kept = leaf.exp()  # keeps what it gives
        rows, columns = kept.view(10, 100), kept.view(100, 10)  # the same numbers in other shapes
        total = (rows.sin().sum() + columns.cos().sum() + (kept * kept).sum()).sqrt()
    assert total.requires_grad
    assert 4000 <= found[0] < 4100
    with counted_graph() as found:
        total = (leaf.exp() * leaf.exp()).sum()
    assert found == [8000]


def test_a_graph_that_is_gone_at_the_end_does_not_count() -> None:
    """The allocator gives the same address to later tensors or not, as it likes: the count must not depend on it."""
    leaf = torch.randn(1000, requires_grad=True)
    with counted_graph() as found:
        for size in (1000, 700, 1000):
            leaf[:size].exp().sum()
        total = leaf.exp().sum()
    assert found == [4000]
    assert total.requires_grad


def test_the_lanczos_basis_takes_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    this = case("mlp")
    monkeypatch.setattr("lightning_sloppy.curvature.assembly.free_bytes", lambda device: 4_000)
    objective = Objective(this.module, this.loss)
    assert basis_memory(objective, None) == 1_000
    assert basis_memory(objective, 123) == 123
