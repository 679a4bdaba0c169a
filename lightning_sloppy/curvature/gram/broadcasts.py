"""Where what all samples share meets what each has: position embeddings, class tokens, scales.

Such a tensor S, a parameter or made of parameters alone, is expanded over the samples first. The gradient in the
expanded copy has a row for each sample, and the way from S back to the parameters is short.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sloppy.curvature.gram.calls import Call, Use
from lightning_sloppy.evaluation.batches import INNER


class Broadcast(Call):
    """A tensor that all samples share, expanded over them.

    Args:
        source: S.
        output: S expanded, with a dimension of samples.
    """

    path = "broadcast"

    def __init__(self, source: Tensor, output: Tensor) -> None:
        self.output = output
        self._source = source
        self._reached = leaves_behind(source)

    def stored(self) -> int:
        """See :class:`Call`."""
        return 0

    def touches(self, leaf: Tensor) -> bool:
        """See :class:`Call`."""
        return id(leaf) in self._reached

    def uses(self, leaf: Tensor, gradients: Sequence[Tensor], count: int) -> list[Use] | None:
        """See :class:`Call`."""
        parts = [self._reduced(gradient, count) for gradient in gradients]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        rows = torch.stack(found, dim=1)
        if self._source is leaf:
            return [rows.reshape(*rows.shape[:2], -1)]
        try:
            (pulled,) = torch.autograd.grad(
                self._source,
                leaf,
                rows.flatten(0, 1),
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
                allow_unused=True,
            )
        except RuntimeError:  # an operation on the way has no rule for several gradients at a time
            return None
        return [pulled.reshape(*rows.shape[:2], -1)]

    def _aligned(self) -> tuple[int, ...]:
        """Shape of S with as many dimensions as the expanded one."""
        return (1,) * (self.output.ndim - self._source.ndim) + tuple(self._source.shape)

    def _reduced(self, gradient: Tensor, count: int) -> Tensor | None:
        """Gradient in S of each sample, (n, *S)."""
        mine = list(self._aligned())
        if self.axis is None or self.axis == INNER or mine[self.axis] != 1 or gradient.shape[self.axis] % count:
            return None
        if self.axis == 1:
            gradient = gradient.transpose(0, 1)
            mine[0], mine[1] = mine[1], mine[0]
        rows = gradient.reshape(count, -1, *gradient.shape[1:]).sum(1)
        # What is one in S and more in the copy was repeated.
        rows = rows.sum_to_size(count, *mine[1:])
        return rows.reshape(count, *self._source.shape)


def leaves_behind(tensor: Tensor) -> set[int]:
    """Identities of the leaves that a tensor depends on."""
    if tensor.grad_fn is None:
        return {id(tensor)}
    found: set[int] = set()
    seen = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return found
