"""Losses that add up their samples: the spectrum of the sum over the probe, and that of the mean on request."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy import ConfigurationError, fisher_spectrum, hessian_spectrum
from lightning_sloppy.measures.relative_dimension import relative_dimension

INPUTS = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))
VALUES = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LOSSES: list[tuple[Any, Tensor]] = [
    (nn.CrossEntropyLoss(reduction="sum"), CLASSES),
    (nn.CrossEntropyLoss(reduction="sum", ignore_index=0, weight=torch.tensor([1.0, 2.0, 3.0]).double()), CLASSES),
    (partial(F.mse_loss, reduction="sum"), VALUES),
    (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none").sum(), CLASSES),
    (nn.BCEWithLogitsLoss(reduction="sum"), (VALUES > 0).double()),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def parted(targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(INPUTS[a:b], targets[a:b]) for a, b in ((0, 9), (9, 18), (18, 20))]


def gradient(module: nn.Module, value: Tensor, *, graph: bool = False) -> Tensor:
    parts = torch.autograd.grad(value, list(module.parameters()), create_graph=graph, retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def hessian(module: nn.Module, loss: Tensor) -> Tensor:
    first = gradient(module, loss, graph=True)
    return torch.linalg.eigvalsh(torch.stack([gradient(module, entry) for entry in first])).flip(0)


def assert_same(found: Tensor, right: Tensor) -> None:
    most = min(len(found), len(right))
    torch.testing.assert_close(found[:most], right[:most], rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("loss_fn", "targets"), LOSSES)
@pytest.mark.parametrize("single", [False, True])
def test_hessian_of_a_sum(loss_fn: Any, targets: Tensor, single: bool) -> None:
    module, batches = network(), [(INPUTS, targets)] if single else parted(targets)
    right = hessian(module, loss_fn(module(INPUTS), targets))
    found = hessian_spectrum(module, batches, loss_fn, k=100, by_layer=True)
    assert_same(found.eigenvalues, right)
    assert found.detail["loss"] == pytest.approx(loss_fn(module(INPUTS), targets).item())
    assert found.trace is not None
    assert found.trace.value == pytest.approx(float(right.sum()))
    assert "Sum over the probe" in str(found.detail["reduction"])
    assert "multiply it by 20" in str(found.detail["reduction"])
    blocks = sum(layer.trace.value for layer in found.layers.values() if layer.trace is not None)
    assert blocks == pytest.approx(found.trace.value)
    mean = hessian_spectrum(module, batches, loss_fn, k=100, reduction="mean")
    assert_same(mean.eigenvalues, right / 20)
    assert "Mean over the probe" in str(mean.detail["reduction"])


@pytest.mark.slow
@pytest.mark.parametrize(("loss_fn", "targets"), LOSSES)
def test_fisher_matrices_of_a_sum(loss_fn: Any, targets: Tensor) -> None:
    module, batches = network(), parted(targets)
    outputs = module(INPUTS)
    rows = torch.stack([gradient(module, loss_fn(outputs[i : i + 1], targets[i : i + 1])) for i in range(20)])
    found = fisher_spectrum(module, batches, loss_fn)
    assert_same(found.eigenvalues, torch.linalg.eigvalsh(rows @ rows.T).flip(0))
    assert found.half_eigenvalues is not None
    assert_same(found.half_eigenvalues, torch.linalg.eigvalsh(rows[:10] @ rows[:10].T).flip(0))
    products = fisher_spectrum(module, batches, loss_fn, method="products", k=3)
    assert_same(products.eigenvalues, found.eigenvalues[:3])
    total = 0
    for i in range(20):
        jacobian = torch.stack([gradient(module, outputs[i, j]) for j in range(3)])
        inner = torch.autograd.functional.hessian(
            lambda row, i=i: loss_fn(row[None], targets[i : i + 1]), outputs[i].detach()
        )
        total = total + jacobian.T @ inner @ jacobian
    right = torch.linalg.eigvalsh(total).flip(0)
    exact = fisher_spectrum(module, batches, loss_fn, kind="exact")
    assert_same(exact.eigenvalues, right)
    if type(loss_fn).__name__ != "function":  # the model behind the others is known
        drawn = fisher_spectrum(module, batches, loss_fn, kind="sampled", labels=20_000)
        assert drawn.largest == pytest.approx(float(right[0]), rel=0.05)
    mean = fisher_spectrum(module, batches, loss_fn, kind="exact", reduction="mean")
    assert_same(mean.eigenvalues, right / 20)
    assert relative_dimension(exact).value == pytest.approx(relative_dimension(mean).value)


def test_density_and_trace_scale_together() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    given = {"k": 3, "probes": 2, "steps": 20}
    found = hessian_spectrum(module, parted(CLASSES), partial(F.cross_entropy, reduction="sum"), **given)
    mean = hessian_spectrum(module, parted(CLASSES), F.cross_entropy, **given)
    assert found.trace is not None
    assert mean.trace is not None
    assert found.trace.value == pytest.approx(20 * mean.trace.value)
    assert found.trace.standard_error == pytest.approx(20 * mean.trace.standard_error)
    assert found.density is not None
    assert mean.density is not None
    torch.testing.assert_close(found.density.nodes, 20 * mean.density.nodes)


def test_the_sum_of_a_mean_is_given_on_request() -> None:
    module = network()
    right = hessian(module, 20 * F.cross_entropy(module(INPUTS), CLASSES))
    assert_same(hessian_spectrum(module, parted(CLASSES), F.cross_entropy, k=100, reduction="sum").eigenvalues, right)
    assert "reduction" not in hessian_spectrum(module, parted(CLASSES), F.cross_entropy, k=3).detail
    with pytest.raises(ConfigurationError, match="reduction='none' is unknown; choose 'mean', 'sum', or None"):
        hessian_spectrum(module, parted(CLASSES), F.cross_entropy, reduction="none")  # type: ignore[arg-type]


def test_a_masked_mean_with_a_half_of_nothing_is_no_sum() -> None:
    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        valid = ~torch.isnan(targets)
        off = torch.where(valid, outputs - targets.nan_to_num(), torch.zeros_like(outputs))
        return off.square().sum() / valid.sum().clamp(min=1)

    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 1).double(), torch.randn(2, 8, 3).double(), torch.randn(2, 8, 1).double()
    y[0, 4:] = float("nan")
    found = hessian_spectrum(module, [(x[0], y[0]), (x[1], y[1])], masked, k=4)
    known = torch.cat([x[0, :4], x[1]])  # the mean is over the twelve targets that are known
    rows = torch.cat([known, torch.ones(12, 1).double()], dim=1)
    dense = 2 * rows.T @ rows / 12
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(dense).flip(0))
    assert "reduction" not in found.detail


@pytest.mark.parametrize("sizes", [(1, 7), (7, 1)])
def test_a_sum_is_seen_in_the_first_batch_that_has_two_samples(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 1).double(), torch.randn(8, 3).double(), torch.randn(8, 1).double()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    found = hessian_spectrum(module, batches, lambda o, t: (o - t).square().sum(), k=4, reduction="mean")
    rows = torch.cat([x, torch.ones(8, 1).double()], dim=1)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(2 * rows.T @ rows / 8).flip(0))


def test_half_of_an_odd_number_of_samples_is_the_smaller_half() -> None:
    module, loss_fn = network(), nn.CrossEntropyLoss(reduction="sum")
    inputs, targets = INPUTS[:7], torch.tensor([0, 1, 2, 0, 1, 2, 2])
    outputs = module(inputs)
    rows = torch.stack([gradient(module, loss_fn(outputs[i : i + 1], targets[i : i + 1])) for i in range(7)])
    found = fisher_spectrum(module, [(inputs, targets)], loss_fn)
    assert_same(found.eigenvalues, torch.linalg.eigvalsh(rows @ rows.T).flip(0))
    assert_same(found.half_eigenvalues, torch.linalg.eigvalsh(rows[:3] @ rows[:3].T).flip(0))
