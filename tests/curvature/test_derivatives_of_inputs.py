"""Forwards and losses that differentiate in their inputs: forces, physics losses, gradient penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.dense import dense_fisher_of, dense_hessian_of
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.errors import ConfigurationError, UnsupportedError

METHODS = ("kept_graph", "recomputed", "central_differences")


class Forces(nn.Module):
    """An energy for each sample, and minus its derivative in the positions."""

    def __init__(self, *, in_both_modes: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.in_both_modes = in_both_modes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.requires_grad_(True)
        energy = self.net(x).squeeze(1)
        graph = self.in_both_modes or self.training
        slope = torch.autograd.grad(energy.sum(), x, create_graph=graph, retain_graph=True)[0]
        return {"energy": energy, "forces": -slope}


class Derivative(nn.Module):
    """A function and its derivative, on a copy of the times."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.clone().requires_grad_(True)
        u = self.net(t)
        return u, torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]


def forces(found: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(found["energy"], targets["energy"]) + F.mse_loss(found["forces"], targets["forces"])


def physics(found: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.mse_loss(found[1], torch.cos(targets)) + F.mse_loss(found[0], torch.sin(targets))


def of_forces(**options: Any) -> tuple[nn.Module, Tensor, dict[str, Tensor], Callable[..., Tensor]]:
    torch.manual_seed(5)
    module, x = Forces(**options).double().eval(), torch.randn(20, 3, dtype=torch.float64)
    return module, x, {"energy": x.square().sum(1), "forces": -2 * x}, forces


def of_physics() -> tuple[nn.Module, Tensor, Tensor, Callable[..., Tensor]]:
    torch.manual_seed(5)
    t = torch.linspace(0, 6, 20, dtype=torch.float64)[:, None]
    return Derivative().double().eval(), t, t, physics


def rows(nest: Any, which: slice) -> Any:
    return {name: part[which] for name, part in nest.items()} if isinstance(nest, dict) else nest[which]


def parts(x: Tensor, y: Any) -> list[tuple[Tensor, Any]]:
    return [(x[:12], rows(y, slice(0, 12))), (x[12:], rows(y, slice(12, 20)))]


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [of_forces, of_physics])
def test_the_hessian_of_a_loss_with_derivatives(build: Callable[..., Any], method: str) -> None:
    module, x, y, loss = build()
    expected = dense_hessian_of(module, lambda: loss(module(x.clone()), y))
    found = hessian_spectrum(module, parts(x, y), loss, k=len(expected), method=method)
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-6, atol=1e-6)
    assert float(found.detail["loss"]) == pytest.approx(float(loss(module(x.clone()), y).detach()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gram", "products"])
@pytest.mark.parametrize("build", [of_forces, of_physics])
def test_the_fisher_matrix_of_a_loss_with_derivatives(build: Callable[..., Any], method: str) -> None:
    module, x, y, loss = build()
    each = [slice(i, i + 1) for i in range(len(x))]
    losses = [lambda i=i: loss(module(x[i].clone()), rows(y, i)) for i in each]
    expected = eigenvalues(dense_fisher_of(module, losses))
    found = fisher_spectrum(module, parts(x, y), loss, method=method, k=5)
    torch.testing.assert_close(found.eigenvalues[:5], expected[:5], rtol=1e-7, atol=1e-11)
    exact = fisher_spectrum(module, parts(x, y), loss, kind="exact")
    by_products = fisher_spectrum(module, parts(x, y), loss, kind="exact", method="products", k=4)
    torch.testing.assert_close(by_products.eigenvalues, exact.eigenvalues[:4], rtol=1e-7, atol=1e-9)
    jacobian_spectrum(module, parts(x, y))


class Plain(nn.Module):
    """Gives the times beside the function, for the loss to differentiate in them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Derivative().net

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.requires_grad_(True)
        return self.net(t), t


def in_the_loss(found: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    u, t = found
    return F.mse_loss(torch.autograd.grad(u.sum(), t, create_graph=True)[0], torch.cos(targets))


def test_a_loss_that_differentiates_its_outputs_has_a_hessian_and_no_fisher_matrix() -> None:
    torch.manual_seed(5)
    module, t = Plain().double(), torch.linspace(0, 6, 20, dtype=torch.float64)[:, None]
    expected = dense_hessian_of(module, lambda: in_the_loss(module(t.clone()), t))
    for method in METHODS:
        found = hessian_spectrum(module, parts(t, t), in_the_loss, k=19, method=method)
        torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-6, atol=1e-6)
    with pytest.raises(UnsupportedError, match="need a loss of the outputs alone, but this differentiates its outputs"):
        fisher_spectrum(module, [(t, t)], in_the_loss)


def test_batches_that_require_gradients_and_go_whole_to_the_loss() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["t"])

    def loss(u: Tensor, batch: dict[str, Tensor]) -> Tensor:
        slope = torch.autograd.grad(u.sum(), batch["t"], create_graph=True)[0]
        return F.mse_loss(slope, torch.cos(batch["t"].detach()))

    t = torch.linspace(0, 6, 20, dtype=torch.float64)[:, None].requires_grad_()
    module = Named()
    expected = dense_hessian_of(module, lambda: loss(net(t), {"t": t}))
    found = hessian_spectrum(module, [{"t": t}], loss, k=19)
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-8, atol=1e-9)
    assert t.grad is None


def test_outputs_with_a_graph_in_train_mode_alone_are_refused() -> None:
    module, x, y, loss = of_forces(in_both_modes=False)
    with pytest.raises(ConfigurationError, match=r"outputs of shape \(4, 3\) .* no graph in eval mode .* mode='train'"):
        hessian_spectrum(module, parts(x, y), loss)
    with pytest.raises(ConfigurationError, match="no graph in eval mode"):
        fisher_spectrum(module, parts(x, y), loss)
    assert not module.training
    trained = hessian_spectrum(module.train(), parts(x, y), loss, k=21, mode="train")
    expected = dense_hessian_of(module, lambda: loss(module(x.clone()), y))
    torch.testing.assert_close(trained.eigenvalues, eigenvalues(expected), rtol=1e-8, atol=1e-9)
    energies = hessian_spectrum(module.eval(), parts(x, y), lambda found, y: F.mse_loss(found["energy"], y["energy"]))
    assert energies.status.ok  # the loss does not use them
