"""A symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class SymmetricOperator(ABC):
    """A real symmetric ``p x p`` matrix given by its products, which are counted as the unit of cost.

    Args:
        dim: Side p of the matrix.
        dtype: Data type of the vectors.
        device: Device of the vectors.

    Attributes:
        products: Number of products so far.
        product_seconds: Wall-clock seconds spent in products.
        on_product: Function that is called with the number of products after they were computed.
        rounding: Error of a product relative to the largest magnitude, 8 eps: 9.5e-7 in float32, where 2.5e-7 was
            observed.
    """

    def __init__(self, dim: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dim = dim
        self.dtype = dtype
        self.device = device
        self.products = 0
        self.product_seconds = 0.0
        self.on_product: Callable[[int], None] | None = None
        self.rounding = 8 * torch.finfo(dtype).eps

    @abstractmethod
    def _apply(self, vector: Tensor) -> Tensor:
        """Return ``A @ vector`` for a vector of shape (p,)."""

    def matvec(self, vector: Tensor) -> Tensor:
        """Return ``A @ vector``, shape (p,), and count one product.

        The seconds are those of the calling thread. On an accelerator, where work is queued, they are not meaningful.
        """
        return self._counted(self._apply, vector, 1)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return ``A @ vectors`` for vectors as columns, shape (p, c), and count c products."""
        return self._counted(self._apply_several, vectors, vectors.shape[1])

    def _apply_several(self, vectors: Tensor) -> Tensor:
        """Multiply column by column, because on a CPU a batched double backward costs more per vector, not less."""
        return torch.stack([self._apply(column) for column in vectors.unbind(1)], dim=1)

    def _counted(self, apply: Callable[[Tensor], Tensor], vectors: Tensor, count: int) -> Tensor:
        start = time.perf_counter()
        result = apply(vectors)
        self.product_seconds += time.perf_counter() - start
        self.products += count
        if self.on_product is not None:
            self.on_product(count)
        return result

    def dense(self) -> Tensor:
        """The whole matrix in CPU float64, symmetrised. It takes p products, so it is for small p only."""
        units = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        parts = torch.split(units, 64, dim=1)
        matrix = torch.cat([self.matmat(part).to("cpu", torch.float64) for part in parts], dim=1)
        return (matrix + matrix.T) / 2


class DenseOperator(SymmetricOperator):
    """A symmetric matrix held as a tensor.

    Args:
        matrix: (p, p), symmetric.

    >>> DenseOperator(torch.diag(torch.tensor([1.0, 2.0]))).matvec(torch.ones(2))
    tensor([1., 2.])
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        self._matrix = matrix

    def _apply(self, vector: Tensor) -> Tensor:
        return self._matrix @ vector
