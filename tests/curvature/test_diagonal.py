"""Diagonals of the curvature against per-sample gradients, and what Adam holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_sloppy import ConfigurationError
from lightning_sloppy.curvature import diagonal as diagonal_module
from lightning_sloppy.curvature.diagonal import adam_second_moment, fisher_diagonal
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective


class Held(nn.Module):
    """Refuses vmap by looking at a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) if float(inputs.detach().sum()) < 1e9 else inputs


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)), Held]
)
@pytest.mark.parametrize("chunk", [128, 2])
def test_the_diagonal_is_the_mean_square_of_the_gradients(make, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(diagonal_module, "LARGEST_CHUNK", chunk)
    torch.manual_seed(0)
    module = make().double()
    batches = [
        (torch.randn(n, 3, dtype=torch.float64), torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(n)))
        for n in (5, 3)
    ]
    loss = nn.CrossEntropyLoss()
    rows = []
    for inputs, targets in batches:
        for index in range(len(inputs)):
            one = loss(module(inputs[index : index + 1]), targets[index : index + 1])
            rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, list(module.parameters()))]))
    found = fisher_diagonal(Objective(module, loss), ParameterLayout.of(module), batches)
    torch.testing.assert_close(found, torch.stack(rows).square().mean(0))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_second_moment_after_one_step_is_the_squared_gradient(kind) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = kind(module.parameters(), lr=1e-3)
    with pytest.raises(ConfigurationError, match="holds no second moments"):
        adam_second_moment(optimizer, module, 8)
    module(torch.randn(8, 3)).square().mean().backward()
    gradients = torch.cat([p.grad.reshape(-1).clone() for p in module.parameters()])
    optimizer.step()
    torch.testing.assert_close(adam_second_moment(optimizer, module, 8), 8 * gradients.square())


def test_parameters_without_a_moment_count_as_flat_and_other_optimisers_are_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.Adam(module.parameters())
    module[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (adam_second_moment(optimizer, module, 1)[-3:] == 0).all()
    with pytest.raises(ConfigurationError, match="SGD holds no second moments"):
        adam_second_moment(torch.optim.SGD(module.parameters(), lr=0.1), module, 1)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_second_moment_of_a_gradient_that_stays_is_its_square_after_any_number_of_steps(steps: int) -> None:
    """The correction is that of the number of steps, whatever ``beta_2``."""
    torch.manual_seed(0)
    module, inputs = nn.Linear(3, 2), torch.randn(8, 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.9, 0.6))
    for _ in range(steps):
        optimizer.zero_grad()
        module(inputs).mean().backward()  # linear in the weights
        optimizer.step()
    gradients = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(adam_second_moment(optimizer, module, 8), 8 * gradients.square())
