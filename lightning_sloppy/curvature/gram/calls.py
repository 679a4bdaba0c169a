"""Calls of functions with parameters, and the per-sample gradients that follow from input and output gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sloppy.curvature.gram.factors import Dense, Factor, OneHot, Patches, Window
from lightning_sloppy.curvature.gram.outer_products import Outer
from lightning_sloppy.evaluation.batches import INNER

Use = Outer | Tensor
"""Per-sample gradients of one parameter from one call: outer products, or themselves (n, R, p)."""


class Call(ABC):
    """One call that parameters go into.

    Attributes:
        path: Word for how its parameters are served.
        output: Its output, with the graph.
        axis: Dimension of input and output that samples are in; several rows of a sample may follow one another in
            dimension 0. ``INNER`` where it has positions and samples, and these change fastest. None where there is no
            such dimension.
    """

    path: str
    output: Tensor
    axis: int | None = 0

    @abstractmethod
    def stored(self) -> int:
        """Numbers that are kept besides the gradient of the output, for all its samples."""

    @abstractmethod
    def touches(self, leaf: Tensor) -> bool:
        """Whether the parameter goes into it."""

    def shape_of_one(self, count: int) -> tuple[int, ...] | None:
        """Shape of the output for one sample; None where there is none."""
        shape, axis = list(self.output.shape), 0 if self.axis == INNER else self.axis
        if axis is None or axis >= len(shape) or shape[axis] % count:
            return None
        shape[axis] //= count
        return tuple(shape)

    @abstractmethod
    def uses(self, leaf: Tensor, gradients: Sequence[Tensor], count: int) -> list[Use] | None:
        """Per-sample gradients of a parameter from those of the output, one for each cotangent; None if impossible."""


class LayerCall(Call):
    """A call of a function with a weight and a bias.

    Args:
        input: Its input.
        weight: Its weight, if any.
        bias: Its bias, if any.
    """

    def __init__(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.input = input.detach()
        self.weight = weight
        self.bias = bias

    def stored(self) -> int:
        """See :class:`Call`."""
        return self.input.numel()

    def touches(self, leaf: Tensor) -> bool:
        """See :class:`Call`."""
        return leaf is self.weight or leaf is self.bias

    def uses(self, leaf: Tensor, gradients: Sequence[Tensor], count: int) -> list[Use] | None:
        """See :class:`Call`."""
        found = [self.of_weight(gradients, count)] if leaf is self.weight else []
        found += [self.of_bias(gradients, count)] if leaf is self.bias else []
        uses = [use for use in found if use is not None]
        return uses if len(uses) == len(found) else None

    @abstractmethod
    def of_weight(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """Per-sample gradients of the weight; None if impossible."""

    def of_bias(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """Per-sample gradients of the bias, (n, R, p)."""
        left = self._copies(gradients, count, 1)
        return None if left is None else left.sum(2)

    def _rows(self, tensor: Tensor, count: int, features: int) -> Tensor | None:
        """(n, T, *features) from (n, ..., *features), (n T, ...), (T n, ...) or, with axis 1, (T, n, ...)."""
        lead, rest = tensor.shape[: tensor.ndim - features], tensor.shape[tensor.ndim - features :]
        if self.axis == 1 and lead[1:2] == (count,):
            return tensor.transpose(0, 1).reshape(count, lead.numel() // count, *rest)
        if self.axis == 0 and lead and lead[0] % count == 0:
            return tensor.reshape(count, lead.numel() // count, *rest)
        if self.axis == INNER and lead and lead[0] % count == 0:
            return tensor.reshape(-1, count, *tensor.shape[1:]).transpose(0, 1).reshape(count, -1, *rest)
        return None

    def _copies(self, gradients: Sequence[Tensor], count: int, features: int) -> Tensor | None:
        """(n, R, T, *features) from the gradient of each cotangent."""
        parts = [self._rows(gradient, count, features) for gradient in gradients]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return found[0].unsqueeze(1) if len(found) == 1 else torch.stack(found, dim=1)

    def _images(self, gradients: Sequence[Tensor], count: int, space: int) -> Tensor | None:
        """(n, R, m, channels, *space) from (n m, channels, *space) or (m n, channels, *space) of each cotangent."""
        alone = gradients[0].ndim == space + 2 and self.axis in (0, INNER)
        return self._copies(gradients, count, space + 1) if alone else None


class PositionCall(LayerCall):
    """``y_t = W a_t + b`` at T positions of every sample.

    Attributes:
        transposed: Whether the weight is stored as (inputs, outputs).
    """

    transposed = False

    @abstractmethod
    def left(self, gradients: Sequence[Tensor], count: int) -> Dense | None:
        """Gradients in y_t, for each cotangent; None where they cannot be told apart by samples."""

    @abstractmethod
    def right(self, count: int) -> Factor | None:
        """The inputs a_t; None where they cannot be told apart by samples."""

    def of_weight(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """See :class:`LayerCall`."""
        left, right = self.left(gradients, count), self.right(count)
        return None if left is None or right is None else Outer(left, right, self.transposed)


class LinearCall(PositionCall):
    """``y = x W^T + b`` on the last dimension."""

    path = "linear"

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(input, weight, bias)

    def left(self, gradients: Sequence[Tensor], count: int) -> Dense | None:
        """See :class:`PositionCall`."""
        found = self._copies(gradients, count, 1)
        return None if found is None else Dense(found.unsqueeze(2))

    def right(self, count: int) -> Dense | None:
        """See :class:`PositionCall`."""
        found = self._rows(self.input, count, 1)
        return None if found is None else Dense(found[:, None, None])


class ProductCall(LinearCall):
    """``y = x W + b`` on the last dimension."""

    transposed = True


def matmul(input: Tensor, other: Tensor) -> LayerCall | None:
    """A call of :func:`torch.matmul` with a weight at the right."""
    return ProductCall(input, other) if input.ndim > 1 and other.ndim == 2 else None


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> LayerCall | None:
    """A call of :func:`torch.addmm`, whose first argument is the bias."""
    return ProductCall(mat1, mat2, input if input.ndim == 1 else None) if beta == alpha == 1 else None


class ConvolutionCall(PositionCall):
    """A convolution in one to three dimensions; other paddings than zeros come as a padded input."""

    path = "conv"

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(input, weight, bias)
        kernel = tuple(weight.shape[2:])
        self._window = Window(kernel, _each(stride, len(kernel)), _each(dilation, len(kernel)), groups)
        self._padding = padding

    @property
    def groups(self) -> int:
        """Groups of channels that do not see one another."""
        return self._window.groups

    def left(self, gradients: Sequence[Tensor], count: int) -> Dense | None:
        """See :class:`PositionCall`."""
        found = self._images(gradients, count, len(self._window.kernel))
        if found is None:
            return None
        # From (n, R, m, k o, *outputs): positions are images and outputs.
        shape = (*found.shape[:3], self.groups, found.shape[3] // self.groups, -1)
        split = found.reshape(shape).permute(0, 1, 3, 4, 2, 5)
        return Dense(split.flatten(4).mT)

    def right(self, count: int) -> Patches | None:
        """See :class:`PositionCall`."""
        images = self._rows(self.input, count, len(self._window.kernel) + 1)
        if images is None:
            return None
        borders = self._borders()
        return Patches(F.pad(images, borders) if any(borders) else images, self._window)

    def of_bias(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """See :class:`LayerCall`."""
        left = self._images(gradients, count, len(self._window.kernel))
        return None if left is None else left.flatten(4).sum((2, 4))

    def _borders(self) -> list[int]:
        """Padding on both sides of each dimension, the last one first."""
        space = len(self._window.kernel)
        if self._padding == "same":
            lengths = [gap * (size - 1) for size, gap in zip(self._window.kernel, self._window.dilation, strict=True)]
            pairs = [(length // 2, length - length // 2) for length in lengths]
        else:
            pairs = [(size, size) for size in _each(0 if isinstance(self._padding, str) else self._padding, space)]
        return [side for pair in reversed(pairs) for side in pair]


class EmbeddingCall(LayerCall):
    """Rows of a table."""

    path = "embedding"

    def __init__(self, input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any) -> None:
        super().__init__(input, weight, None)
        self._padding_idx = None if padding_idx is None else padding_idx % len(weight)

    def of_weight(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """See :class:`LayerCall`."""
        right, places = self._copies(gradients, count, 1), self._rows(self.input, count, 0)
        if right is None or places is None or self.weight is None:
            return None
        if self._padding_idx is not None:
            right = right * (places != self._padding_idx)[:, None, :, None]
        return Outer(OneHot(places, len(self.weight)), Dense(right.unsqueeze(2)))


def _each(number: int | Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(number, int):
        return (number,) * count
    return tuple(number) * (count // len(number))
