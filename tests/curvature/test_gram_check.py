"""What layers tell wrongly is found, whatever batches do, and served otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.explicit import assert_same, cotangents, explicit_rows, gram
from support.layers import Apply, built
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sloppy.curvature.gram.calls import LinearCall


@pytest.mark.parametrize("wrong", ["scaled", "shuffled", "another shape"])
def test_what_layers_tell_wrongly_is_found_and_served_by_vmap(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs, _ = built("linear on a sequence")
    pulled = cotangents(module, inputs)
    right = LinearCall._rows

    def rows(self: LinearCall, tensor: Tensor, count: int, features: int) -> Tensor | None:
        found = right(self, tensor, count, features)
        if found is None or wrong == "another shape":
            return None
        return found * 1.01 if wrong == "scaled" else found.roll(1, 0)

    monkeypatch.setattr(LinearCall, "_rows", rows)
    found = gram(module, inputs, pulled)
    assert set(found.paths.values()) == {"vmap"}
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))


class Reordering(nn.Module):
    """Long sequences pass a layer in another order of samples; short ones, of which there are more, do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.second(hidden.flip(0)).flip(0) if x.shape[1] > 3 else self.second(hidden)


def test_batches_of_another_structure_are_checked_themselves() -> None:
    torch.manual_seed(0)
    module = Reordering().double()
    inputs = [torch.randn(*shape, 2, dtype=torch.float64) for shape in ((2, 4), (3, 3), (1, 5))]
    pulled = [torch.randn(1, len(x), 2 * x.shape[1], dtype=torch.float64) for x in inputs]
    found = gram(module, inputs, pulled)
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
    assert " ".join(found.paths.values()) == "linear linear vmap vmap"
    inputs[0], pulled[0] = inputs[0][:, :2], pulled[0][..., :4]
    found = gram(module, inputs, pulled)
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
    assert set(found.paths.values()) == {"linear"}


class Routed(nn.Module):
    """Which layers a batch passes depends on its length; the most samples are in short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(2, 2)
        self.long = nn.Linear(2, 2)
        self.matrix = nn.Parameter(torch.randn(2, 2))
        self.never = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.all(x)
        if x.shape[1] > 4:
            hidden = self.long(torch.tanh(hidden))
        return torch.einsum("nd,de->ne", hidden.sum(1), self.matrix) if x.shape[1] > 3 else hidden.sum(1)


@pytest.mark.parametrize(
    ("length", "paths"),
    [(3, "unused unused linear linear unused unused"), (4, "vmap unused linear linear unused unused")],
)
def test_what_one_batch_does_not_use_another_may(length: int, paths: str) -> None:
    torch.manual_seed(0)
    module = Routed().double()
    inputs = [torch.randn(size, n, 2, dtype=torch.float64) for size, n in ((2, length), (3, 3))]
    pulled = cotangents(module, inputs)
    found = gram(module, inputs, pulled)
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
    assert " ".join(found.paths.values()) == paths
    inputs[0], pulled[0] = torch.randn(2, 5, 2, dtype=torch.float64), pulled[0]
    found = gram(module, inputs, pulled)
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
    assert set(found.paths.values()) == {"vmap"}


@pytest.mark.parametrize("name", ["linear on a sequence", "scale", "attention"])
def test_checkpointed_activations(name: str) -> None:
    """What a backward runs again is not recorded, hence not the same where functions were replaced by equal ones."""
    inner, inputs, paths = built(name)
    module = Apply(lambda self, x: checkpoint(self.inner, x, use_reentrant=False), inner=inner)
    pulled = cotangents(module, inputs)
    found = gram(module, inputs, pulled)
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
    if name == "linear on a sequence":
        assert " ".join(found.paths.values()) == paths


def test_cotangents_of_zero_hide_nothing() -> None:
    module, inputs, paths = built("samples in another order")
    pulled = cotangents(module, inputs)
    pulled[1][:] = 0
    found = gram(module, inputs, pulled)
    assert " ".join(found.paths.values()) == paths
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))


class Cube(torch.autograd.Function):
    """What comes out of a function that torch does not look into counts as the samples' own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient * ctx.saved_tensors[0] ** 2


def test_functions_that_vmap_refuses() -> None:
    """Layers behind one are served; what only vmap could serve goes through the loop."""
    torch.manual_seed(0)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("nd,de->ne", self.head(Cube.apply(self.first(x))), self.matrix)

    module = Apply(forward, first=nn.Linear(2, 3), head=nn.Linear(3, 2), matrix=nn.Parameter(torch.randn(2, 2)))
    module = module.double()
    inputs = [torch.randn(size, 2, dtype=torch.float64) for size in (1, 3)]
    pulled = cotangents(module, inputs)
    found = gram(module, inputs, pulled)
    assert " ".join(found.paths.values()) == "loop linear linear linear linear"
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))


@pytest.mark.parametrize("name", ["class token", "embedding tied to the last layer", "transformer"])
def test_batches_of_one_sample(name: str) -> None:
    module, inputs, paths = built(name)
    single = [part for batch in inputs for part in batch.split(1)]
    pulled = cotangents(module, single)
    found = gram(module, single, pulled)
    assert " ".join(found.paths.values()) == paths
    assert_same(found.matrix, explicit_rows(module, single, pulled))
