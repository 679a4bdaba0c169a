"""The published ways to compress that benchmarks/compression.py compares with, held to exact identities in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import compression_problems as problems
import compression_rivals as rivals

LOW_RANK = ["SVD", "ASVD", "SVD-LLM", "centred"]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 5, bias=False),
    ]
    return nn.Sequential(*layers).double()


def images() -> torch.Tensor:
    return torch.rand(150, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 0.5


def gpt() -> problems.GPT:
    torch.manual_seed(0)
    module = problems.GPT(12, 3, 2, 8, 9).double().eval()
    for parameter in module.parameters():  # LayerNorms that scale and shift
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def tokens() -> torch.Tensor:
    return torch.randint(0, 9, (150, 8), generator=torch.Generator().manual_seed(1))


def full(places: list[rivals.Site]) -> dict[str, int | None]:
    return {site.name: min(site.weight.shape) for site in places}


@pytest.mark.parametrize("way", LOW_RANK)
@pytest.mark.parametrize(("module", "inputs"), [(small(), images()), (gpt(), tokens())], ids=["convolution", "gpt"])
def test_full_rank_changes_nothing(way: str, module: nn.Module, inputs: torch.Tensor) -> None:
    places = rivals.sites(module, inputs)
    made = rivals.low_rank(module, places, full(places), way)
    assert all(isinstance(made.get_submodule(site.name), nn.Sequential) for site in places)
    torch.testing.assert_close(made(inputs), module(inputs), rtol=1e-8, atol=1e-8)


def test_moments_are_those_of_the_vectors_that_a_layer_multiplies() -> None:
    module, x = small(), images()
    places = {site.name: site for site in rivals.sites(module, x)}
    hidden = module[:5](x)
    torch.testing.assert_close(places["5"].second / 150, hidden.T @ hidden / 150)
    torch.testing.assert_close(places["5"].mean / 150, hidden.mean(0))
    torch.testing.assert_close(places["5"].absolute / 150, hidden.abs().mean(0))
    # E |y - b|^2 of a convolution over all of its positions is tr W E[x x^T] W^T of its patches.
    site = places["0"]
    outputs = module[0](x) - module[0].bias[:, None, None]
    assert site.count == 150 * 16
    torch.testing.assert_close(
        torch.trace(site.weight @ site.second @ site.weight.T), outputs.square().sum(), rtol=1e-10, atol=0.0
    )


def test_asvd_with_alpha_zero_is_plain_svd() -> None:
    module, x = small(), images()
    places = rivals.sites(module, x)
    ranks = {site.name: 2 for site in places}
    plain, scaled = (rivals.low_rank(module, places, ranks, way)(x) for way in ("SVD", "ASVD 0"))
    torch.testing.assert_close(plain, scaled)
    assert not torch.allclose(plain, rivals.low_rank(module, places, ranks, "ASVD")(x))


def test_factors_are_the_truncated_decomposition_that_the_papers_invert() -> None:
    site = rivals.sites(small(), images())[1]
    scale = (site.absolute / site.count).sqrt()
    for way, turn in (
        ("SVD", torch.eye(64).double()),
        ("ASVD", scale.diag()),
        ("SVD-LLM", torch.linalg.cholesky(site.second)),
    ):
        left, values, right = torch.linalg.svd(site.weight @ turn, full_matrices=False)
        wanted = left[:, :3] * values[:3] @ right[:3] @ torch.linalg.inv(turn)
        pair = rivals.low_rank(small(), [site], {"3": 3}, way)[3]
        torch.testing.assert_close(pair[1].weight @ pair[0].weight, wanted)
        # and the two factors share the singular values
        root = values[:3].sqrt() if way != "SVD-LLM" else (values[:3] / site.count**0.5).sqrt()
        torch.testing.assert_close(pair[1].weight.norm(dim=0), root)


@pytest.mark.parametrize("way", ["SVD-LLM", "centred"])
def test_whitening_is_the_exact_minimiser_of_its_metric(way: str) -> None:
    """Against a minimiser found by alternating least squares on the outputs, without any whitening."""
    module, x = small(), images()
    site = rivals.sites(module, x)[1]
    inputs = module[:3](x)
    outputs = inputs @ site.weight.T
    if way == "centred":
        inputs, outputs = inputs - inputs.mean(0), outputs - outputs.mean(0)
    left = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(300):
        right = torch.linalg.lstsq(inputs, outputs @ torch.linalg.pinv(left).T).solution.T
        left = torch.linalg.lstsq(inputs @ right.T, outputs).solution.T
    best = (inputs @ (left @ right).T - outputs).square().sum()
    pair = rivals.low_rank(module, [site], {"3": 3}, way)[3]
    got = (inputs @ (pair[1].weight @ pair[0].weight).T - outputs).square().sum()
    torch.testing.assert_close(got, best, rtol=1e-6, atol=0.0)
    whole = (pair(module[:3](x)) - module[:4](x)).square().sum()  # with the biases, as the network sees it
    torch.testing.assert_close(whole, best, rtol=1e-6, atol=0.0)
    values = site.basis(way)[0]
    torch.testing.assert_close(values[3:].square().sum() * len(x), best, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("size", [0.6, 0.35, 0.2])
def test_every_way_stores_what_is_asked_for_and_counts_alike(size: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 3)).double()
    x = torch.randn(200, 40, dtype=torch.float64)
    places = rivals.sites(module, x)
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert rivals.stored(module) == whole
    losses = rivals.sensitivities(module, places, lambda made: float((made(x) - module(x)).detach().square().mean()))
    for ranks in (rivals.uniform(module, places, size), rivals.by_sensitivity(module, places, losses, size)):
        made = rivals.low_rank(module, places, ranks, "ASVD")
        # one rank more in the largest layer would be too large
        assert size * whole - 110 - 100 - 53 < rivals.stored(made) <= size * whole
        assert rivals.stored(made) == sum(parameter.numel() for parameter in made.parameters())
        assert rivals.fits(module, places, ranks, size)
    even = rivals.uniform(module, places, size)
    assert set(even) == {"0", "2"}  # the head stays
    shares = [even[site.name] * sum(site.weight.shape) / site.weight.numel() for site in places[:2]]
    assert max(shares) - min(shares) < 0.05
    pruned = rivals.magnitude(module, size)
    assert rivals.stored(pruned) == int(size * whole)
    assert sum(int((layer.weight != 0).sum()) + layer.bias.numel() for layer in pruned[::2]) == int(size * whole)
    kept = [abs(layer.weight[layer.weight != 0]).min() for layer in pruned[::2]]
    lost = [abs(layer.weight[new.weight == 0]).max() for layer, new in zip(module[::2], pruned[::2], strict=True)]
    assert max(lost) <= min(kept)


def test_asvd_cuts_most_where_the_loss_feels_it_least() -> None:
    torch.manual_seed(0)
    first = nn.Linear(30, 30, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(torch.outer(*torch.randn(2, 30, dtype=torch.float64)))  # rank one: any ratio costs nothing
    module = nn.Sequential(first, nn.Tanh(), nn.Linear(30, 30)).double()
    x = torch.randn(200, 30, dtype=torch.float64)
    places = rivals.sites(module, x)
    losses = rivals.sensitivities(module, places, lambda made: float((made(x) - module(x)).detach().square().mean()))
    assert max(losses["0"]) < 1e-20 < min(losses["2"])
    assert losses["2"] == sorted(losses["2"], reverse=True)
    ranks = rivals.by_sensitivity(module, places, losses, 0.5)
    assert ranks["0"] < ranks["2"]


def test_too_small_a_size_is_no_network() -> None:
    module, x = small(), images()
    places = rivals.sites(module, x)
    assert rivals.uniform(module, places, 0.01) is None
    assert rivals.by_sensitivity(module, places, {site.name: [0.0] * 12 for site in places}, 0.01) is None
    assert rivals.magnitude(module, 0.01) is None
    assert rivals.sliced(gpt(), rivals.turns(gpt(), tokens()), 0.01) is None


def test_slicegpt_at_full_width_changes_nothing() -> None:
    module, x = gpt(), tokens()
    directions = rivals.turns(module, x)
    assert len(directions) == 5
    made = rivals.SlicedGPT(module, directions, 12)
    torch.testing.assert_close(made(x), module(x), rtol=1e-8, atol=1e-8)


def test_slicegpt_deletes_directions_that_hold_nothing_for_free_and_the_last_ones_first() -> None:
    module, x = gpt(), tokens()
    directions = rivals.turns(module, x)
    # A LayerNorm leaves no mean, so one direction of twelve is empty.
    made = rivals.SlicedGPT(module, directions, 11)
    torch.testing.assert_close(made(x), module(x), rtol=1e-8, atol=1e-8)
    errors = [(rivals.SlicedGPT(module, directions, width)(x) - module(x)).square().mean() for width in (10, 6, 2)]
    assert errors[0] < errors[1] < errors[2]
    backwards = [turn.flip(1) for turn in directions]
    assert (rivals.SlicedGPT(module, backwards, 6)(x) - module(x)).square().mean() > errors[1]
    assert rivals.stored(rivals.sliced(module, directions, 0.7)) <= 0.7 * rivals.stored(module)


def test_a_pruned_weight_stays_zero_through_fine_tuning_and_a_pair_learns() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    x, y = torch.randn(100, 20), torch.randint(0, 3, (100,))
    parts = problems.Parts((x, y), (x, y), (x, y))
    problem = problems.Problem(lambda: module, lambda root, seed: parts, epochs=1, rate=1e-2)
    places = rivals.sites(module, x)
    for made in (rivals.magnitude(module, 0.3), rivals.low_rank(module, places, full(places), "SVD")):
        before, size = problems.loss(made, parts.train), rivals.stored(made)
        zeros = [layer.weight == 0 for layer in made.modules() if hasattr(layer, "weight_mask")]
        problems.fine_tune(made, problem, parts, 0)
        assert problems.loss(made, parts.train) < before
        assert rivals.stored(made) == size
        after = [layer.weight == 0 for layer in made.modules() if hasattr(layer, "weight_mask")]
        assert all(bool(new[old].all()) for old, new in zip(zeros, after, strict=True))
