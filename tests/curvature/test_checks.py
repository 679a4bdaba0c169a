"""Checks in closed form, against divergences, and of what stays the same: memory, ranks."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import ranks, two_shards
from support.cases import case, dense_gauss_newton, gradients
from torch import nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.memory import free_bytes
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Objective


@pytest.mark.parametrize("outputs", [2, 3, 80])
def test_every_eigenvalue_of_a_linear_map_comes_once_for_each_output(outputs: int) -> None:
    """Sum of squares: H = 2 (I x X^T X); with 80 outputs p = 400 goes through Lanczos and its multiplicity search."""
    torch.manual_seed(0)
    x = torch.randn(9, 5).double()
    module = nn.Linear(5, outputs, bias=False).double()
    found = hessian_spectrum(
        module, [(x, torch.zeros(9, outputs).double())], partial(F.mse_loss, reduction="sum"), k=12
    )
    single = torch.linalg.eigvalsh(2 * x.T @ x).flip(0)
    expected = single.repeat_interleave(outputs)[:12]
    torch.testing.assert_close(found.eigenvalues, expected[: len(found.eigenvalues)], rtol=1e-8, atol=0)
    assert found.status.ok


@pytest.mark.parametrize("sizes", [(2, 6), (3, 4)])
def test_mean_squared_error_has_its_own_conventions(sizes: tuple[int, int]) -> None:
    """The mean is over outputs too: 2/C in the Gauss-Newton matrix, 1/C^2 in the empirical Fisher."""
    torch.manual_seed(0)
    module = nn.Linear(8, 3).double()
    batches = [(torch.randn(n, 8).double(), torch.randn(n, 3).double()) for n in sizes]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    a = torch.cat([x, torch.ones(len(x), 1).double()], dim=1)
    expected = torch.linalg.eigvalsh(2 / 3 * a.T @ a / len(x)).flip(0).repeat_interleave(3)
    for found in (
        hessian_spectrum(module, batches, F.mse_loss, k=27).eigenvalues,
        fisher_spectrum(module, batches, F.mse_loss, "exact").eigenvalues,
    ):
        torch.testing.assert_close(found[: len(expected)], expected[: len(found)], rtol=1e-8, atol=1e-12)
    errors = (2 / 3 * (module(x) - y)).detach()
    rows = (errors.unsqueeze(2) * a.unsqueeze(1)).flatten(1)
    empirical = torch.linalg.eigvalsh(rows @ rows.T / len(x)).flip(0)
    found = fisher_spectrum(module, batches, F.mse_loss).eigenvalues
    torch.testing.assert_close(found, empirical, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "allowed"), [(4000, 0.05), (40, 0.3)])
def test_sampled_labels_approach_the_exact_kind(labels: int, allowed: float) -> None:
    this = case("mlp")
    exact = dense_gauss_newton(this)
    drawn = [
        fisher_spectrum(
            this.module, this.batches, this.loss, "sampled", labels=labels, seed=seed, method="products", k=5
        )
        for seed in range(4)
    ]
    top = torch.linalg.eigvalsh(exact).flip(0)[:5]
    for found in drawn:
        torch.testing.assert_close(found.eigenvalues, top, rtol=allowed, atol=0)
    assert not torch.equal(drawn[0].eigenvalues, drawn[1].eigenvalues)


def test_the_block_of_the_last_layer_is_its_exact_fisher() -> None:
    this = case("mlp")
    layers = [name.rpartition(".")[0] for name in this.parameters]
    pattern = f"{layers[-1]}.*"
    hessian = hessian_spectrum(this.module, this.batches, this.loss, k=18, parameters=pattern).eigenvalues
    exact = fisher_spectrum(this.module, this.batches, this.loss, "exact", parameters=pattern).eigenvalues
    torch.testing.assert_close(exact[: len(hessian)], hessian[: len(exact)], rtol=1e-8, atol=1e-12)


def test_a_small_step_moves_the_outputs_by_the_fisher_length() -> None:
    """2 KL(p_w || p_{w + dw}) = dw^T F dw to third order."""
    this = case("mlp")
    layout, objective = ParameterLayout.of(this.module), Objective(this.module, this.loss)
    centre = layout.vector(this.module)
    exact = dense_gauss_newton(this)
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = torch.randn(this.dim, generator=rng, dtype=torch.float64) * 1e-4
        divergence = 0.0
        for x, _ in this.batches:
            with torch.no_grad():
                before = objective.outputs(layout.table(centre), x).log_softmax(1)
                after = objective.outputs(layout.table(centre + step), x).log_softmax(1)
            divergence += float((before.exp() * (before - after)).sum()) / this.count
        assert (2 * divergence / float(step @ exact @ step)) ** 0.5 == pytest.approx(1, abs=1e-3)


def test_a_product_is_the_change_of_the_gradient() -> None:
    this = case("mlp")
    layout, objective = ParameterLayout.of(this.module), Objective(this.module, this.loss)
    operator = HessianOperator(objective, layout, this.batches)
    centre = layout.vector(this.module)
    direction = torch.randn(this.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(point: torch.Tensor) -> torch.Tensor:
        leaves = {name: part.detach().requires_grad_() for name, part in layout.table(point).items()}
        return torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(objective.mean_loss(leaves, this.batches), leaves.values())]
        )

    step = 1e-6
    change = (gradient(centre + step * direction) - gradient(centre)) / step
    torch.testing.assert_close(operator.matvec(direction), change, rtol=0, atol=1e-5)


def test_the_empirical_kind_by_products_has_the_rank_of_its_gradients() -> None:
    this = case("mlp", (3, 2))
    rows = gradients(this)
    values = torch.linalg.eigvalsh(rows @ rows.T / 5).flip(0)
    found = fisher_spectrum(this.module, this.batches, this.loss, method="products", k=8)
    torch.testing.assert_close(found.eigenvalues[:5], values, rtol=1e-8, atol=1e-13)
    assert float(found.eigenvalues[5:].abs().max()) <= found.floor


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kept_graph", "recomputed"])
def test_memory_is_flat_over_a_hundred_products(method: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 10))
    batch = (torch.randn(500, 200), torch.randint(0, 10, (500,)))
    operator = HessianOperator(Objective(module, F.cross_entropy), ParameterLayout.of(module), [batch], method=method)
    vector = torch.randn(operator.dim)
    for _ in range(10):
        operator.matvec(vector)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        operator.matvec(vector)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    # A leak of the graph or of the result in every product would be 100 times 280 kB or more.
    assert grown < 8 * 1024**2


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_measure_the_union_of_their_samples(tmp_path: Path) -> None:
    first, second = ranks.run(two_shards.__file__, tmp_path, "alike")
    assert first == second
    alone = two_shards.measured(slice(0, 8), over_ranks=False)
    for method, values in alone.items():
        assert first[method] == pytest.approx(values, rel=1e-7), method


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_with_unequal_memory_and_samples_keep_step(tmp_path: Path) -> None:
    """What differs between them is decided by the least; a refusal of one is a refusal of all."""
    first, second = ranks.run(two_shards.__file__, tmp_path, "unequal")
    assert first == second
    assert list(first) == [
        "graphs: CONVERGED",
        "basis: CONVERGED",
        "nothing: OUT_OF_MEMORY",
        "no samples: central_differences",
    ]
    alone = two_shards.measured(slice(0, 8), over_ranks=False)["kept_graph"]
    for name in ("graphs: CONVERGED", "basis: CONVERGED"):
        assert first[name] == pytest.approx(alone, rel=1e-7), name
    assert first["no samples: central_differences"][0] > 0


def test_ranks_need_a_group() -> None:
    with pytest.raises(ConfigurationError, match="call init_process_group first"):
        hessian_spectrum(nn.Linear(2, 2), [(torch.ones(1, 2), torch.ones(1, 2))], F.mse_loss, over_ranks=True)


def test_memory_that_the_allocator_of_cuda_holds_is_free(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000, 9_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)
    assert free_bytes(device) == 1_500
