"""The two factors of the outer products whose sums are per-sample gradients.

The gradient of sample i, pulled back from cotangent r, in a weight of shape (k, o, d) (k groups) is a sum over the T
positions at which the weight acts, ``G_ri = sum_t l_rit a_rit^T``. One side comes from the layer's input and is the
same for every r, the other is the gradient in the layer's output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALL = slice(None)


class Factor(ABC):
    """One side: a vector for each sample, cotangent, group and position.

    Attributes:
        data: What is held; samples first.
        samples: n.
        copies: R, or 1 when all cotangents share the vectors.
        groups: k.
        positions: T.
        width: Length of the vectors.
    """

    position_axis: int | None = None
    """Dimension of ``data`` along which positions of several calls are put behind one another, if there is one."""

    copies = 1
    groups = 1
    positions: int
    width: int

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.samples = data.shape[0]

    @abstractmethod
    def block(self, samples: slice, copies: slice = ALL, positions: slice = ALL) -> Tensor:
        """Vectors of some samples, (b, R or 1, k, t, width); of :class:`OneHot` the places of the ones, (b, t)."""

    @abstractmethod
    def like(self, data: Tensor) -> Factor:
        """The same kind of factor with other data."""

    def fits(self, other: Factor, axis: int) -> bool:
        """Whether the data of the two can be put behind one another along this dimension."""
        mine, its = list(self.data.shape), list(other.data.shape)
        del mine[axis : axis + 1], its[axis : axis + 1]
        return type(self) is type(other) and mine == its


class Dense(Factor):
    """Vectors without special structure.

    Args:
        data: (n, R or 1, k, T, width).
    """

    position_axis = 3

    def __init__(self, data: Tensor) -> None:
        super().__init__(data)
        _, self.copies, self.groups, self.positions, self.width = data.shape

    def block(self, samples: slice, copies: slice = ALL, positions: slice = ALL) -> Tensor:
        """See :class:`Factor`."""
        return self.data[samples, ALL if self.copies == 1 else copies, :, positions]

    def like(self, data: Tensor) -> Dense:
        """See :class:`Factor`."""
        return Dense(data)


class OneHot(Factor):
    """Vectors with a single one: what an embedding multiplies its weight with.

    Args:
        data: Place of the one, (n, T).
        width: Length of the vectors.
    """

    position_axis = 1

    def __init__(self, data: Tensor, width: int) -> None:
        super().__init__(data)
        self.positions = data.shape[1]
        self.width = width

    def block(self, samples: slice, copies: slice = ALL, positions: slice = ALL) -> Tensor:
        """See :class:`Factor`."""
        del copies
        return self.data[samples, positions]

    def like(self, data: Tensor) -> OneHot:
        """See :class:`Factor`."""
        return OneHot(data, self.width)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution: a number for each spatial dimension, and the groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output."""
        geometry = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - (kernel - 1) * gap - 1) // step + 1 for size, kernel, step, gap in geometry)

    def patches(self, images: Tensor) -> Tensor:
        """A view of images (m, channels, *spatial) as (m, channels, *outputs, *kernel)."""
        geometry = zip(self.kernel, self.stride, self.dilation, strict=True)
        for axis, (kernel, step, gap) in enumerate(geometry, start=2):
            images = images.unfold(axis, (kernel - 1) * gap + 1, step)[..., ::gap]
        return images


class Patches(Factor):
    """The patches of a convolution, extracted when needed, because they take kernel-size times the memory.

    Args:
        data: Padded inputs, (n, m, channels, *spatial) with m images for each sample.
        window: Geometry.
    """

    def __init__(self, data: Tensor, window: Window) -> None:
        super().__init__(data)
        _, images, channels, *sizes = data.shape
        self.window = window
        self.groups = window.groups
        self.width = channels // window.groups * prod(window.kernel)
        self.positions = images * prod(window.outputs(sizes))

    def block(self, samples: slice, copies: slice = ALL, positions: slice = ALL) -> Tensor:
        """See :class:`Factor`."""
        del copies
        data = self.data[samples]
        space = len(self.window.kernel)
        cut = self.window.patches(data.flatten(0, 1))
        view = cut.view(*data.shape[:2], *cut.shape[1:])
        # From (b, m, channels, *outputs, *kernel): the outputs' last dimension stays last, to copy whole runs.
        order = (0, 2, *range(3 + space, 3 + 2 * space), 1, *range(3, 3 + space))
        columns = view.permute(order).reshape(len(data), 1, self.groups, self.width, self.positions)
        vectors: Tensor = columns.mT[..., positions, :]
        return vectors

    def like(self, data: Tensor) -> Patches:
        """See :class:`Factor`."""
        return Patches(data, self.window)

    def fits(self, other: Factor, axis: int) -> bool:
        """See :class:`Factor`."""
        return super().fits(other, axis) and isinstance(other, Patches) and other.window == self.window


def joined(factors: Sequence[Factor], *, samples: bool) -> Factor | None:
    """Concatenate factors along samples or along positions; None if they do not fit."""
    first = factors[0]
    axis = 0 if samples else first.position_axis
    if axis is None or not all(first.fits(other, axis) for other in factors[1:]):
        return None
    return first if len(factors) == 1 else first.like(torch.cat([factor.data for factor in factors], axis))
