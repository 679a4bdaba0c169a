"""Published ways to make a trained network smaller, written from the formulas in the papers.

Low rank. A layer W of shape (m, d), where a convolution's W takes unfolded patches, becomes W_k = U_k U_k^T W, with U_k
the k leading eigenvectors of W M W^T. This is U_k S_k V_k^T T^-1 of the singular value decomposition W T = U S V^T for
any T with M = T T^T, and it needs no inverse of T. The metric M is

* the identity for plain SVD (Eckart and Young 1936);
* diag(a)^(2 alpha), a the mean of |x| for each input and alpha = 0.5, for ASVD (Yuan et al. 2023, arXiv 2312.05821);
* E[x x^T] for SVD-LLM (Wang et al. 2025, arXiv 2403.07378), which takes its Cholesky factor as T;
* Cov(x), with the lost mean added to the bias, for this package.

ASVD measures, for each layer and ratio, the loss of the network in which only this layer is truncated, and cuts every
layer as far as one limit on this loss allows. SVD-LLM gives all layers the same ratio and leaves the last one, the
head, as it is; plain SVD here does the same. SVD-LLM's sequential update by LoRA is fine-tuning, so it is compared by
the rows with fine-tuning.

SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024) rotates the residual stream of a transformer to its principal
directions before each RMSNorm and deletes the last ones. It needs a stream in which an orthogonal map goes through the
normalisation. MLP and LeNet have no residual stream. In ResNet-20 ReLU and BatchNorm act on single channels, so a
rotation does not go through.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from compression_problems import GPT, Layer
from torch import Tensor, nn
from torch.nn.utils import prune

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of ASVD's search. The paper has those from 0.1 on; the small ones make the small sizes reachable."""


@dataclass
class Site:
    """A linear or convolution layer and the moments of its inputs.

    Attributes:
        name: In the module.
        weight: (m, d) in float64.
        count: Input vectors seen.
        second: Their sum of x x^T, (d, d).
        mean: Their sum, (d,).
        absolute: The sum of |x|, (d,).
    """

    name: str
    weight: Tensor
    count: int = 0
    second: Tensor = field(default_factory=lambda: torch.zeros(()))
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    absolute: Tensor = field(default_factory=lambda: torch.zeros(()))
    bases: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def cost(self, rank: int | None) -> int:
        """Weights stored at a rank; None is the dense layer."""
        return self.weight.numel() if rank is None else rank * sum(self.weight.shape)

    def rank_at(self, ratio: float) -> int | None:
        """Largest rank at a ratio of the weights, at least 1; None where two factors would not be smaller."""
        rank = max(1, int(ratio * self.weight.numel() / sum(self.weight.shape) + 1e-9))
        return rank if self.cost(rank) < self.weight.numel() and ratio < 1 else None

    def metric(self, way: str) -> Tensor:
        """M, (d, d)."""
        second, mean = self.second / self.count, self.mean / self.count
        if way == "SVD":
            return torch.eye(len(mean), dtype=torch.float64)
        if way.startswith("ASVD"):
            alpha = float(way.split()[1]) if " " in way else 0.5
            scale = self.absolute / self.count
            return scale.clamp_min(1e-6 * float(scale.max())).pow(2 * alpha).diag()
        return second if way == "SVD-LLM" else second - mean.outer(mean)

    def basis(self, way: str) -> tuple[Tensor, Tensor]:
        """Singular values of W T and U, largest first."""
        if way not in self.bases:
            values, vectors = torch.linalg.eigh(self.weight @ self.metric(way) @ self.weight.T)
            self.bases[way] = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
        return self.bases[way]


def sites(module: nn.Module, inputs: Tensor) -> list[Site]:
    """Every linear and convolution layer in the order of the module, with the moments of its inputs."""
    found: dict[str, Site] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found[name] = Site(name, layer.weight.detach().double().flatten(1))
            handles.append(layer.register_forward_pre_hook(_adder(found[name])))
    with torch.no_grad():
        for part in inputs.split(100):
            module(part)
    for handle in handles:
        handle.remove()
    return list(found.values())


def _adder(site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0]
        if isinstance(layer, nn.Conv2d):
            patches = F.unfold(rows, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
            rows = patches.movedim(1, 2)
        rows = rows.reshape(-1, rows.shape[-1])
        site.count += len(rows)
        site.second = site.second + (rows.T @ rows).double()
        site.mean = site.mean + rows.sum(0).double()
        site.absolute = site.absolute + rows.abs().sum(0).double()

    return add


Ranks = Mapping[str, int | None]


def low_rank(module: nn.Module, places: Sequence[Site], ranks: Ranks, way: str) -> nn.Module:
    """A copy whose layers are factored at the given ranks; None leaves a layer as it is."""
    module = copy.deepcopy(module)
    for site in places:
        rank = ranks.get(site.name)
        if rank is None:
            continue
        layer = module.get_submodule(site.name)
        values, vectors = site.basis(way)
        root = values[:rank].clamp_min(1e-12 * float(values[0]) + 1e-300).sqrt()
        first, second = vectors[:, :rank].T @ site.weight / root[:, None], vectors[:, :rank] * root
        bias = None if layer.bias is None else layer.bias.detach().double()
        if way == "centred":
            bias = (0 if bias is None else bias) + (site.weight - second @ first) @ (site.mean / site.count)
        module.set_submodule(site.name, _pair(layer, first, second, bias))
    return module


def _pair(layer: nn.Module, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
    rank = len(first)
    if isinstance(layer, nn.Conv2d):
        pair = nn.Sequential(
            nn.Conv2d(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False
            ),
            nn.Conv2d(rank, layer.out_channels, 1, bias=bias is not None),
        )
    else:
        pair = nn.Sequential(
            nn.Linear(first.shape[1], rank, bias=False), nn.Linear(rank, len(second), bias=bias is not None)
        )
    pair.to(layer.weight.dtype)
    with torch.no_grad():
        pair[0].weight.copy_(first.reshape(pair[0].weight.shape))
        pair[1].weight.copy_(second.reshape(pair[1].weight.shape))
        if bias is not None:
            pair[1].bias.copy_(bias)
    return pair


def stored(module: nn.Module) -> int:
    """Numbers in the state_dict: parameters and buffers.

    Of a pruned weight, those that are not masked. Their positions are not counted.
    """
    held = module.state_dict()
    masks = {name.removesuffix("_mask"): mask for name, mask in held.items() if name.endswith("_mask")}
    values = {name.removesuffix("_orig"): value for name, value in held.items() if not name.endswith("_mask")}
    return sum(int(masks[name].sum()) if name in masks else value.numel() for name, value in values.items())


def fits(module: nn.Module, places: Sequence[Site], ranks: Ranks, size: float) -> bool:
    """Whether the module at these ranks stores at most the fraction `size` of its numbers."""
    whole = stored(module)
    return whole - sum(site.cost(None) - site.cost(ranks.get(site.name)) for site in places) <= size * whole


def uniform(module: nn.Module, places: Sequence[Site], size: float) -> Ranks | None:
    """The largest ratio that fits, for all layers but the last; None where rank 1 everywhere is too large."""
    return _scaled(module, places, dict.fromkeys((site.name for site in places[:-1]), 1.0), size)


def _scaled(module: nn.Module, places: Sequence[Site], ratios: Mapping[str, float], size: float) -> Ranks | None:
    """Ranks at the ratios times the largest common factor that fits."""

    def at(factor: float) -> Ranks:
        cut = [site for site in places if site.name in ratios]
        return {site.name: site.rank_at(min(1.0, factor * ratios[site.name])) for site in cut}

    low, high = 0.0, 1.0 / min(ratios.values())
    if not fits(module, places, at(low), size):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(module, places, at(middle), size) else (low, middle)
    return at(low)


def sensitivities(
    module: nn.Module, places: Sequence[Site], loss: Callable[[nn.Module], float], way: str = "ASVD"
) -> dict[str, list[float]]:
    """The loss of the network in which one layer is truncated, for each layer and ratio in RATIOS."""
    found = {}
    for site in places:
        ranks = [site.rank_at(ratio) for ratio in RATIOS]
        known = {rank: loss(low_rank(module, [site], {site.name: rank}, way)) for rank in dict.fromkeys(ranks)}
        found[site.name] = [known[rank] for rank in ranks]
    return found


def by_sensitivity(
    module: nn.Module, places: Sequence[Site], losses: Mapping[str, Sequence[float]], size: float
) -> Ranks | None:
    """ASVD's search: the smallest ratio of each layer whose loss is below one limit, the lowest limit that fits.

    The ratios are steps, so what is left of the budget is shared out by one factor for all layers that are cut.
    """
    for limit in sorted({value for row in losses.values() for value in row}):
        ratios = {
            name: next((ratio for ratio, value in zip(RATIOS, row, strict=True) if value <= limit), 1.0)
            for name, row in losses.items()
        }
        if fits(module, places, {site.name: site.rank_at(ratios[site.name]) for site in places}, size):
            return _scaled(module, places, ratios, size)
    return None


def magnitude(module: nn.Module, size: float) -> nn.Module | None:
    """A copy without its smallest weights, chosen over all linear and convolution layers together."""
    module = copy.deepcopy(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    amount = math.ceil((1 - size) * stored(module))
    if amount >= sum(layer.weight.numel() for layer in layers):
        return None
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=amount)
    return module


class SlicedLayer(nn.Module):
    """A layer of the GPT on a rotated and shortened residual stream."""

    def __init__(self, layer: Layer, turns: Sequence[Tensor], width: int) -> None:
        super().__init__()
        before, middle, after = (turn[:, :width] for turn in turns)
        self.whole, self.eps = len(turns[0]), layer.norm1.eps
        self.attention = copy.deepcopy(layer.attention)
        for name in ("query", "key", "value"):
            self.attention.set_submodule(name, _reading(getattr(layer.attention, name), layer.norm1, before))
        self.attention.out = _writing(layer.attention.out, middle)
        self.up, self.down = _reading(layer.up, layer.norm2, middle), _writing(layer.down, after)
        self.skip1, self.skip2 = _linear(middle.T @ before), _linear(after.T @ middle)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sums, each in the directions of the next block."""
        x = self.skip1(x) + self.attention(normed(x, self.whole, self.eps))
        return self.skip2(x) + self.down(F.gelu(self.up(normed(x, self.whole, self.eps))))


class SlicedGPT(nn.Module):
    """What SliceGPT makes of the GPT."""

    def __init__(self, module: GPT, turns: Sequence[Tensor], width: int) -> None:
        super().__init__()
        first, last = turns[0][:, :width], turns[-1][:, :width]
        self.whole, self.eps = len(turns[0]), module.norm.eps
        self.tokens, self.places = (
            nn.Embedding.from_pretrained(_free_of_mean(table.weight.detach().T).T @ first, freeze=False)
            for table in (module.tokens, module.places)
        )
        layers = [SlicedLayer(layer, turns[2 * i : 2 * i + 3], width) for i, layer in enumerate(module.layers)]
        self.layers, self.head = nn.Sequential(*layers), _reading(module.head, module.norm, last)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores."""
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(normed(self.layers(hidden), self.whole, self.eps)).movedim(-1, 1)


def normed(x: Tensor, whole: int, eps: float) -> Tensor:
    """RMSNorm with the width that the stream had before it was shortened."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / whole + eps)


def _free_of_mean(columns: Tensor) -> Tensor:
    """A LayerNorm's subtraction of the mean, moved into what writes to the stream."""
    return columns - columns.mean(0)


def _reading(layer: nn.Linear, norm: nn.LayerNorm, turn: Tensor) -> nn.Linear:
    """With the scale and shift of the LayerNorm before it, from the shortened stream."""
    weight = layer.weight.detach()
    return _linear(weight * norm.weight.detach() @ turn, layer.bias.detach() + weight @ norm.bias.detach())


def _writing(layer: nn.Linear, turn: Tensor) -> nn.Linear:
    """To the shortened stream."""
    return _linear(turn.T @ _free_of_mean(layer.weight.detach()), turn.T @ _free_of_mean(layer.bias.detach()))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


@torch.no_grad()
def turns(module: GPT, inputs: Tensor) -> list[Tensor]:
    """Principal directions of the normalised stream before each norm: two for each layer and one at the end."""
    found: dict[nn.Module, Tensor] = {}
    norms = [norm for layer in module.layers for norm in (layer.norm1, layer.norm2)] + [module.norm]

    def add(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0].flatten(0, 1)
        rows = rows - rows.mean(1, keepdim=True)
        rows = normed(rows, rows.shape[1], norm.eps).double()
        found[norm] = found.get(norm, 0) + rows.T @ rows

    handles = [norm.register_forward_pre_hook(add) for norm in norms]
    for part in inputs.split(100):
        module(part)
    for handle in handles:
        handle.remove()
    kind = module.head.weight.dtype
    return [torch.linalg.eigh(found[norm]).eigenvectors.flip(1).to(kind) for norm in norms]


def sliced(module: GPT, directions: Sequence[Tensor], size: float) -> SlicedGPT | None:
    """The widest that fits; None where one direction is too large."""
    whole = stored(module)
    for width in range(len(directions[0]), 0, -1):
        made = SlicedGPT(module, directions, width)
        if stored(made) <= size * whole:
            return made
    return None
