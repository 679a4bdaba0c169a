"""What a rank of a layer is worth, against the module with the two layers put in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_sloppy import compress
from lightning_sloppy.compression.effects import effects
from lightning_sloppy.compression.matrix_layers import find_layers
from lightning_sloppy.compression.statistics import see
from lightning_sloppy.compression.structure import pair_of


def found_in(module, batches):
    module = copy.deepcopy(module)
    return module, [(each.layer, each.directions()) for each in see(module, find_layers(module), batches)]


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 20, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(320, 30), nn.Tanh(), nn.Linear(30, 4)]
    return nn.Sequential(*layers).double()


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5


def test_effects_are_those_of_the_two_layers_in_the_place_of_one():
    module, x = convnet(), images()
    copied, found = found_in(module, [x])
    got = effects(copied, found, [x])
    before = module(x).detach()
    spread = (before - before.mean(0)).square().sum()
    for (layer, directions), position in zip(found, (0, 3, 5), strict=True):
        assert len(got[layer.name]) == layer.largest_rank
        tried = {round(layer.largest_rank ** (step / 5)) for step in range(6)}
        for rank in tried:
            cut = copy.deepcopy(module)
            cut[position] = pair_of(module[position], rank, directions)
            wanted = float((cut(x).detach() - before).square().sum() / spread)
            assert math.isclose(got[layer.name][rank - 1], wanted, rel_tol=1e-6, abs_tol=1e-12)
        # between the ranks tried: not far from what they are
        for rank in set(range(1, layer.largest_rank)) - tried:
            cut = copy.deepcopy(module)
            cut[position] = pair_of(module[position], rank, directions)
            wanted = float((cut(x).detach() - before).square().sum() / spread)
            assert 0.4 < got[layer.name][rank - 1] / wanted < 2.5
    assert not any(layer.module._forward_hooks for layer, _ in found)


def test_only_the_first_samples_are_used():
    module, x = convnet(), images(200)
    copied, found = found_in(module, [x])
    many = effects(copied, found, list(x.split(32)))
    assert many == effects(copied, found, list(x[:64].split(32)))
    assert many != effects(copied, found, list(x.split(64))[1:])


class Residual(nn.Module):
    """Two equal layers into one sum, the second of which counts a hundredth."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 0.01 * self.quiet(x)


def even(module: nn.Module, x: torch.Tensor) -> nn.Module:
    """Both layers at rank 5."""
    made = copy.deepcopy(module)
    for layer, directions in found_in(module, [x])[1]:
        setattr(made, layer.name, pair_of(getattr(module, layer.name), 5, directions))
    return made


def test_a_layer_that_hardly_counts_gives_its_ranks_to_the_other():
    torch.manual_seed(0)
    module, x = Residual().double(), torch.randn(300, 20, dtype=torch.float64)
    module.quiet.load_state_dict(module.loud.state_dict())  # the shares of variance lost are equal
    made = compress(module, [x], size=0.6)
    assert made.structure["quiet"] == 1
    assert "loud" not in made.structure or made.structure["loud"] > 8
    change, other = (float((each(x) - module(x)).detach().square().mean()) for each in (made.module, even(module, x)))
    assert change < 0.01 * other


class Strange(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.calls = kind, nn.Linear(16, 16), 0

    def forward(self, x: torch.Tensor) -> object:
        y, self.calls = self.layer(x), self.calls + 1
        return {
            "constant": torch.zeros(len(y)),
            "whole numbers": y.argmax(1),
            "nothing": None,
            "other shapes": y[: 1 + self.calls % 3],
            "a number": {"loss": y.square().mean()},
            "infinite": torch.where(y.isnan(), y, math.inf),
            "some": (y, {"labels": y.argmax(1), "scores": y.softmax(1)}),
        }[self.kind]


@pytest.mark.parametrize(
    "kind", ["constant", "whole numbers", "nothing", "other shapes", "a number", "infinite", "some"]
)
def test_outputs_that_cannot_be_compared_leave_the_shares_of_variance(kind):
    torch.manual_seed(0)
    module, x = Strange(kind).double(), torch.randn(64, 16, dtype=torch.float64)
    copied, found = found_in(module, [x])
    got = effects(copied, found, [x])
    assert (got is None) == (kind != "some")
    made = compress(module, [x], size=0.6)
    assert made.structure["layer"] >= 1
    if kind == "some":
        assert got["layer"] == sorted(got["layer"], reverse=True)


def test_batches_of_one_sample_give_the_effects_of_one_batch():
    """Their variance is that over all batches; by batches there would be none."""
    module, x = convnet(), images()
    copied, found = found_in(module, [x])
    wanted = effects(copied, found, [x])
    for batches in (list(x.split(1)), list(x.split(7))):
        got = effects(copied, found, batches)
        for name, values in wanted.items():
            assert torch.allclose(torch.tensor(got[name]), torch.tensor(values), rtol=1e-6, atol=1e-12)


def test_of_a_large_batch_a_part_is_used():
    module, x = convnet(), images(500)
    copied, found = found_in(module, [x])
    sizes = []
    copied.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert effects(copied, found, [x]) is not None
    assert set(sizes) == {128}
