"""One table of modules, losses and batches, and their matrices by plain autograd in float64.

The references below use nothing of the package but its order of parameters: that of ``named_parameters()``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from support.habits import (
    Attention,
    ByKeyword,
    ClassRows,
    Elsewhere,
    Flipped,
    Partly,
    Recurrent,
    Sequence,
    Squeezed,
    Tied,
    Tokens,
    Twice,
)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A module in eval mode, its mean-reduced loss, and batches of unequal sizes."""

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: list[Batch]

    @property
    def count(self) -> int:
        return sum(len(targets) for _, targets in self.batches)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.parameters.values())


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def mlp(hidden: type[nn.Module] = nn.Tanh) -> nn.Module:
    return network(nn.Linear(4, 5), hidden(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return network(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))


CLASSES, FLOATS, FLAGS = "classes", "floats", "flags"

_TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, tuple[int, ...]]] = {
    # name: module, shape of one input (no number: tokens), kind of target, shape of one target
    "linear regression": (lambda: nn.Linear(5, 1, bias=False), (5,), FLOATS, (1,)),
    "softmax regression": (lambda: nn.Linear(4, 3), (4,), CLASSES, ()),
    "mlp": (mlp, (4,), CLASSES, ()),
    "mlp mse": (mlp, (4,), FLOATS, (3,)),
    "mlp bce": (mlp, (4,), FLAGS, (3,)),
    "in-place relu": (lambda: network(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (4,), CLASSES, ()),
    "first layer in place": (lambda: network(nn.ReLU(inplace=True), nn.Linear(4, 3)), (4,), CLASSES, ()),
    "cnn": (cnn, (1, 6, 6), CLASSES, ()),
    "tied": (Tied, (4,), CLASSES, ()),
    "twice": (Twice, (4,), CLASSES, ()),
    "elsewhere": (Elsewhere, (4,), CLASSES, ()),
    "by keyword": (ByKeyword, (4,), CLASSES, ()),
    "flipped": (Flipped, (4,), CLASSES, ()),
    "class rows": (lambda: ClassRows(3), (4,), CLASSES, ()),
    "gru": (lambda: Recurrent(nn.GRU), (4, 2), CLASSES, ()),
    "lstm": (lambda: Recurrent(nn.LSTM), (4, 2), CLASSES, ()),
    "tokens": (Tokens, (), CLASSES, ()),
    "sequence": (Sequence, (2, 3), CLASSES, (2,)),
    "squeezed": (Squeezed, (4,), FLOATS, ()),
    "attention": (Attention, (2, 4), CLASSES, ()),
    "partly frozen": (Partly, (4,), CLASSES, ()),
}
NAMES = tuple(_TABLE)


def case(name: str, sizes: tuple[int, ...] = (3, 4)) -> Case:
    """A fresh case, always the same one for a name."""
    build, shape, kind, wanted = _TABLE[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = build().double().eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        batches = []
        for size in sizes:
            inputs = torch.randn(size, *shape, dtype=torch.float64) if shape else torch.randint(0, 6, (size, 3))
            draw = {
                CLASSES: lambda size=size: torch.randint(0, 3, (size, *wanted)),
                FLOATS: lambda size=size: torch.randn(size, *wanted, dtype=torch.float64),
                FLAGS: lambda size=size: torch.randint(0, 2, (size, *wanted)).double(),
            }
            batches.append((inputs, draw[kind]()))
    losses = {CLASSES: F.cross_entropy, FLOATS: F.mse_loss, FLAGS: F.binary_cross_entropy_with_logits}
    return Case(module, losses[kind], batches)


def mean_loss(case: Case, parameters: dict[str, Tensor]) -> Tensor:
    """Weighted by sample counts: 3/7 and 4/7."""
    parts = [
        case.loss(functional_call(case.module, parameters, (x.clone(),)), y) * (len(y) / case.count)
        for x, y in case.batches
    ]
    return torch.stack(parts).sum()


def table_of(case: Case, vector: Tensor) -> dict[str, Tensor]:
    shapes = {name: p.shape for name, p in case.parameters.items()}
    pieces = vector.split([shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def vector_of(case: Case) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in case.parameters.values()])


def dense_hessian(case: Case) -> Tensor:
    """By torch.func, forward over reverse under vmap; reverse over reverse row by row where that is no reference.

    Recurrent layers have no rule, and what vmap makes of the second derivative of LayerNorm (torch 2.13) is not even
    symmetric, unlike finite differences.
    """
    special = (nn.RNNBase, nn.LayerNorm)

    def loss(vector: Tensor) -> Tensor:
        return mean_loss(case, table_of(case, vector))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), warnings.catch_warnings():
        # Forward mode loads decompositions by what torch itself calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        if any(isinstance(module, special) for module in case.module.modules()):
            return torch.autograd.functional.hessian(loss, vector_of(case))
        return torch.func.hessian(loss)(vector_of(case))


def dense_gauss_newton(case: Case) -> Tensor:
    """The sum of ``J_i^T H_i J_i`` over N, with each sample's own Hessian of the loss in its outputs."""
    total = torch.zeros(case.dim, case.dim, dtype=torch.float64)
    for x, y in case.batches:

        def outputs(vector: Tensor, x: Tensor = x) -> Tensor:
            return functional_call(case.module, table_of(case, vector), (x.clone(),))

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            values = outputs(vector_of(case))
            jacobian = torch.autograd.functional.jacobian(outputs, vector_of(case))
        for index in range(len(y)):
            own = values[index : index + 1].detach()
            hessian = torch.autograd.functional.hessian(lambda f, i=index, y=y: case.loss(f, y[i : i + 1]), own)
            width = own.numel()
            rows = jacobian[index].reshape(width, case.dim)
            total += rows.T @ hessian.reshape(width, width) @ rows / case.count
    return total


def gradients(case: Case) -> Tensor:
    """Gradient of each sample's own loss, (N, p), by one backward for each through the batch it stands in."""
    rows = []
    for x, y in case.batches:
        outputs = case.module(x.clone())
        for index in range(len(y)):
            loss = case.loss(outputs[index : index + 1], y[index : index + 1])
            parts = torch.autograd.grad(
                loss, list(case.parameters.values()), retain_graph=True, materialize_grads=True, allow_unused=True
            )
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)
