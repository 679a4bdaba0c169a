from __future__ import annotations

import pytest
import torch
from support.cases import case, vector_of

from lightning_sloppy.curvature.parameters import ParameterLayout, grad


@pytest.mark.parametrize("name", ["mlp", "tied", "partly frozen"])
def test_layout_is_the_order_of_named_parameters(name: str) -> None:
    this = case(name)
    layout = ParameterLayout.of(this.module)
    assert layout.names == tuple(this.parameters)
    assert layout.dim == this.dim
    vector = layout.vector(this.module)
    assert torch.equal(vector, vector_of(this))
    assert torch.equal(layout.flatten(layout.unflatten(vector)), vector)
    table = layout.table(vector)
    assert all(torch.equal(table[name], p.detach()) for name, p in this.parameters.items())


def test_tied_weights_count_once_and_frozen_ones_not_at_all() -> None:
    assert ParameterLayout.of(case("tied").module).dim == 4 * 4 + 4 + 4 + 3 * 4 + 3
    assert ParameterLayout.of(case("partly frozen").module).names == ("unused", "head.weight")


def test_vector_is_a_copy_and_leaves_are_detached() -> None:
    this = case("mlp")
    layout = ParameterLayout.of(this.module)
    before = vector_of(this)
    layout.vector(this.module).zero_()
    leaves = layout.leaves(this.module, torch.float64)
    leaves["0.weight"].sum().backward()
    assert torch.equal(vector_of(this), before)
    assert all(p.grad is None for p in this.module.parameters())


def test_missing_parts_are_zeros() -> None:
    layout = ParameterLayout.of(case("linear regression").module)
    assert layout.dim == 5
    two = ParameterLayout(("a", "b"), (torch.Size([2]), torch.Size([1, 2])))
    assert two.flatten([None, torch.tensor([[1.0, 2.0]])]).tolist() == [0.0, 0.0, 1.0, 2.0]


def test_grad_forgives_what_is_not_connected() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    parts = grad([used.sum(), torch.tensor(1.0)], [used, unused], [torch.tensor(2.0), torch.tensor(1.0)])
    assert parts[0] is not None
    assert parts[0].tolist() == [2.0, 2.0]
    assert parts[1] is None
    assert grad([torch.tensor(1.0)], [used]) == [None]
