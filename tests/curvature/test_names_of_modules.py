"""Modules that are registered twice, and modules inside wrappers: the same matrices, and all in its place again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from support.dense import dense_fisher_of, dense_hessian_of
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature.diagonal import fisher_diagonal
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

METHODS = ("kept_graph", "recomputed", "central_differences")


class Encoder(nn.Module):
    """Parts by their own names, and once more in a sequence, with BatchNorm for a buffer that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.model = nn.Sequential(self.backbone, self.norm, nn.Tanh(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Outer(nn.Module):
    """Three ways to one layer, one of them through another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Encoder()
        self.first = self.inner.backbone
        self.parts = nn.ModuleList([self.inner.backbone, self.inner.head])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1](torch.tanh(self.inner.norm(self.first(x))))


class Repeated(nn.Module):
    """One layer twice in a sequence, a weight of it in another layer, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
        tied.weight = layer.weight
        self.net = nn.Sequential(layer, nn.Tanh(), layer, tied, nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 3))
        self.again = self.net

    def forward(self, x: Tensor) -> Tensor:
        return self.again(x)


def made(build: type[nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        module = build().double().eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_()
        return module, torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))


def in_place(module: nn.Module) -> dict[str, int]:
    tables = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: id(tensor) for table in tables for name, tensor in table}


def assert_agrees(module: Any, plain: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every matrix in every way against plain autograd on the inner module."""
    before, copies = in_place(plain), {name: t.clone() for name, t in plain.state_dict().items()}
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]
    dense = dense_hessian_of(plain, lambda: F.cross_entropy(plain(x), y))
    for method in METHODS:
        found = hessian_spectrum(module, batches, F.cross_entropy, k=len(dense), method=method)
        torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(dense).flip(0), rtol=1e-6, atol=1e-7)
    losses = [lambda i=i: F.cross_entropy(plain(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    fisher = dense_fisher_of(plain, losses)
    for method in ("gram", "products"):
        found = fisher_spectrum(module, batches, F.cross_entropy, method=method, k=6, by_layer=True)
        expected = torch.linalg.eigvalsh(fisher).flip(0)
        torch.testing.assert_close(found.eigenvalues[:6], expected[:6], rtol=1e-7, atol=1e-12)
        assert not any(name.startswith(("_orig_mod", "_forward_module", "module.")) for name in found.layers)
    assert jacobian_spectrum(module, batches).dim == len(dense)
    objective = Objective(module, F.cross_entropy)
    diagonal = fisher_diagonal(objective, ParameterLayout.of(objective.module), batches)
    torch.testing.assert_close(diagonal, fisher.diagonal(), rtol=1e-9, atol=1e-13)
    assert in_place(plain) == before
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, copies[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("build", [Encoder, Outer, Repeated])
def test_a_part_under_several_names_is_one_part(build: type[nn.Module]) -> None:
    module, x, y = made(build)
    assert len(in_place(module)) > len(list(module.parameters())) + len(list(module.buffers())), "no part has two names"
    assert_agrees(module, module, x, y)


@pytest.mark.parametrize("build", [Encoder, Outer])
def test_a_pattern_takes_a_part_by_any_of_its_names(build: type[nn.Module]) -> None:
    module, x, y = made(build)
    sizes = [
        hessian_spectrum(module, [(x, y)], F.cross_entropy, k=2, parameters=name).dim
        for name in {Encoder: ("backbone.*", "model.0.*"), Outer: ("first.*", "inner.backbone.*", "parts.0.*")}[build]
    ]
    assert set(sizes) == {15}


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def by_fabric(precision: str = "32-true", *, compile_it: bool = False) -> Callable[[nn.Module], Any]:
    def wrap(module: nn.Module) -> Any:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fabric.setup(compiled(module) if compile_it else module)

    return wrap


def of_its_own(module: nn.Module) -> Any:
    """A wrapper that nobody knows, and that keeps the module under two names."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._forward_part, self._original = module, module

        def forward(self, x: Tensor) -> Tensor:
            return self._forward_part(x)

    return Wrapper()


WRAPPERS = {
    "compiled": compiled,
    "fabric": by_fabric("64-true"),
    "fabric, bf16-mixed": by_fabric("bf16-mixed"),
    "fabric, compiled": by_fabric("64-true", compile_it=True),
    "compiled around fabric": lambda module: compiled(by_fabric("64-true")(module)),
    "data parallel": nn.DataParallel,
    "of its own": of_its_own,
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("build", [Encoder, Repeated])
def test_what_is_around_a_module_changes_nothing(build: type[nn.Module], wrapper: str) -> None:
    module, x, y = made(build)
    wrapped = WRAPPERS[wrapper](module)
    assert wrapped is not module
    assert_agrees(wrapped, module, x, y)


@pytest.mark.slow
def test_a_penalty_on_the_weights_of_the_wrapper() -> None:
    module, x, y = made(Encoder)
    wrapped = by_fabric("64-true")(module)
    plain = hessian_spectrum(module, [(x, y)], F.cross_entropy, k=5)
    for owner in (wrapped, module):

        def loss(outputs: Tensor, targets: Tensor, owner: nn.Module = owner) -> Tensor:
            penalty = sum((p.square().sum() for p in owner.parameters()), torch.zeros(()))
            return F.cross_entropy(outputs, targets) + penalty / 2

        for held in (wrapped, module):
            found = hessian_spectrum(held, [(x, y)], loss, k=5)
            assert found.largest == pytest.approx(plain.largest + 1)
