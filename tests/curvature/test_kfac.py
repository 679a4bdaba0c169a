"""Kronecker factors by curvlinops, and the posterior that is made of them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_sloppy import ConfigurationError, MissingExtraError
from lightning_sloppy.bounds import kronecker_posterior
from lightning_sloppy.bounds.families import DiagonalGaussian, KroneckerGaussian
from lightning_sloppy.curvature.kfac import LARGEST_FACTOR, kronecker_factors


def test_without_curvlinops_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lightning-sloppy\[kfac\]"):
        kronecker_factors(nn.Linear(2, 2), nn.CrossEntropyLoss(), [])


def test_of_one_sample_the_factors_are_the_gauss_newton_matrix() -> None:
    """Of a single sample the Kronecker factorisation is exact, layer by layer."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(1, 3).double(), torch.tensor([1])
    factors, sizes = kronecker_factors(module, nn.CrossEntropyLoss(), [(inputs, targets)])
    names = [name for name, _ in module.named_parameters()]
    assert sizes == [p.numel() for p in module.parameters()]
    assert [factor is None for factor in factors] == ["2." in name for name in names]
    table = {name: p.detach() for name, p in module.named_parameters()}
    scores = functional_call(module, table, (inputs,))
    chances = scores.softmax(1)[0]
    inner = torch.diag(chances) - torch.outer(chances, chances)
    for name, pair in zip(names, factors, strict=True):
        if pair is None:
            continue
        jacobian = torch.autograd.functional.jacobian(
            lambda one, name=name: functional_call(module, {**table, name: one}, (inputs,))[0], table[name]
        ).reshape(2, -1)
        torch.testing.assert_close(torch.kron(*pair), jacobian.T @ inner @ jacobian, rtol=1e-6, atol=1e-9)
    posterior = kronecker_posterior(
        torch.cat([p.detach().reshape(-1) for p in module.parameters()]), factors, sizes, epsilon=5.0, tau=100.0
    )
    assert [type(part) for part in posterior.parts] == [
        DiagonalGaussian if factor is None else KroneckerGaussian for factor in factors
    ]
    dense = 100.0 * torch.kron(*factors[0]) + 5.0 * torch.eye(12).double()
    step = torch.randn(12).double()
    assert posterior.parts[0].precision_form(step) == pytest.approx(float(step @ dense @ step))
    assert posterior.parts[0].log_det_precision() == pytest.approx(float(torch.logdet(dense)))


def test_other_losses_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="found L1Loss"):
        kronecker_factors(nn.Linear(2, 2), nn.L1Loss(), [])
    with pytest.raises(ConfigurationError, match="one entry for each parameter tensor"):
        kronecker_posterior(torch.zeros(4), [None], [3], epsilon=1.0, tau=1.0)


class Named(nn.Module):
    """Takes a dict, has a layer too wide to turn."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.wide = nn.Linear(LARGEST_FACTOR + 1, 1, bias=False)
        self.last = nn.Linear(4, 2)

    def forward(self, given):
        return self.last(torch.tanh(self.first(given["small"]) + self.wide(given["large"])))


def test_dicts_go_in_and_wide_layers_stay_out() -> None:
    torch.manual_seed(0)
    module = Named()
    inputs = {"small": torch.randn(6, 3), "large": torch.randn(6, LARGEST_FACTOR + 1)}
    factors, sizes = kronecker_factors(module, nn.CrossEntropyLoss(), [(inputs, torch.zeros(6, dtype=torch.long))])
    names = [name for name, _ in module.named_parameters()]
    assert [name for name, factor in zip(names, factors, strict=True) if factor is None] == ["wide.weight"]
    assert sizes == [p.numel() for p in module.parameters()]
    second_moment = inputs["small"].T @ inputs["small"] / 6
    torch.testing.assert_close(factors[names.index("first.weight")][1], second_moment)
