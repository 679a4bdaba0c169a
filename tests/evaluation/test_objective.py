from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cases import case
from torch import Tensor, nn

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.loss_checks import checked_scalar, default_loss
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.objective import Objective


def leaves(objective: Objective) -> dict[str, Tensor]:
    return ParameterLayout.of(objective.module).leaves(objective.module, objective.dtype)


def test_mean_loss_weights_batches_by_their_samples() -> None:
    this = case("mlp")
    objective = Objective(this.module, this.loss)
    expected = this.loss(
        this.module(torch.cat([x for x, _ in this.batches])), torch.cat([y for _, y in this.batches])
    ).detach()
    value = objective.mean_loss(leaves(objective), this.batches).detach()
    torch.testing.assert_close(value, expected, atol=0, rtol=1e-12)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(half: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(half).eval()
    module[0].requires_grad_(False)
    objective = Objective(module, F.mse_loss)
    (batch,) = objective.prepare([(torch.ones(5, 4, dtype=half), torch.zeros(5, 2, dtype=half))])
    assert objective.dtype == torch.float32
    assert objective.outputs(leaves(objective), batch[0]).dtype == torch.float32
    expected = F.mse_loss(module.float()(torch.ones(5, 4)), torch.zeros(5, 2)).detach()
    torch.testing.assert_close(objective.loss(leaves(objective), batch).detach(), expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_forward_that_casts_to_a_fixed_half_is_refused_in_a_sentence(half: torch.dtype) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Linear(4, 3).to(half).requires_grad_(False), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.frozen(inputs.to(half)).float())

    module = Cast()
    objective = Objective(module, F.mse_loss)
    with pytest.raises(UnsupportedError, match=f"Weights in {half} are widened .*; cast to the type of the weights"):
        objective.outputs(leaves(objective), torch.ones(5, 4))
    assert module.frozen.weight.dtype == half
    objective = Objective(nn.Sequential(module.frozen, module.head), F.mse_loss)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        objective.outputs(leaves(objective), torch.ones(5, 7))


def test_products_take_the_widest_type_of_the_parameters() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
            self.wide = nn.Parameter(torch.ones(2, dtype=torch.float64))

    assert Objective(Mixed(), F.mse_loss).dtype == torch.float64


def test_first_layer_in_place_does_not_change_the_batch() -> None:
    this = case("first layer in place")
    before = this.batches[0][0].clone()
    objective = Objective(this.module, this.loss)
    for _ in range(2):
        objective.loss(leaves(objective), this.batches[0])
    assert torch.equal(this.batches[0][0], before)


def test_buffers_of_the_module_never_move() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    objective = Objective(module, F.mse_loss)
    objective.loss(leaves(objective), (torch.randn(5, 4), torch.zeros(5, 3)))
    assert int(module[1].num_batches_tracked) == 0
    assert float(module[1].running_mean.abs().max()) == 0.0


def test_gradients_stay_out_of_the_module() -> None:
    this = case("mlp")
    objective = Objective(this.module, this.loss)
    objective.loss(leaves(objective), this.batches[0]).backward()
    assert all(p.grad is None for p in this.module.parameters())


def test_fixed_seed_makes_dropout_a_function() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 2)).train()
    batch = (torch.ones(3, 20), torch.zeros(3, 2))
    fixed, free = Objective(module, F.mse_loss, seed=3), Objective(module, F.mse_loss)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for objective, repeats in ((fixed, True), (free, False)):
            values = [float(objective.loss(leaves(objective), batch).detach()) for _ in range(2)]
            assert (values[0] == values[1]) == repeats


class Step(nn.Module):
    """A whole training step around a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.inner(batch[0]), batch[1])


def test_a_whole_step_replaces_outputs_and_loss() -> None:
    this = case("mlp")
    apart, whole = Objective(this.module, this.loss), Objective(this.module, None, step_module=Step(this.module))
    assert apart.has_outputs
    assert not whole.has_outputs
    values = [float(o.loss(leaves(o), this.batches[0]).detach()) for o in (apart, whole)]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.ones(3), r"must be a scalar, but its shape is \(3,\); use reduction='mean'"),
        (1.5, "must be a scalar tensor, but it is a float; return the mean"),
        (None, "must be a scalar tensor, but it is a NoneType"),
        ({"loss": torch.tensor(1.0)}, "but it is a dict"),
    ],
)
def test_a_loss_that_is_no_scalar_says_what_to_return(value: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        checked_scalar(value)


def test_one_number_in_any_shape_is_a_scalar() -> None:
    assert checked_scalar(torch.ones(1, 1)).shape == ()


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_differentiate(module: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match=f"{type(module).__name__} has no trainable parameters.*requires_grad"):
        Objective(module, F.mse_loss)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.long), F.cross_entropy),
        (torch.ones(4, 3, 5), torch.zeros(4, 5, dtype=torch.long), F.cross_entropy),
        (torch.ones(4, 3), torch.zeros(4, 3), F.mse_loss),
        (torch.ones(4), torch.zeros(4), F.mse_loss),
        (torch.ones(4, 3), torch.zeros(4), None),
        (torch.ones(4), torch.zeros(4, dtype=torch.long), None),
        ((torch.ones(4),), torch.zeros(4), None),
        (torch.ones(4), None, None),
    ],
)
def test_loss_guessed_from_shapes(outputs: Any, targets: Any, expected: Any) -> None:
    assert default_loss(outputs, targets) is expected


def test_tensors_of_a_nest() -> None:
    assert len(tensors_of({"a": [torch.ones(1), 2], "b": (torch.ones(2), None)})) == 2
