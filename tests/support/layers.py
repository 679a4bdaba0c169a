"""Modules that use parameters in every way that layers know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from support.habits import ByKeyword, Elsewhere, Flipped, Partly, Tied, Twice

LENGTH = 4
"""Positions of a sequence: the size of one of the batches too, so that the first dimension does not tell."""


class Apply(nn.Module):
    """Some layers, and how a forward uses them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def number(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def layer(module: nn.Module) -> nn.Module:
    """The layer between two non-linear functions that do not know it."""
    return Apply(lambda self, x: torch.tanh(self.layer(torch.sin(x))).flatten(1), layer=module)


def embedded(module: nn.Embedding) -> nn.Module:
    return Apply(lambda self, x: torch.tanh(self.layer(x)).flatten(1), layer=module)


def decoder() -> nn.Module:
    """Tokens to scores of tokens by one table."""
    table = nn.Embedding(6, 3)
    module = Apply(lambda self, x: self.head(torch.tanh(self.table(x))), table=table, head=nn.Linear(3, 6))
    module.head.weight = table.weight
    return module


def attention(**options: object) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False, is_causal=True, attn_mask=torch.ones(4, 4).triu(1).bool())[0]

    return Apply(forward, layer=nn.MultiheadAttention(4, 2, batch_first=True, **options))


def cross_attention() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        other = torch.tanh(x[..., :3])
        return self.layer(x, other, other)[0]

    return Apply(forward, layer=nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True))


def transformer() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        hidden = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.tokens.weight @ self.block(hidden.transpose(0, 1)).transpose(0, 1).mT

    block = nn.TransformerEncoderLayer(4, 2, 4)
    return Apply(forward, tokens=nn.Embedding(6, 4), places=nn.Embedding(LENGTH, 4), block=block)


def class_token() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places).flatten(1).tanh()

    return Apply(forward, token=number(1, 1, 4), places=number(1, LENGTH + 1, 4), mix=nn.Linear(4, 2))


def scaled(forward: Callable[[nn.Module, Tensor], Tensor], *shape: int) -> nn.Module:
    return Apply(lambda self, x: forward(self, torch.sin(x)).flatten(1), scale=number(*shape))


def in_place(self: nn.Module, x: Tensor) -> Tensor:
    x += self.scale
    return torch.tanh(x)


def frozen(module: nn.Module, name: str) -> nn.Module:
    getattr(module, name).requires_grad_(False)
    return module


SEQUENCE = (LENGTH, 4)
IMAGE = (2, 7, 6)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None, str]] = {
    # name: module, shape of one input (None: tokens), paths of its parameters
    "linear": (lambda: layer(nn.Linear(4, 3)), (4,), "linear linear"),
    "linear on a sequence": (lambda: layer(nn.Linear(4, 3)), SEQUENCE, "linear linear"),
    "linear on a grid": (lambda: layer(nn.Linear(4, 3)), (2, 3, 4), "linear linear"),
    "linear without bias": (lambda: layer(nn.Linear(4, 3, bias=False)), SEQUENCE, "linear"),
    "linear with a frozen weight": (lambda: layer(frozen(nn.Linear(4, 3), "weight")), SEQUENCE, "linear"),
    "linear with a frozen bias": (lambda: layer(frozen(nn.Linear(4, 3), "bias")), SEQUENCE, "linear"),
    "linear by keyword": (ByKeyword, (4,), "linear linear"),
    "linear on rows of samples and positions": (
        lambda: Apply(lambda m, x: m.l(x.reshape(-1, 4)).view(len(x), -1).tanh(), l=nn.Linear(4, 3)),
        SEQUENCE,
        "linear linear",
    ),
    "linear with samples second": (
        lambda: Apply(lambda m, x: m.l(x.transpose(0, 1)).transpose(0, 1).tanh(), l=nn.Linear(4, 3)),
        SEQUENCE,
        "linear linear",
    ),
    "linear on rows of positions and samples": (
        lambda: Apply(
            lambda m, x: m.l(x.transpose(0, 1).reshape(-1, 4)).view(-1, len(x), 3).transpose(0, 1).tanh(),
            l=nn.Linear(4, 3),
        ),
        SEQUENCE,
        "linear linear",
    ),
    "linear on rows of places, samples and others": (
        lambda: Apply(
            lambda m, x: m.l(x.transpose(0, 1).reshape(-1, 3, 4)).view(2, -1, 9).transpose(0, 1).tanh(),
            l=nn.Linear(4, 3),
        ),
        (2, 3, 4),
        "linear linear",
    ),
    "linear, called twice": (Twice, (4,), "linear linear linear linear"),
    "linear, called twice on different lengths": (
        lambda: Apply(lambda m, x: m.l(torch.tanh(m.l(x))).sum(1) + m.l(x[:, 0]), l=nn.Linear(4, 4)),
        SEQUENCE,
        "linear linear",
    ),
    "linear, weights tied": (Tied, (4,), "linear linear linear linear linear"),
    "weight without its layer": (Elsewhere, (4,), "linear linear linear linear"),
    "partly frozen": (Partly, (4,), "unused linear"),
    "samples in another order": (Flipped, (4,), "vmap vmap linear linear"),
    "conv 1d": (lambda: layer(nn.Conv1d(2, 3, 3)), (2, 7), "conv conv"),
    "conv 2d": (lambda: layer(nn.Conv2d(2, 3, (3, 2))), IMAGE, "conv conv"),
    "conv 3d": (lambda: layer(nn.Conv3d(2, 3, 2, padding=(1, 0, 1))), (2, 3, 3, 2), "conv conv"),
    "conv of one position": (lambda: layer(nn.Conv2d(2, 3, (7, 6))), IMAGE, "conv conv"),
    "conv with strides": (lambda: layer(nn.Conv2d(2, 3, 3, stride=(2, 3), padding=1)), IMAGE, "conv conv"),
    "conv with dilation": (lambda: layer(nn.Conv2d(2, 3, 3, dilation=(2, 1), stride=2)), IMAGE, "conv conv"),
    "conv in groups": (lambda: layer(nn.Conv2d(2, 4, 3, groups=2, padding=1)), IMAGE, "conv conv"),
    "conv by channels": (lambda: layer(nn.Conv1d(4, 4, 2, groups=4, bias=False)), SEQUENCE, "conv"),
    "conv of the same size": (lambda: layer(nn.Conv2d(2, 3, (4, 3), padding="same")), IMAGE, "conv conv"),
    "conv without padding": (lambda: layer(nn.Conv2d(2, 3, 2, padding="valid")), IMAGE, "conv conv"),
    "conv, reflected": (lambda: layer(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), IMAGE, "conv conv"),
    "conv, repeated": (lambda: layer(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")), IMAGE, "conv conv"),
    "conv, circular": (
        lambda: layer(nn.Conv1d(4, 3, 3, padding="same", padding_mode="circular")),
        SEQUENCE,
        "conv conv",
    ),
    "conv, called twice": (
        lambda: Apply(lambda m, x: m.l(torch.tanh(m.l(x))).flatten(1), l=nn.Conv2d(2, 2, 3)),
        IMAGE,
        "conv conv",
    ),
    "conv on several images of a sample": (
        lambda: Apply(lambda m, x: m.l(x.flatten(0, 1)).view(len(x), -1).tanh(), l=nn.Conv2d(1, 2, 3)),
        (2, 1, 5, 4),
        "conv conv",
    ),
    "conv on images of all samples in turn": (
        lambda: Apply(
            lambda m, x: m.l(x.transpose(0, 1).flatten(0, 1)).view(2, len(x), -1).transpose(0, 1).tanh(),
            l=nn.Conv2d(1, 2, 3),
        ),
        (2, 1, 5, 4),
        "conv conv",
    ),
    "conv, transposed": (lambda: layer(nn.ConvTranspose1d(4, 3, 2)), SEQUENCE, "vmap vmap"),
    "embedding": (lambda: embedded(nn.Embedding(9, 3)), None, "embedding"),
    "embedding with padding": (lambda: embedded(nn.Embedding(6, 3, padding_idx=-4)), None, "embedding"),
    "embedding, called twice": (
        lambda: Apply(lambda m, x: (m.l(x) * m.l(x[:, :1])).flatten(1), l=nn.Embedding(6, 3)),
        None,
        "embedding",
    ),
    "embedding tied to the last layer": (decoder, None, "embedding+linear linear"),
    "batch norm": (lambda: layer(nn.BatchNorm1d(4)), (4,), "norm norm"),
    "batch norm of a sequence": (lambda: layer(nn.BatchNorm1d(4)), SEQUENCE, "norm norm"),
    "batch norm of images": (lambda: layer(nn.BatchNorm2d(2)), IMAGE, "norm norm"),
    "layer norm": (lambda: layer(nn.LayerNorm(4)), SEQUENCE, "norm norm"),
    "layer norm of matrices": (lambda: layer(nn.LayerNorm(SEQUENCE)), (2, *SEQUENCE), "norm norm"),
    "layer norm without bias": (lambda: layer(nn.LayerNorm(4, bias=False)), (4,), "norm"),
    "root mean square norm": (lambda: layer(nn.RMSNorm(4)), SEQUENCE, "norm"),
    "group norm": (lambda: layer(nn.GroupNorm(2, 4)), SEQUENCE, "norm norm"),
    "instance norm": (lambda: layer(nn.InstanceNorm2d(2, affine=True)), IMAGE, "norm norm"),
    "instance norm, tracked": (
        lambda: layer(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        SEQUENCE,
        "norm norm",
    ),
    "attention": (attention, SEQUENCE, "linear linear linear linear"),
    "attention without bias": (lambda: attention(bias=False), SEQUENCE, "linear linear"),
    "attention with bias of keys": (
        lambda: attention(add_bias_kv=True),
        SEQUENCE,
        "linear linear vmap vmap linear linear",
    ),
    "attention to something else": (cross_attention, SEQUENCE, "linear linear linear broadcast linear linear"),
    "transformer": (transformer, None, "vmap broadcast" + 8 * " linear" + 4 * " norm"),
    "class token": (class_token, SEQUENCE, "broadcast broadcast linear linear"),
    "scale": (lambda: scaled(lambda m, x: m.scale * x, 4), SEQUENCE, "broadcast"),
    "shift in place": (lambda: scaled(in_place, LENGTH, 1), SEQUENCE, "broadcast"),
    "scale made of a parameter": (lambda: scaled(lambda m, x: x / m.scale.exp()[1:], 5), SEQUENCE, "broadcast"),
    "number for all": (lambda: scaled(lambda m, x: (x - m.scale) ** 2), SEQUENCE, "broadcast"),
    "product of matrices": (lambda: scaled(lambda m, x: x @ m.scale, 4, 3), SEQUENCE, "linear"),
    "weight and a turned copy": (
        lambda: scaled(lambda m, x: (x @ m.scale).tanh() @ m.scale.T, 4, 3),
        SEQUENCE,
        "vmap",
    ),
    "weight both ways round": (
        lambda: scaled(lambda m, x: torch.nn.functional.linear((x @ m.scale).tanh(), m.scale), 4, 4),
        SEQUENCE,
        "vmap",
    ),
    "product with something added": (
        lambda: Apply(
            lambda m, x: torch.addmm(m.shift, x.reshape(-1, 4), m.weight).view(len(x), -1).tanh(),
            shift=number(3),
            weight=number(4, 3),
        ),
        SEQUENCE,
        "linear linear",
    ),
    "product from the left": (lambda: scaled(lambda m, x: m.scale @ x, 3, LENGTH), SEQUENCE, "vmap"),
    "weight made of parameters": (
        lambda: layer(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
        (4,),
        "linear vmap vmap",
    ),
}


def built(name: str) -> tuple[nn.Module, list[Tensor], str]:
    """The module in eval mode, float64, inputs of two batches, and the paths; always the same for a name."""
    build, shape, paths = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = build().double().eval()
        for child in module.modules():
            if isinstance(getattr(child, "running_mean", None), Tensor):
                child.running_mean.normal_()
                child.running_var.uniform_(0.5, 2)
        sizes = (3, LENGTH)
        if shape is None:
            return module, [torch.randint(0, 6, (size, LENGTH)) for size in sizes], paths
        return module, [torch.randn(size, *shape, dtype=torch.float64) for size in sizes], paths
