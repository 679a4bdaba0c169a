"""Which parameters: patterns, layers, frozen, unused, scalar, empty and tied ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.cases import case, dense_hessian
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError


def block_of(matrix: Tensor, names: list[str], sizes: dict[str, int], layer: str) -> Tensor:
    rows, start = [], 0
    for name in names:
        if name.rpartition(".")[0] == layer:
            rows += range(start, start + sizes[name])
        start += sizes[name]
    return matrix[rows][:, rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[(name, method) for name in ("mlp", "tied", "cnn") for method in ("kept_graph", "recomputed")],
        ("mlp", "central_differences"),  # without kinks
        ("tied", "central_differences"),
    ],
)
def test_the_blocks_of_layers_are_those_of_the_dense_matrix(name: str, method: str) -> None:
    this = case(name)
    dense = dense_hessian(this)
    sizes = {n: p.numel() for n, p in this.parameters.items()}
    found = hessian_spectrum(this.module, this.batches, this.loss, k=100, by_layer=True, method=method)
    assert set(found.layers) == {n.rpartition(".")[0] for n in sizes}
    for layer, spectrum in found.layers.items():
        expected = torch.linalg.eigvalsh(block_of(dense, list(sizes), sizes, layer)).flip(0)
        torch.testing.assert_close(spectrum.eigenvalues, expected[:100], rtol=1e-6, atol=1e-8)
        assert spectrum.dim == len(expected)
        if name == "tied":
            continue  # a pattern finds a tied weight by both of its names
        alone = hessian_spectrum(this.module, this.batches, this.loss, k=100, parameters=f"{layer}.*", method=method)
        torch.testing.assert_close(alone.eigenvalues, spectrum.eigenvalues, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_fisher_by_layer_adds_up_to_the_trace(kind: str) -> None:
    this = case("cnn")
    whole = fisher_spectrum(this.module, this.batches, this.loss, kind, by_layer=True)
    assert whole.trace is not None
    assert sum(spectrum.trace.value for spectrum in whole.layers.values()) == pytest.approx(whole.trace.value)
    for layer, spectrum in whole.layers.items():
        alone = fisher_spectrum(this.module, this.batches, this.loss, kind, parameters=f"{layer}.*")
        torch.testing.assert_close(alone.eigenvalues, spectrum.eigenvalues, rtol=1e-8, atol=1e-13)


def test_patterns_name_what_they_do_not_find() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert ParameterLayout.of(module, ["0.weight", "1.*"]).names == ("0.weight", "1.weight", "1.bias")
    module[0].weight.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"parameters='0.weight' matches no trainable.*0.bias"):
        ParameterLayout.of(module, "0.weight")


def test_a_tied_parameter_is_found_by_both_of_its_names() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embedding"].weight
    assert ParameterLayout.of(module, "head.*").names == ParameterLayout.of(module, "embedding.*").names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_of_a_compiled_module_are_those_of_the_module() -> None:
    module = torch.compile(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    assert ParameterLayout.of(module, "1.*").dim == 4
    assert set(ParameterLayout.of(module).layers()) == {"0", "1"}


class Odd(nn.Module):
    """A scalar, an empty, an unused and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * self.scale * self.frozen + self.empty.sum()


@pytest.mark.parametrize("method", ["kept_graph", "recomputed", "central_differences"])
def test_scalar_empty_unused_and_frozen_parameters(method: str) -> None:
    torch.manual_seed(0)
    module = Odd().double()
    batch = (torch.randn(6, 3).double(), torch.randint(0, 2, (6,)))
    found = hessian_spectrum(module, [batch], F.cross_entropy, k=20, method=method, by_layer=True)
    assert found.dim == 8 + 1 + 0 + 3
    assert "unused" in str(found.detail["unused"]).split(", ")
    assert "frozen" not in str(found.detail["unused"])

    names = ["net.weight", "net.bias", "scale"]
    start = torch.cat([dict(module.named_parameters())[name].detach().reshape(-1) for name in names])

    def loss(vector: Tensor) -> Tensor:
        weight, bias, scale = vector[:6].view(2, 3), vector[6:8], vector[8]
        return F.cross_entropy((batch[0] @ weight.T + bias) * scale, batch[1])

    used = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, start))
    expected = torch.cat([used, torch.zeros(3).double()]).sort(descending=True).values
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-6, atol=1e-8)
    exact = fisher_spectrum(module, [batch], F.cross_entropy, "exact")
    assert "unused" in str(exact.detail["unused"]).split(", ")


class Branching(nn.Module):
    """A second layer that only large inputs reach."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        large = inputs[:, :1] > 3
        return torch.where(large, self.second(inputs), self.first(inputs)) if bool(large.any()) else self.first(inputs)


@pytest.mark.parametrize("place", [0, 4])
def test_a_parameter_that_few_samples_use_is_not_called_unused(place: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(40, 3).clamp(-2, 2)
    inputs[place] += 9
    module, targets = Branching().double(), torch.randint(0, 2, (40,))
    found = fisher_spectrum(module, [(inputs.double(), targets)], F.cross_entropy)
    assert found.detail["unused"] == "unused.weight, unused.bias"
    rows = []
    for sample, target in zip(inputs.double(), targets, strict=True):
        loss = F.cross_entropy(module(sample[None]), target[None])
        parts = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    expected = torch.linalg.eigvalsh(torch.stack(rows) @ torch.stack(rows).T / 40).flip(0)[: found.dim]
    torch.testing.assert_close(found.eigenvalues, expected.clamp_min(0), rtol=1e-6, atol=1e-12)
