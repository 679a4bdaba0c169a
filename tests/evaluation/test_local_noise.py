"""Random weights in a forward: the right moments where outputs are drawn, one draw everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sloppy.evaluation.local_noise import LocalNoise, RandomWeight


def tables(module: nn.Module, variance: float = 0.04) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    means = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    return means, {name: torch.full_like(mean, variance).requires_grad_() for name, mean in means.items()}


def noise(means, variances, seed: int = 0) -> LocalNoise:
    laws = {name: RandomWeight(means[name], variances[name]) for name in means}
    return LocalNoise(means, laws, torch.Generator().manual_seed(seed))


def outputs(module: nn.Module, means, variances, inputs: Tensor, seed: int = 0) -> Tensor:
    with noise(means, variances, seed):
        return functional_call(module, means, (inputs,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 3), (6,)),
        (nn.Linear(6, 3, bias=False), (6,)),
        (nn.Conv1d(2, 3, 3, padding=1), (2, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 7, 7)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    ],
)
def test_outputs_have_the_moments_of_drawn_weights(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, *shape)
    means, variances = tables(module)
    many = outputs(module, means, variances, inputs.expand(20_000, *shape)).detach().flatten(1)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack(
        [
            functional_call(
                module,
                {name: mean + 0.2 * torch.randn(mean.shape, generator=generator) for name, mean in means.items()},
                (inputs,),
            ).detach()
            for _ in range(4_000)
        ]
    ).flatten(1)
    error = drawn.std(0) / 4_000**0.5
    assert ((many.mean(0) - drawn.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(many.std(0), drawn.std(0), rtol=0.08, atol=0)


def test_every_sample_has_noise_of_its_own_and_slopes_reach_both_tables() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    means, variances = tables(module)
    found = outputs(module, means, variances, torch.ones(3, 4))
    assert len({tuple(row.tolist()) for row in found}) == 3
    gradients = torch.autograd.grad(found.square().sum(), [*means.values(), *variances.values()])
    assert all(bool((g != 0).any()) for g in gradients)
    again = outputs(module, means, variances, torch.ones(3, 4))
    assert torch.equal(found, again)
    assert not torch.equal(found, outputs(module, means, variances, torch.ones(3, 4), seed=1))


class Mixed(nn.Module):
    """A table, a norm, a bare weight, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.bare = nn.Parameter(torch.randn(4, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.table(tokens)) @ self.bare
        return torch.einsum("nd,de->ne", hidden, self.bare) @ self.table.weight.T


def test_elsewhere_one_draw_serves_the_whole_forward() -> None:
    torch.manual_seed(0)
    module = Mixed()
    means, variances = tables(module)
    tokens = torch.tensor([3, 3, 3])
    found = outputs(module, means, variances, tokens)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], module(tokens)[0])
    # The same draw, put in place by hand.
    mode = noise(means, variances)
    with mode:
        functional_call(module, means, (tokens,))
    drawn = {name: mode._draws[id(mean)] for name, mean in means.items()}
    torch.testing.assert_close(functional_call(module, drawn, (tokens,)), found)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(4, 3, batch_first=True), lambda: nn.GRU(4, 3, batch_first=True)])
def test_recurrent_layers_get_one_draw(make) -> None:
    module = make()
    means, variances = tables(module)
    inputs = torch.ones(2, 5, 4)
    with noise(means, variances):
        found = functional_call(module, means, (inputs,))[0]
    assert torch.allclose(found[0], found[1])
    assert not torch.allclose(found, functional_call(module, means, (inputs,))[0])
    assert torch.autograd.grad(found.sum(), list(variances.values()))


def test_attention_works() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    means, variances = tables(module)
    inputs = torch.randn(2, 5, 8)
    found = outputs(module, means, variances, inputs)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, module(inputs), atol=1e-3)


def test_nothing_of_it_stays() -> None:
    module = nn.Linear(3, 2)
    before = module(torch.ones(1, 3))
    means, variances = tables(module)
    outputs(module, means, variances, torch.ones(1, 3))
    assert torch.equal(module(torch.ones(1, 3)), before)


def turned(module: nn.Module, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, RandomWeight]]:
    """Laws of a layer whose weight and bias are independent in a basis, around the module's own numbers."""
    generator = torch.Generator().manual_seed(seed)
    table = {name: p.detach().clone() for name, p in module.named_parameters()}
    rows, columns = table["weight"].flatten(1).shape
    left, right = (torch.linalg.qr(torch.randn(k, k, generator=generator)).Q for k in (rows, columns))

    def law(name: str, shape: tuple[int, ...], side: Tensor | None) -> RandomWeight:
        mean, variance = torch.randn(shape, generator=generator), 0.1 * torch.rand(shape, generator=generator)
        return RandomWeight(mean.requires_grad_(), variance.requires_grad_(), table[name], left, side)

    laws = {"weight": law("weight", (rows, columns), right)}
    return table, laws | ({"bias": law("bias", (rows,), None)} if "bias" in table else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 3), (6,)),
        (nn.Linear(6, 3, bias=False), (6,)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
        (nn.Conv1d(2, 3, 3, dilation=2), (2, 7)),
    ],
)
@pytest.mark.parametrize("of_bias", [True, False])
def test_turned_weights_have_the_moments_of_their_draws(
    module: nn.Module, shape: tuple[int, ...], of_bias: bool
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, *shape)
    table, laws = turned(module)
    if not of_bias:
        laws = {"weight": laws["weight"]}
    with LocalNoise(table, laws, torch.Generator().manual_seed(0)):
        many = functional_call(module, table, (inputs.expand(20_000, *shape),)).detach().flatten(1)
    generator, drawn = torch.Generator().manual_seed(1), []
    for _ in range(4_000):
        drawing = LocalNoise(table, laws, generator)
        weights = {name: drawing._drawn(value) for name, value in table.items()}
        drawn.append(functional_call(module, weights, (inputs,)).detach())
    drawn = torch.stack(drawn).flatten(1)
    error = drawn.std(0) / 4_000**0.5
    assert ((many.mean(0) - drawn.mean(0)).abs() < 5 * error + 1e-5).all()
    torch.testing.assert_close(many.std(0), drawn.std(0), rtol=0.08, atol=0)
    mean, law = laws["weight"].mean.detach(), laws["weight"]
    centre = table["weight"] + (law.left @ mean @ law.right.T).view_as(table["weight"])
    bias = table.get("bias")
    if bias is not None and of_bias:
        bias = bias + law.left @ laws["bias"].mean.detach()
    exact = functional_call(module, {"weight": centre} | ({} if bias is None else {"bias": bias}), (inputs,))
    assert ((many.mean(0) - exact.flatten()).abs() < 5 * many.std(0) / 20_000**0.5 + 1e-5).all()


def test_slopes_reach_turned_means_and_variances() -> None:
    module = nn.Linear(4, 3)
    table, laws = turned(module)
    with LocalNoise(table, laws, torch.Generator().manual_seed(0)):
        found = functional_call(module, table, (torch.ones(5, 4),))
    leaves = [leaf for law in laws.values() for leaf in (law.mean, law.variance)]
    assert all(bool((g != 0).any()) for g in torch.autograd.grad(found.square().sum(), leaves))
