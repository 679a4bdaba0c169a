"""Fresh initialisations of a module that is never written to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_sloppy.evaluation.initialisations import Initialisations


class Own(nn.Module):
    """A parameter of its own beside a layer, and one that is constant at first."""

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.token = nn.Parameter(torch.randn(width))
        self.scale = nn.Parameter(torch.ones(width))


class Loading(Own):
    """Its constructor takes the layer from somewhere else."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(12.0).reshape(3, 4))


class Listed(nn.Module):
    """Its reset goes through a function that holds the module's own layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.fill = lambda: self.layer.weight.data.fill_(7.0)

    def reset_parameters(self):
        self.fill()


def test_draws_are_those_of_the_layers():
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    before = copy.deepcopy(module.state_dict())
    stream = torch.get_rng_state()
    fresh = Initialisations(module)
    first, second = fresh.draw(0), fresh.draw(1)
    assert fresh.drawn == frozenset(before)
    assert fresh.kept == ()
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), before.values(), strict=True))
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(first["1.weight"], torch.ones(8))
    assert not torch.equal(first["0.weight"], second["0.weight"])
    assert torch.equal(fresh.draw(0)["0.weight"], first["0.weight"])
    # Uniform on +- 1/sqrt(4), as the layer's own constructor has it.
    entries = torch.cat([fresh.draw(number)["0.weight"].flatten() for number in range(50)])
    assert float(entries.abs().max()) <= 0.5
    assert float(entries.std()) == pytest.approx(0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.Conv2d(1, 2, 3),
        nn.Embedding(5, 3, padding_idx=0),
        nn.BatchNorm1d(3),
    ],
)
def test_layers_of_torch_are_drawn_whole(module):
    assert Initialisations(module).drawn == {name for name, _ in module.named_parameters()}


def test_a_parameter_without_a_reset_is_kept_unless_the_module_can_be_made_again():
    module = Own()
    fresh = Initialisations(module)
    assert fresh.drawn == {"layer.weight", "layer.bias"}
    assert fresh.kept == ("token",)
    rebuilt = Initialisations(module, rebuild=Own)
    assert rebuilt.drawn == {"layer.weight", "layer.bias", "token", "scale"}
    assert rebuilt.kept == ()
    torch.manual_seed(0)
    assert not torch.equal(rebuilt.draw(0)["token"], rebuilt.draw(1)["token"])
    # A trained scale is no constant any more; at the start it was one.
    with torch.no_grad():
        module.scale.copy_(torch.arange(3.0))
    assert Initialisations(module).kept == ("token", "scale")
    assert Initialisations(module, start={"scale": torch.ones(3)}).kept == ("token",)
    assert Initialisations(module, rebuild=lambda: Own(5)).kept == ("token", "scale"), "of other shapes"
    assert Initialisations(module, rebuild=lambda: Own(oops=1)).kept == ("token", "scale")


def test_weights_that_a_constructor_loads_are_drawn_by_their_layer():
    fresh = Initialisations(Loading(), rebuild=Loading)
    first, second = fresh.draw(0), fresh.draw(1)
    assert not torch.equal(first["layer.weight"], second["layer.weight"])
    assert not torch.equal(first["token"], second["token"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_tied_weights_stay_tied_and_wrapped_ones_are_found():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert Initialisations(tied).drawn == {name for name, _ in tied.named_parameters()}
    wrapped = torch.compile(nn.Linear(4, 3))
    before = wrapped.weight.detach().clone()
    assert Initialisations(wrapped).drawn == {"_orig_mod.weight", "_orig_mod.bias"}
    assert torch.equal(wrapped.weight, before)


def test_a_normed_weight_is_kept():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert Initialisations(module).kept == ("parametrizations.weight.original0", "parametrizations.weight.original1")


def test_a_reset_that_reaches_the_module_itself_leaves_no_trace():
    module = Listed()
    before = module.layer.weight.detach().clone()
    fresh = Initialisations(module)
    assert torch.equal(module.layer.weight, before)
    fresh.draw(0)
    assert torch.equal(module.layer.weight, before)


class Chain(nn.Module):
    """Its reset goes through a plain list of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.chain = [self.first, self.second]

    def reset_parameters(self):
        for layer in self.chain:
            layer.weight.data.fill_(7.0)


def test_a_reset_through_a_list_of_layers_is_followed():
    module = Chain()
    before = module.first.weight.detach().clone()
    assert torch.equal(Initialisations(module).draw(0)["second.weight"], torch.full((4, 4), 7.0))
    assert torch.equal(module.first.weight, before)
