"""What ranks share out adds up to the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sloppy.curvature.central_differences import CentralDifferences, GaussNewtonDifferences
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator, mean_gradient
from lightning_sloppy.curvature.micro_batches import divisible
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.curvature.partition import layers_of_rank, samples_of_rank
from lightning_sloppy.evaluation.batches import sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import Ranks


def problem(*counts: int) -> tuple[Objective, list[tuple[torch.Tensor, torch.Tensor]]]:
    rng = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    batches = [(torch.randn(n, 4, generator=rng).double(), torch.randint(0, 3, (n,), generator=rng)) for n in counts]
    return Objective(module, F.cross_entropy), batches


def everybody(count: int) -> list[Ranks]:
    """Ranks that all say the same."""
    return [Ranks(rank, count) for rank in range(count)]


@pytest.mark.parametrize("counts", [(8,), (7,), (5, 4, 3), (1, 9), (2,)])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_sample_is_measured_by_one_rank(counts, world):
    objective, batches = problem(*counts)
    parts = [samples_of_rank(ranks, objective, batches) for ranks in everybody(world)]
    inputs = torch.cat([batch[0] for mine, _ in parts for batch in mine])
    targets = torch.cat([batch[1] for mine, _ in parts for batch in mine])
    torch.testing.assert_close(inputs, torch.cat([batch[0] for batch in batches]), rtol=0, atol=0)
    torch.testing.assert_close(targets, torch.cat([batch[1] for batch in batches]), rtol=0, atol=0)
    sizes = [sum(map(sample_count, mine)) for mine, _ in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [first for _, first in parts] == [sum(sizes[:rank]) for rank in range(world)]


def test_batches_that_cannot_be_cut_are_shared_out_whole():
    objective, batches = problem(3, 4, 5)
    weights = torch.ones(3).double()  # belongs to no sample
    batches = [((inputs, weights), targets) for inputs, targets in batches]
    objective = Objective(First(objective.module), F.cross_entropy)
    parts = [samples_of_rank(ranks, objective, batches) for ranks in everybody(2)]
    assert [[sample_count(batch) for batch in mine] for mine, _ in parts] == [[3], [4, 5]]
    assert [first for _, first in parts] == [0, 3]


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.inner(inputs[0])


def test_gradients_of_parts_add_up():
    objective, batches = problem(5, 4)
    layout = ParameterLayout.of(objective.module)
    whole = mean_gradient(objective, layout, batches)
    total = torch.zeros_like(whole)
    for ranks in everybody(4):
        mine, _ = samples_of_rank(ranks, objective, batches)
        weight = sum(map(sample_count, mine)) / 9
        total += mean_gradient(objective, layout, mine) * weight
    torch.testing.assert_close(total, whole)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_layer_is_served_by_one_rank(world):
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 30), nn.Linear(30, 3))
    layout = ParameterLayout.of(module)
    parts = [layers_of_rank(ranks, layout) for ranks in everybody(world)]
    assert sorted(name for part in parts for name in part.names) == sorted(layout.names)
    if world == 2:
        assert [part.names for part in parts] == [("1.weight", "1.bias"), ("0.weight", "0.bias", "2.weight", "2.bias")]
    if world == 4:
        assert parts[3].dim == 0


def test_a_rank_without_samples_adds_nothing():
    objective, _ = problem(1)
    layout = ParameterLayout.of(objective.module)
    vector = torch.ones(layout.dim).double()
    for build in (HessianOperator, GaussNewtonOperator, CentralDifferences, GaussNewtonDifferences):
        assert build(objective, layout, []).matvec(vector).abs().max() == 0
    assert mean_gradient(objective, layout, []).abs().max() == 0


def test_in_train_mode_no_batch_is_cut_whatever_its_loss_says():
    """Random streams and statistics belong to the batch; that this module has none of them nobody can know."""
    objective, batches = problem(5, 4)
    leaves = ParameterLayout.of(objective.module).leaves(objective.module, objective.dtype)
    assert divisible(objective, leaves, batches, 2)
    objective.module.train()
    assert not divisible(objective, leaves, batches, 2)
