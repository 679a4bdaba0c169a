"""The trainable parameters of a module as one flat vector, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.real_numbers import real_view

Patterns = str | Sequence[str] | None
"""Shell-style patterns of parameter names (``fnmatch``), or None for all that require gradients."""


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the chosen trainable parameters. Tied weights are counted once.

    A complex parameter counts as its real and imaginary parts: its shape ends in 2.

    Attributes:
        names: Names as in ``module.named_parameters()``.
        shapes: Shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module, patterns: Patterns = None) -> ParameterLayout:
        """Return the layout of the parameters of ``module`` that require gradients and match one of the patterns.

        A tied parameter matches by any of its names. Prefixes of names that :func:`torch.compile` adds are ignored.

        Raises:
            ConfigurationError: If a pattern matches no trainable parameter.

        >>> ParameterLayout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "1.*").dim
        4
        """
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if patterns is not None:
            chosen = _matching(module, (patterns,) if isinstance(patterns, str) else tuple(patterns))
            trained = {name: p for name, p in trained.items() if id(p) in chosen}
        return cls(tuple(trained), tuple(real_view(p.detach()).shape for p in trained.values()))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Indices of the parameters of each layer, that is, of each submodule with parameters, by its name."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            found.setdefault(_plain(name.rpartition(".")[0]), []).append(index)
        return {name: tuple(indices) for name, indices in found.items()}

    def part(self, indices: Sequence[int]) -> ParameterLayout:
        """The layout of some of the parameters."""
        return ParameterLayout(tuple(self.names[i] for i in indices), tuple(self.shapes[i] for i in indices))

    @property
    def dim(self) -> int:
        """Number of parameters p."""
        return sum(shape.numel() for shape in self.shapes)

    def leaves(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies that require gradients, so that a forward that writes to its weights (``max_norm``) changes copies."""
        table = self._own(module)
        return {name: real_view(table[name].detach()).to(dtype, copy=True).requires_grad_() for name in self.names}

    def _own(self, module: nn.Module) -> dict[str, Tensor]:
        """The parameters of the module by name.

        Raises:
            ConfigurationError: If the module no longer has a parameter of the layout.
        """
        table: dict[str, Tensor] = dict(module.named_parameters())
        missing = [name for name in self.names if name not in table]
        if missing:
            raise ConfigurationError(
                f"{type(module).__name__} has no parameter {missing[0]!r} any more: its parameters have changed since "
                "the fit began (pruning, weight norm, other layers); change them before the fit."
            )
        return table

    def flatten(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """One vector of shape (p,). None is replaced by zeros (a parameter that the loss does not use)."""
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
        table = self._own(module)
        return torch.cat([real_view(table[name].detach()).reshape(-1) for name in self.names])

    @contextmanager
    def holding(self, module: nn.Module, vector: Tensor) -> Iterator[None]:
        """Context with other weights in the module's tensors, which are restored bit for bit, also after an error."""
        table = self._own(module)
        own = {name: table[name].detach().clone() for name in self.names}
        try:
            with torch.no_grad():
                for name, value in self.table(vector).items():
                    real_view(table[name].detach()).copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    table[name].copy_(value)


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod")


def _matching(module: nn.Module, patterns: tuple[str, ...]) -> set[int]:
    """Identities of the trainable parameters with a name that matches."""
    names = [(_plain(n), id(p)) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    found: set[int] = set()
    for pattern in patterns:
        hits = {identity for name, identity in names if fnmatchcase(name, pattern)}
        if not hits:
            known = ", ".join(name for name, _ in names[:5]) + (", ..." if len(names) > 5 else "")
            raise ConfigurationError(
                f"parameters={pattern!r} matches no trainable parameter of {type(module).__name__}; its names are "
                f"{known or 'none'}: pass a pattern such as 'layer4.*'."
            )
        found |= hits
    return found


def grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """:func:`torch.autograd.grad` that tolerates outputs without a graph and unused inputs (both give None).

    Sparse gradients, as of ``nn.Embedding(sparse=True)``, come dense.

    Raises:
        RuntimeError: With ``create_graph``, when a function on the way forbids a second derivative.
    """
    live = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not live:
        return [None] * len(inputs)
    found: list[Tensor | None] = list(
        torch.autograd.grad(
            [outputs[index] for index in live],
            list(inputs),
            grad_outputs=None if cotangents is None else [cotangents[index] for index in live],
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    found = [part if part is None or part.layout is torch.strided else part.to_dense() for part in found]
    if create_graph:
        _need_second_derivatives(found)
    return found


def _need_second_derivatives(gradients: Sequence[Tensor | None]) -> None:
    """Raise an error if a graph contains a function marked ``once_differentiable``.

    The graph ends at such a function, so the next derivative would silently leave out everything before it.
    """
    nodes = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function marked once_differentiable has no double backward")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
