"""The trainable parameters of a module as one flat vector, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the trainable parameters; tied weights are counted once.

    Attributes:
        names: Names as in ``module.named_parameters()``.
        shapes: Shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> ParameterLayout:
        """The layout of the parameters of ``module`` that require gradients."""
        pairs = [(name, p.shape) for name, p in module.named_parameters() if p.requires_grad]
        return cls(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs))

    @property
    def dim(self) -> int:
        """Number of parameters p."""
        return sum(shape.numel() for shape in self.shapes)

    def leaves(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies that require gradients: a forward that writes to its weights (``max_norm``) does so on them."""
        table = dict(module.named_parameters())
        return {name: table[name].detach().to(dtype, copy=True).requires_grad_() for name in self.names}

    def flatten(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """One vector of shape (p,); None stands for zeros (a parameter that the loss does not use)."""
        parts = list(tensors)
        like = next(part for part in parts if part is not None)
        return torch.cat(
            [
                part.reshape(-1) if part is not None else like.new_zeros(shape.numel())
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
        )

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector of shape (p,) in the shapes of the parameters."""
        pieces = torch.split(vector, [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def table(self, vector: Tensor) -> dict[str, Tensor]:
        """Names to views of a vector of shape (p,)."""
        return dict(zip(self.names, self.unflatten(vector), strict=True))

    def vector(self, module: nn.Module) -> Tensor:
        """The current parameters as one detached vector, a copy of shape (p,)."""
        table = dict(module.named_parameters())
        return torch.cat([table[name].detach().reshape(-1) for name in self.names])


def grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """:func:`torch.autograd.grad` that tolerates outputs without a graph and unused inputs (both give None)."""
    live = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not live:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad(
            [outputs[index] for index in live],
            list(inputs),
            grad_outputs=None if cotangents is None else [cotangents[index] for index in live],
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    )
