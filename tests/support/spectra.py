"""Matrices with prescribed eigenvalues, and operators that misbehave on request."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.linalg.operator import DenseOperator


def rotation(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix, float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))[0]


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues in random directions, float64."""
    basis = rotation(len(values), seed)
    matrix = basis * values.to(torch.float64) @ basis.T
    return (matrix + matrix.T) / 2


def padded(size: int, *values: float) -> Tensor:
    """These eigenvalues, and zeros up to ``size``."""
    spectrum = torch.zeros(size, dtype=torch.float64)
    spectrum[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return spectrum


class PoisonedOperator(DenseOperator):
    """Products are NaN from the given one on."""

    def __init__(self, matrix: Tensor, after: int) -> None:
        super().__init__(matrix)
        self.left = after

    def _apply(self, vector: Tensor) -> Tensor:
        image = super()._apply(vector)
        self.left -= 1
        return image if self.left >= 0 else image * torch.nan
