"""A symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class SymmetricOperator(ABC):
    """A real symmetric ``p x p`` matrix given by products; it counts them, for they are the unit of cost.

    Args:
        dim: Side p of the matrix.
        dtype: Data type of the vectors.
        device: Device of the vectors.
    """

    def __init__(self, dim: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dim = dim
        self.dtype = dtype
        self.device = device
        self.products = 0
        self.product_seconds = 0.0
        self.on_product: Callable[[int], None] | None = None

    @abstractmethod
    def _apply(self, vector: Tensor) -> Tensor:
        """Return ``A @ vector`` for a vector of shape (p,)."""

    def matvec(self, vector: Tensor) -> Tensor:
        """Return ``A @ vector``, shape (p,), and count one product.

        The seconds are those of the caller's thread: on an accelerator, where work is queued, they say little.
        """
        start = time.perf_counter()
        result = self._apply(vector)
        self.product_seconds += time.perf_counter() - start
        self.products += 1
        if self.on_product is not None:
            self.on_product(1)
        return result

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return ``A @ vectors`` for vectors as columns, shape (p, c).

        Column after column: on a CPU a batched double backward costs more for each vector, not less.
        """
        return torch.stack([self.matvec(column) for column in vectors.unbind(1)], dim=1)

    def dense(self) -> Tensor:
        """The whole matrix in CPU float64, symmetrised: p products, for small p only."""
        columns = []
        for index in range(self.dim):
            unit = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
            unit[index] = 1
            columns.append(self.matvec(unit).to("cpu", torch.float64))
        matrix = torch.stack(columns, dim=1)
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
