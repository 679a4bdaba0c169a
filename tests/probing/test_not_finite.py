"""Where the first number that is not finite comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sloppy.evaluation.batches import Batch, as_pair
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.probing.not_finite import what_is_not_finite


def batch(inputs=None, targets=None) -> Batch:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) if inputs is None else inputs
    return as_pair((inputs, torch.arange(8) % 2 if targets is None else targets))


def said(module, loss_fn=F.cross_entropy, batches=None):
    objective = Objective(module, loss_fn)
    note = what_is_not_finite(objective, objective.prepare(batches or [batch()]), what="Hessian at step 5")
    assert note.cause == "not_finite"
    assert note.startswith("Hessian at step 5: not finite. ")
    return note


class Logarithm(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).log()


def test_weights():
    module = nn.Linear(3, 2)
    module.weight.data[0, :2] = torch.tensor([math.nan, math.inf])
    assert "2 of 8 weights and buffers of the module are NaN or infinite (first: weight)" in said(module)


def test_buffers():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module[1].running_var[0] = math.inf
    assert "(first: 1.running_var)" in said(module.eval())


def test_inputs():
    inputs = torch.zeros(8, 3)
    inputs[4, 1] = math.inf
    assert "1 of 24 numbers in the inputs of the 8 probe samples" in said(nn.Linear(3, 2), batches=[batch(inputs)])


def test_outputs():
    assert "outputs of the module are NaN or infinite, but weights and inputs are not" in said(Logarithm(3, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_loss(value):
    found = said(nn.Linear(3, 2), lambda outputs, targets: outputs.sum() * 0 + value)
    assert f"The loss is {value}, but the outputs are finite; check the targets" in found


def test_derivatives():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    assert "Derivatives are NaN or infinite" in said(module, lambda outputs, targets: outputs.square().sum().sqrt())
