"""The best map of each rank for one layer, in the metric of its own inputs.

For ``y = W x + b`` with inputs of mean ``mu`` and covariance ``S``, the affine map of rank r that loses the least of
the centred outputs is ``U_r U_r^T W x + b'`` with ``b' = b + (I - U_r U_r^T) W mu``, where ``U_r`` are the leading
eigenvectors of ``W S W^T``, the covariance of the layer's own outputs. It loses the other eigenvalues. This is
reduced-rank regression (Izenman, Journal of Multivariate Analysis 5, 1975) of a layer on itself. In networks: Zhang,
Zou, He and Sun (TPAMI 38, 2016) for convolutions, Chen et al. (DRONE, NeurIPS 2021), Yu and Wu (AAAI 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_sloppy.compression.matrix_layers import bias_of, matrix_of
from lightning_sloppy.inputs.moments import Moments


@dataclass(frozen=True)
class Directions:
    """Directions of a layer's outputs by their variance, in float64.

    Attributes:
        variances: Centred variance along each direction, largest first, shape (R,).
        vectors: Orthonormal directions, shape (outputs, R).
        mean: Mean of the outputs, shape (outputs,).
    """

    variances: Tensor
    vectors: Tensor
    mean: Tensor

    @cached_property
    def kept(self) -> Tensor:
        """Share of the variance that the first r directions keep, r = 1, ..., R. Constant outputs are kept whole."""
        total = self.variances.sum()
        return self.variances.cumsum(0) / total if total > 0 else torch.ones_like(self.variances)

    def rank_for(self, share: float) -> int:
        """Smallest rank that keeps this share of the variance."""
        enough = self.kept >= share * (1 - 1e-12)
        return int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(self.kept)

    def factors(self, layer: nn.Module, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The two matrices and the bias, float64: ``U_r^T W``, ``U_r``, and b' (shapes (r, inputs), (outputs, r))."""
        matrix, bias = double(layer)
        basis = self.vectors[:, :rank].to(matrix.device)
        mean = self.mean.to(matrix.device)
        return basis.T @ matrix, basis, mean - basis @ (basis.T @ (mean - bias))


def double(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix and bias of a layer in float64; without a bias, zeros. On the CPU where its device has no float64."""
    matrix = matrix_of(layer).detach()
    matrix = (matrix.cpu() if matrix.device.type == "mps" else matrix).to(torch.float64)
    bias = bias_of(layer)
    held = torch.zeros(len(matrix)) if bias is None else bias.detach()
    return matrix, held.to(matrix)


def directions_from_inputs(layer: nn.Module, inputs: Moments) -> Directions:
    """Directions of the outputs by the moments of the inputs: the left singular vectors of ``W S^(1/2)``.

    There are ``min(outputs, inputs)`` of them, so that a wide layer of few inputs costs no more than its inputs.
    """
    matrix, bias = double(layer)
    mean = matrix @ inputs.mean.to(matrix) + bias
    values, vectors = torch.linalg.eigh(inputs.scatter.to(matrix) / inputs.num_samples)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    left, singular, _ = torch.linalg.svd(matrix @ root, full_matrices=False)
    return Directions(singular.square(), left, mean)


def directions_from_outputs(layer: nn.Module, outputs: Moments) -> Directions:
    """Directions of the outputs by the moments of the outputs themselves."""
    matrix = matrix_of(layer)
    values, vectors = torch.linalg.eigh(outputs.scatter / outputs.num_samples)
    most = min(matrix.shape)  # there are no more: what follows is rounding
    return Directions(values.flip(0)[:most].clamp(min=0), vectors.flip(1)[:, :most], outputs.mean)


def participation_ratio(moments: Moments) -> float:
    """``(sum lambda)^2 / sum lambda^2`` of a covariance; 0 for constant inputs."""
    squares = float(moments.scatter.square().sum())
    return float(moments.scatter.diagonal().sum()) ** 2 / squares if squares > 0 else 0.0
