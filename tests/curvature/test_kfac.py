"""Kronecker factors against dense blocks and against their formulas written out, and the posterior made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cases import Case, dense_gauss_newton
from support.habits import Tied, Twice
from support.layers import LENGTH, Apply, built, number, scaled
from torch import Tensor, nn

from lightning_sloppy import ConfigurationError
from lightning_sloppy.curvature import kfac
from lightning_sloppy.curvature.cotangents import Fisher
from lightning_sloppy.curvature.kfac import LARGEST_FACTOR, factors_of, kronecker_factors
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.posteriors import kronecker_posterior
from lightning_sloppy.posteriors.families import DiagonalGaussian, KroneckerGaussian

Batches = list[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def soft_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """No loss of torch."""
    return torch.log(torch.cosh(outputs - targets)).mean()


def table(module: nn.Module, loss: Loss, batches: Batches, **options: Any) -> dict[str, tuple[Tensor, Tensor] | None]:
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    factors, sizes = kronecker_factors(module, loss, batches, **options)
    assert sizes == [p.numel() for p in module.parameters() if p.requires_grad]
    return dict(zip(names, factors, strict=True))


def blocks(module: nn.Module, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """Of the Gauss-Newton matrix by plain autograd."""
    found, start, whole = {}, 0, dense_gauss_newton(Case(module, loss, batches))
    for name, parameter in module.named_parameters():
        part = slice(start, start + parameter.numel())
        found[name], start = whole[part, part], part.stop
    return found


def assert_exact(module: nn.Module, loss: Loss, batches: Batches, without: str = "", **options: Any) -> None:
    expected = blocks(module, loss, batches)
    for name, pair in table(module, loss, batches, **options).items():
        if without and without in name:
            assert pair is None
        else:
            assert pair is not None, name
            torch.testing.assert_close(torch.kron(*pair), expected[name], rtol=1e-8, atol=1e-12)


def by_hand(
    module: nn.Module, parameter: Tensor, loss: Loss, batches: Batches, positions: str
) -> tuple[Tensor, Tensor]:
    """B and A by loops over samples, columns of the root of the loss's Hessian, calls and positions."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append((layer, (args or [kwargs["input"]])[0].detach(), output))

    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (layer.weight is parameter or layer.bias is parameter)
    ]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    sum_b, sum_a, samples, terms = 0.0, 0.0, 0, 0
    for x, y in batches:
        for i in range(len(x)):
            seen.clear()
            outputs = module(x[i : i + 1])
            flat = outputs.reshape(-1)
            inner = torch.autograd.functional.hessian(
                lambda f, y=y, i=i, like=outputs: loss(f.view_as(like), y[i : i + 1]), flat.detach()
            )
            values, vectors = torch.linalg.eigh(inner)
            inputs = [a for layer, given, _ in seen for a in rows_in(layer, given)]
            if positions == "reduce":
                inputs = [sum(inputs) / len(inputs)]
            for a in inputs:
                sum_a, terms = sum_a + torch.outer(a, a), terms + 1
            for value, vector in zip(values, vectors.T, strict=True):
                slopes = torch.autograd.grad(
                    flat, [out for *_, out in seen], vector * value.clamp(min=0).sqrt(), retain_graph=True
                )
                rows = [row for (layer, *_), slope in zip(seen, slopes, strict=True) for row in rows_out(layer, slope)]
                for row in rows if positions == "expand" else [sum(rows)]:
                    sum_b = sum_b + torch.outer(row, row)
            samples += 1
    for hook in hooks:
        hook.remove()
    return sum_b / samples, sum_a / terms


def rows_in(layer: nn.Module, given: Tensor) -> list[Tensor]:
    if isinstance(layer, nn.Linear):
        return list(given.reshape(-1, given.shape[-1]))
    patches = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return [column for image in patches for column in image.T]


def rows_out(layer: nn.Module, slope: Tensor) -> list[Tensor]:
    if isinstance(layer, nn.Linear):
        return list(slope.reshape(-1, slope.shape[-1]))
    return [pixel for image in slope for pixel in image.flatten(1).T]


def test_of_one_sample_the_factors_are_the_gauss_newton_matrix() -> None:
    """Of a single sample the Kronecker factorisation is exact, layer by layer, whatever the loss."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x, floats = torch.randn(1, 3).double(), torch.randn(1, 2).double()
    for loss, target in (
        (F.cross_entropy, torch.tensor([1])),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([1])),
        (nn.MSELoss(), floats),
        (F.binary_cross_entropy_with_logits, floats.sigmoid()),
        (soft_distance, floats),
        (nn.PoissonNLLLoss(), floats.exp()),
    ):
        for positions in ("expand", "reduce"):
            assert_exact(module, loss, [(x, target)], without="2.", positions=positions)
    factors, sizes = kronecker_factors(module, nn.CrossEntropyLoss(), [(x, torch.tensor([1]))])
    posterior = kronecker_posterior(
        torch.cat([p.detach().reshape(-1) for p in module.parameters()]), factors, sizes, epsilon=5.0, tau=100.0
    )
    assert [type(part) for part in posterior.parts] == [
        DiagonalGaussian if factor is None else KroneckerGaussian for factor in factors
    ]
    assert factors[0][0] is factors[1][0], "weight and bias share the factor of their outputs"
    dense = 100.0 * torch.kron(*factors[0]) + 5.0 * torch.eye(12).double()
    step = torch.randn(12).double()
    assert posterior.parts[0].precision_form(step) == pytest.approx(float(step @ dense @ step))
    assert posterior.parts[0].log_det_precision() == pytest.approx(float(torch.logdet(dense)))


def two_batches(*shape: int, targets: tuple[int, ...]) -> Batches:
    return [(torch.randn(n, *shape).double(), torch.randn(n, *targets).double()) for n in (3, 5)]


@pytest.mark.parametrize("positions", ["expand", "reduce"])
def test_of_deep_linear_networks_with_squared_error_the_factors_are_exact(positions: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.Linear(5, 2)).double()
    assert_exact(module, F.mse_loss, two_batches(3, targets=(2,)), positions=positions)


def test_where_every_position_has_a_loss_of_its_own_expand_is_exact() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    assert_exact(module, F.mse_loss, two_batches(LENGTH, 3, targets=(LENGTH, 2)))


def pooled(forward: Callable[[nn.Module, Tensor], Tensor], **sizes: tuple[int, int]) -> nn.Module:
    return Apply(forward, **{name: nn.Linear(*pair) for name, pair in sizes.items()})


POOLED = {
    "mean of a sequence": (
        lambda: pooled(lambda m, x: m.last(m.second(m.first(x)).mean(1)), first=(3, 4), second=(4, 5), last=(5, 2)),
        (LENGTH, 3),
    ),
    "sum of rows of samples and positions": (
        lambda: pooled(
            lambda m, x: m.last(m.first(x.reshape(-1, 3)).view(len(x), -1, 4).sum(1)), first=(3, 4), last=(4, 2)
        ),
        (LENGTH, 3),
    ),
    "mean of pixels": (
        lambda: Apply(
            lambda m, x: m.last(m.first(x).mean((2, 3))),
            first=nn.Conv2d(2, 3, 2, stride=2, padding=1),
            last=nn.Linear(3, 2),
        ),
        (2, 5, 4),
    ),
    "sum of calls": (
        lambda: pooled(lambda m, x: m.last(m.first(x) + m.first(x.flip(1))), first=(4, 4), last=(4, 2)),
        (4,),
    ),
}


@pytest.mark.parametrize("name", POOLED)
def test_where_outputs_are_means_over_positions_reduce_is_exact(name: str) -> None:
    torch.manual_seed(0)
    build, shape = POOLED[name]
    module, batches = build().double(), two_batches(*shape, targets=(2,))
    assert_exact(module, F.mse_loss, batches, positions="reduce")
    other = table(module, F.mse_loss, batches, positions="expand")["first.weight"]
    assert not torch.allclose(torch.kron(*other), blocks(module, F.mse_loss, batches)["first.weight"], rtol=0.05)


SERVED = [
    "linear",
    "linear on a sequence",
    "linear on a grid",
    "linear without bias",
    "linear with a frozen weight",
    "linear with a frozen bias",
    "linear by keyword",
    "linear on rows of samples and positions",
    "linear with samples second",
    "linear on rows of positions and samples",
    "linear, called twice",
    "linear, called twice on different lengths",
    "linear, weights tied",
    "conv 2d",
    "conv of one position",
    "conv with strides",
    "conv with dilation",
    "conv, called twice",
    "conv on several images of a sample",
    "conv on images of all samples in turn",
]


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["expand", "reduce"])
@pytest.mark.parametrize("name", SERVED)
def test_factors_are_those_of_the_formula_position_by_position(name: str, positions: str) -> None:
    module, inputs, _ = built(name)
    batches = [(x, torch.randn_like(module(x))) for x in inputs]
    found = table(module, soft_distance, batches, positions=positions)
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        outputs, seen = by_hand(module, parameter, soft_distance, batches, positions)
        torch.testing.assert_close(found[key][0], outputs, rtol=1e-9, atol=1e-14)
        expected = seen if parameter.ndim > 1 else torch.ones(1, 1).double()
        torch.testing.assert_close(found[key][1], expected, rtol=1e-9, atol=1e-14)


def test_a_transformer_like_network_with_classes() -> None:
    """Tokens (N, T, d) with a mean in the end, by the formula; its attention counts as two linear layers."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0)
    module = Apply(lambda m, x: m.head(m.block(x).mean(1)), block=block, head=nn.Linear(4, 3)).double()
    batches = [(torch.randn(n, LENGTH, 4).double(), torch.randint(0, 3, (n,))) for n in (4, 3)]
    found = table(module, F.cross_entropy, batches)
    assert {name for name, pair in found.items() if pair is None} == {
        f"block.norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    for key in ("block.linear1.weight", "block.linear2.bias", "head.weight"):
        outputs, seen = by_hand(module, module.get_parameter(key), F.cross_entropy, batches, "expand")
        torch.testing.assert_close(found[key][0], outputs, rtol=1e-9, atol=1e-14)
        if key.endswith("weight"):
            torch.testing.assert_close(found[key][1], seen, rtol=1e-9, atol=1e-14)
    tokens = torch.cat([x.reshape(-1, 4) for x, _ in batches])
    torch.testing.assert_close(found["block.self_attn.in_proj_weight"][1], tokens.T @ tokens / len(tokens))
    assert found["block.self_attn.in_proj_weight"][0].shape == (12, 12)


LEFT_OUT = {
    "conv in groups": ["layer.weight", "layer.bias"],
    "conv, transposed": ["layer.weight", "layer.bias"],
    "embedding": ["layer.weight"],
    "embedding tied to the last layer": ["table.weight"],
    "layer norm": ["layer.weight", "layer.bias"],
    "samples in another order": ["layer.weight", "layer.bias"],
    "weight both ways round": ["scale"],
    "weight and a turned copy": ["scale"],
    "product from the left": ["scale"],
    "partly frozen": ["unused"],
    "class token": ["token", "places"],
    "conv 1d": [],
    "conv 3d": [],
    "conv of the same size": [],
    "conv, circular": [],
    "product of matrices": [],
    "product with something added": [],
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_has_no_factors(name: str) -> None:
    module, inputs, _ = built(name)
    batches = [(x, torch.randn_like(module(x))) for x in inputs]
    found = table(module, soft_distance, batches)
    assert [key for key, pair in found.items() if pair is None] == LEFT_OUT[name]
    for key, parameter in module.named_parameters():
        if found.get(key) is not None:
            assert found[key][0].shape[0] * found[key][1].shape[0] == parameter.numel()


def test_weights_stored_the_other_way_round() -> None:
    torch.manual_seed(0)
    module = scaled(lambda m, x: x @ m.scale, 4, 3).double()
    assert_exact(module, soft_distance, [(torch.randn(1, 4).double(), torch.randn(1, 3).double())])
    module = Apply(lambda m, x: torch.addmm(m.shift, x, m.weight).tanh(), shift=number(3), weight=number(4, 3)).double()
    assert_exact(module, soft_distance, [(torch.randn(1, 4).double(), torch.randn(1, 3).double())])


@pytest.mark.parametrize(("kind", "name"), [(Tied, "first.weight"), (Twice, "layer.weight")])
def test_calls_that_share_a_weight_are_positions(kind: type[nn.Module], name: str) -> None:
    torch.manual_seed(0)
    module = kind().double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    hidden = torch.tanh(next(module.children())(x)).detach()
    found = table(module, F.cross_entropy, [(x, y)])[name]
    torch.testing.assert_close(found[1], (x.T @ x + hidden.T @ hidden) / 12)


def test_a_call_that_no_output_depends_on_is_no_position() -> None:
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.layer(100 * x)
        return m.layer(x)

    x, y = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    module = Apply(forward, layer=nn.Linear(4, 2)).double()
    assert_exact(module, F.mse_loss, [(x, y)])


def test_samples_count_as_much_as_in_the_loss() -> None:
    """With weights deep linear networks are exact as well, and ignored targets add nothing."""
    torch.manual_seed(0)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        values, weights = targets[:, :2], targets[:, 2]
        return (weights * (outputs - values).square().mean(1)).sum() / weights.sum()

    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    batches = [(torch.randn(n, 3).double(), torch.rand(n, 3).double()) for n in (4, 3)]
    objective = Objective(module, loss, weights=lambda targets: targets[:, 2])
    found = factors_of(objective, ParameterLayout.of(module), objective.prepare(batches))
    x, w = (torch.cat([batch[0] for batch in batches]), torch.cat([batch[1][:, 2] for batch in batches]))
    block = torch.kron(module[1].weight.T @ module[1].weight, (w[:, None] * x).T @ x / w.sum())
    torch.testing.assert_close(torch.kron(*found[0]), block.detach(), rtol=1e-9, atol=1e-14)

    classes = torch.tensor([1, -100, 0, -100])
    some, all_of_them = torch.tensor([0, 2]), batches[0][0]
    first = kronecker_factors(module, F.cross_entropy, [(all_of_them, classes)])[0]
    second = kronecker_factors(module, F.cross_entropy, [(all_of_them[some], classes[some])])[0]
    for pair, other in zip(first, second, strict=True):
        torch.testing.assert_close(pair, other)
    with pytest.raises(ConfigurationError, match="all samples of the batches have weight zero"):
        kronecker_factors(module, F.cross_entropy, [(all_of_them, torch.full((4,), -100))])


def test_a_loss_that_adds_up_its_samples_has_the_factors_of_the_mean() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    batches = [(torch.randn(n, 3).double(), torch.randint(0, 2, (n,))) for n in (4, 6)]
    mean = kronecker_factors(module, nn.CrossEntropyLoss(), batches)[0]
    for loss in (nn.CrossEntropyLoss(reduction="sum"), lambda f, y: F.cross_entropy(f, y, reduction="none").sum()):
        torch.testing.assert_close(kronecker_factors(module, loss, batches)[0], mean)


def test_a_loss_without_curvature_has_factors_of_zeros() -> None:
    module = nn.Linear(3, 2).double()
    x = torch.randn(6, 3).double()
    for loss, target in ((F.l1_loss, torch.randn(6, 2).double()), (F.cross_entropy, torch.zeros(6, dtype=torch.long))):
        module.bias.data = torch.tensor([1e4, -1e4]).double()  # saturated: the probabilities are 1 and 0
        found = table(module, loss, [(x, target)])
        assert not found["weight"][0].any()
        torch.testing.assert_close(found["weight"][1], x.T @ x / 6)


def test_other_fisher_matrices() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 3).double(), torch.randint(0, 3, (5,))
    slopes = torch.autograd.grad(F.cross_entropy(module(x[:1]), y[:1]), list(module.parameters()))
    found = kronecker_factors(module, F.cross_entropy, [(x[:1], y[:1])], fisher=Fisher("empirical"))[0]
    for pair, slope in zip(found, slopes, strict=True):
        torch.testing.assert_close(torch.kron(*pair), torch.outer(slope.reshape(-1), slope.reshape(-1)))
    exact = kronecker_factors(module, F.cross_entropy, [(x, y)])[0]
    sampled = kronecker_factors(module, F.cross_entropy, [(x, y)], fisher=Fisher("sampled", labels=2_000))[0]
    for pair, other in zip(exact, sampled, strict=True):
        torch.testing.assert_close(other[1], pair[1])
        assert float((other[0] - pair[0]).norm() / pair[0].norm()) < 0.05


class Named(nn.Module):
    """Takes a dict, has a layer too wide to turn."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.wide = nn.Linear(LARGEST_FACTOR + 1, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, given):
        return self.last(torch.tanh(self.first(given["small"]) + self.wide(given["large"])))


def test_dicts_go_in_and_wide_layers_stay_out() -> None:
    torch.manual_seed(0)
    module = Named()
    inputs = {"small": torch.randn(6, 3), "large": torch.randn(6, LARGEST_FACTOR + 1)}
    found = table(module, nn.CrossEntropyLoss(), [(inputs, torch.zeros(6, dtype=torch.long))])
    assert [name for name, pair in found.items() if pair is None] == ["wide.weight", "wide.bias"]
    second_moment = inputs["small"].T @ inputs["small"] / 6
    torch.testing.assert_close(found["first.weight"][1], second_moment)


def test_half_precision_is_measured_through_a_copy_and_complex_layers_stay_out() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
    x, y = torch.randn(6, 3).bfloat16(), torch.randint(0, 2, (6,))
    low = kronecker_factors(module, F.cross_entropy, [(x, y)])[0]
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())
    high = kronecker_factors(module.float(), F.cross_entropy, [(x.float(), y)])[0]
    assert low[0][0].dtype == torch.float32
    torch.testing.assert_close(low, high)

    turned = Apply(
        lambda m, x: m.last(m.first(x.to(torch.cdouble)).abs()),
        first=nn.Linear(3, 4, dtype=torch.cdouble),
        last=nn.Linear(4, 2).double(),
    )
    factors, sizes = kronecker_factors(turned, F.cross_entropy, [(x.double(), y)])
    assert [pair is None for pair in factors] == [True, True, False, False]
    assert sizes == [24, 8, 8, 2]


def test_the_module_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    stream = torch.get_rng_state()
    found = kronecker_factors(module, F.cross_entropy, [(x, y)])[0]
    assert module[1].training
    assert module[2].training
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    again = kronecker_factors(module.eval(), F.cross_entropy, [(x, y)])[0]
    torch.testing.assert_close([p for p in found if p], [p for p in again if p])


def test_little_memory_gives_the_same_factors(monkeypatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(n, 1, 4, 4).double(), torch.randint(0, 3, (n,))) for n in (5, 4)]
    whole = kronecker_factors(module, F.cross_entropy, batches)[0]
    sizes, original = [], kfac.cotangents

    def watched(objective, fisher, rows, *rest):
        sizes.append(len(rows))
        return original(objective, fisher, rows, *rest)

    monkeypatch.setattr(kfac, "cotangents", watched)
    monkeypatch.setattr(kfac, "CURVATURE_NUMBERS", 2 * 9)
    monkeypatch.setattr(kfac, "PATCH_NUMBERS", 1)
    torch.testing.assert_close(kronecker_factors(module, F.cross_entropy, batches)[0], whole)
    assert sizes == [2, 2, 1, 2, 2]
    drawn = Fisher("sampled", labels=3)
    sampled = kronecker_factors(module, F.cross_entropy, batches, fisher=drawn)[0]
    together = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    torch.testing.assert_close(kronecker_factors(module, F.cross_entropy, together, fisher=drawn)[0], sampled)
    monkeypatch.setattr(kfac, "LARGEST_WIDTH", 2)
    with pytest.raises(ConfigurationError, match=r"3 directions in the outputs of a sample, above 2.*'sampled'"):
        kronecker_factors(module, F.cross_entropy, batches)
    kronecker_factors(module, F.cross_entropy, batches, fisher=drawn)


def test_what_cannot_be_right_is_refused() -> None:
    module, batch = nn.Linear(2, 2), (torch.randn(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="one entry for each parameter tensor"):
        kronecker_posterior(torch.zeros(4), [None], [3], epsilon=1.0, tau=1.0)
    with pytest.raises(ConfigurationError, match="positions='mean' is unknown; choose one of expand, reduce"):
        kronecker_factors(module, F.cross_entropy, [batch], positions="mean")
    with pytest.raises(ConfigurationError, match="No samples to measure on"):
        kronecker_factors(module, F.cross_entropy, [])
    with pytest.raises(ConfigurationError, match="the outputs hold NaN or infinity"):
        kronecker_factors(module, F.cross_entropy, [(torch.full((3, 2), torch.nan), batch[1])])
    norm = nn.Sequential(module, nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ConfigurationError, match="normalises by the statistics of the batch"):
        kronecker_factors(norm, F.cross_entropy, [batch])


def test_nothing_but_torch_is_needed(monkeypatch) -> None:
    for name in ("curvlinops", "backpack", "torchvision", "einops"):
        monkeypatch.setitem(sys.modules, name, None)
    x, y = torch.randn(5, 2), torch.randint(0, 2, (5,))
    assert kronecker_factors(nn.Linear(2, 2), nn.CrossEntropyLoss(), [(x, y)])[0][0] is not None
