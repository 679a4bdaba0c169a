"""Tensors get what numbers get, with the slopes of the implicit function theorem."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from lightning_sloppy.bounds import kl, kl_inverse, kl_inverse_lower
from lightning_sloppy.errors import ConfigurationError

with (Path(__file__).parent / "kl_inverse_table.csv").open() as table:
    ROWS = [tuple(map(float, (row["q"], row["c"]))) for row in csv.DictReader(table)]

SLOPES = [
    # q, c, dp/dq, dp/dc: 120 digits, rounded
    (0.0001, 0.0001, 1.67996464335, 1.46555339055),
    (0.01, 0.05, 2.24846485844, 1.0572792678),
    (0.1, 0.5, 1.28618387614, 0.514729302389),
    (0.2, 2.0, 0.250252592974, 0.0561733458074),
    (0.5, 0.01, 0.986746387935, 3.48286763968),
    (0.9, 0.01, 0.800842865517, 1.5894818989),
]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("inverse", [kl_inverse, kl_inverse_lower])
def test_tensors_hold_what_numbers_give(inverse) -> None:
    rates, budgets = (double(*column) for column in zip(*ROWS, strict=True))
    found = inverse(rates, budgets)
    assert found.dtype == torch.float64
    assert found.tolist() == [inverse(q, c) for q, c in ROWS]


def test_shapes_broadcast_and_numbers_join_tensors() -> None:
    rates = double(0.0, 0.1, 0.3).unsqueeze(1)
    assert kl_inverse(rates, double(0.01, 0.2)).shape == (3, 2)
    assert kl_inverse(0.1, double(0.5)).tolist() == [kl_inverse(0.1, 0.5)]
    assert kl_inverse(torch.tensor(0.1, dtype=torch.float32), 0.5).dtype == torch.float64
    assert kl(double(0.25), 0.5).tolist() == [kl(0.25, 0.5)]
    assert kl(0.0, double(0.5, 1.0)).tolist() == [math.log(2), math.inf]


@pytest.mark.parametrize(("q", "c", "by_rate", "by_budget"), SLOPES)
def test_slopes_to_eleven_digits(q: float, c: float, by_rate: float, by_budget: float) -> None:
    rate, budget = double(q).requires_grad_(), double(c).requires_grad_()
    kl_inverse(rate, budget).sum().backward()
    assert rate.grad.item() == pytest.approx(by_rate, rel=1e-10)
    assert budget.grad.item() == pytest.approx(by_budget, rel=1e-10)


def test_slopes_are_those_of_differences() -> None:
    rates, budgets = double(0.01, 0.2, 0.6).requires_grad_(), double(0.02, 0.3, 0.1).requires_grad_()
    assert torch.autograd.gradcheck(kl_inverse, (rates, budgets), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(kl_inverse_lower, (rates, budgets), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(kl, (rates, double(0.3, 0.4, 0.5).requires_grad_()), eps=1e-7, atol=1e-6)


def test_where_there_is_no_slope() -> None:
    """Without a budget the limit is the rate; near 1 it is vacuous."""
    rates, budgets = double(0.2, 0.2, 0.2).requires_grad_(), double(0.0, -1.0, 60.0).requires_grad_()
    limits = kl_inverse(rates, budgets)
    assert limits.tolist() == [0.2, 0.2, 1.0]
    limits.sum().backward()
    assert rates.grad.tolist() == [1.0, 1.0, 0.0]
    assert budgets.grad.tolist() == [math.inf, 0.0, 0.0]


def slopes(inverse, q: float, c: float) -> list[float]:
    rate, budget = double(q).requires_grad_(), double(c).requires_grad_()
    inverse(rate, budget).sum().backward()
    return [rate.grad.item(), budget.grad.item()]


def test_slopes_at_the_ends() -> None:
    """One-sided limits: ``1 - exp(-c)`` from a rate of 0, and its mirror image from a rate of 1."""
    assert slopes(kl_inverse, 0.0, 0.0) == [1.0, 1.0]
    assert slopes(kl_inverse, 0.0, 0.3)[1] == pytest.approx(math.exp(-0.3), rel=1e-14)
    assert slopes(kl_inverse, 0.0, 0.3)[0] == math.inf
    assert slopes(kl_inverse, 1.0, 0.3) == [0.0, 0.0]
    assert slopes(kl_inverse_lower, 1.0, 0.0) == [1.0, -1.0]
    assert slopes(kl_inverse_lower, 1.0, 0.3)[1] == pytest.approx(-math.exp(-0.3), rel=1e-14)
    assert slopes(kl_inverse_lower, 0.0, 0.3) == [0.0, 0.0]
    assert slopes(kl_inverse_lower, 0.2, 0.0) == [1.0, -math.inf]


def test_a_bound_can_be_minimised() -> None:
    """The best Gaussian mean for a quadratic risk: the slope of the bound leads there."""
    place = double(0.0).requires_grad_()
    optimiser = torch.optim.LBFGS([place], line_search_fn="strong_wolfe")

    def bound() -> torch.Tensor:
        risk = 0.05 + 0.3 * (place - 1).square()
        return kl_inverse(risk, 0.01 + 0.2 * place.square()).sum()

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = bound()
        value.backward()
        return value

    optimiser.step(closure)
    best = bound().item()
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    values = kl_inverse(0.05 + 0.3 * (grid - 1).square(), 0.01 + 0.2 * grid.square())
    assert best == pytest.approx(values.min().item(), abs=1e-7)


def test_rates_that_are_none() -> None:
    with pytest.raises(ConfigurationError, match=r"probability in \[0, 1\]"):
        kl_inverse(double(0.1, 1.5), 0.1)
