"""What a rank of a layer is worth, against the module with the two layers put in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_sloppy import compress
from lightning_sloppy.compression.effects import LARGEST, IncomparableError, effects
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


NOTES = {
    "constant": "because the outputs are the same for all samples;",
    "whole numbers": "because forward returns no tensor of floating-point numbers with a row for each sample;",
    "nothing": "because forward returns no tensor of floating-point numbers",
    "other shapes": "because forward returns tensors of another shape at another call;",
    "a number": "because forward returns no tensor of floating-point numbers",
    "infinite": "because the outputs are not finite;",
}


@pytest.mark.parametrize("kind", [*NOTES, "some"])
def test_outputs_that_cannot_be_compared_leave_the_shares_of_variance(kind):
    torch.manual_seed(0)
    module, x = Strange(kind).double(), torch.randn(64, 16, dtype=torch.float64)
    copied, found = found_in(module, [x])
    made = compress(module, [x], size=0.6)
    assert made.structure["layer"] >= 1
    if kind == "some":
        got = effects(copied, found, [x])
        assert got["layer"] == sorted(got["layer"], reverse=True)
        assert not made.notes
        return
    with pytest.raises(IncomparableError):
        effects(copied, found, [x])
    (note,) = made.notes
    assert NOTES[kind] in note
    assert "shared out by the share of its own output variance that each layer loses" in note
    assert not compress(module, [x], keep=0.6).notes  # which shares nothing out


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


class Guarding(nn.Module):
    """Refuses outputs of its layer in one direction, as a distribution refuses scales that are not positive."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.free = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if torch.linalg.matrix_rank(y - y.mean(0), rtol=1e-6) < 2:
            raise ValueError("one direction is too few")
        return y + self.free(x)


def test_a_rank_with_which_the_forward_fails_has_the_largest_effect():
    torch.manual_seed(0)
    module, x = Guarding().double(), torch.randn(64, 16, dtype=torch.float64)
    copied, found = found_in(module, [x])
    got = effects(copied, found, [x])
    assert got["layer"][0] == pytest.approx(LARGEST)
    assert max(got["free"]) < 10


def test_batches_without_a_tensor_to_count_samples_by_are_used_whole():
    class OfTexts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(128, 16), nn.Linear(16, 16)

        def forward(self, texts: list[str]) -> torch.Tensor:
            return torch.stack([self.layer(self.embed(torch.tensor(list(text.encode()))).mean(0)) for text in texts])

    torch.manual_seed(0)
    batches = [[f"text {number} {letter}" for letter in "abcde"] for number in range(20)]
    done = compress(OfTexts().double(), batches, size=0.95)
    assert done.structure["layer"] >= 1
    assert not done.notes or "effects" not in done.notes[0]
