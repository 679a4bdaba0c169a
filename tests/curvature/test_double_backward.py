from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from support.cases import case
from torch import Tensor, nn

from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.memory import counted_graph
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.objective import Objective


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.query(x).unsqueeze(1)
        return F.scaled_dot_product_attention(x, x, x).mean((1, 2))


def second_derivatives(module: nn.Module, x: Tensor) -> list[Tensor | None]:
    parameters = list(module.parameters())
    first = torch.autograd.grad(module(x).square().mean(), parameters, create_graph=True)
    return list(torch.autograd.grad([g.sum() for g in first], parameters, allow_unused=True))


def test_attention_has_a_second_derivative_inside() -> None:
    x = torch.randn(2, 3, 4)
    module = Scaled()
    with double_backward(module):
        parts = second_derivatives(module, x)
    assert all(part is not None and bool(torch.isfinite(part).all()) for part in parts)


def test_an_operation_without_second_derivative_is_named() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bag(x)

    module = Bag()
    with (
        pytest.raises(UnsupportedError, match=r"operation of Bag has none .*embedding_bag.*use method="),
        double_backward(module),
    ):
        second_derivatives(module, torch.randint(0, 5, (3, 2)))


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"), double_backward(nn.Linear(2, 2)):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_cudnn_is_left_for_recurrent_layers_alone_and_comes_back() -> None:
    before = torch.backends.cudnn.enabled
    with double_backward(nn.Linear(2, 2)):
        assert torch.backends.cudnn.enabled == before
    with pytest.raises(ZeroDivisionError), double_backward(nn.LSTM(2, 2)):
        1 / int(torch.backends.cudnn.enabled)
    assert torch.backends.cudnn.enabled == before


def test_counted_bytes_grow_with_the_batch() -> None:
    counts = []
    for size in (10, 20):
        weight = torch.randn(30, 30, requires_grad=True)
        inputs = torch.randn(size, 30)
        with counted_graph() as total:
            loss = torch.tanh(inputs @ weight).square().sum()
        counts.append(total[0])
        del loss
    # Inputs, and the outputs of tanh: both saved, both size x 30 numbers of four bytes.
    assert counts[1] - counts[0] == 2 * 10 * 30 * 4


@pytest.mark.slow
@pytest.mark.parametrize("build", [HessianOperator, GaussNewtonOperator])
def test_kept_graphs_are_freed_with_their_operator(build: type) -> None:
    """A node that saves its own output (tanh) keeps itself alive when a hook hands the output back."""
    this = case("mlp")
    seen: list[weakref.ref[Tensor]] = []
    handle = this.module[1].register_forward_hook(lambda _, __, output: seen.append(weakref.ref(output)))
    operator = build(Objective(this.module, this.loss), ParameterLayout.of(this.module), this.batches)
    operator.matvec(torch.ones(this.dim, dtype=torch.float64))
    handle.remove()
    del operator
    gc.collect()
    assert len(seen) == 2
    assert all(reference() is None for reference in seen)
