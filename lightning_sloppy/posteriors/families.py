"""Families of Gaussian posteriors: k directions and a rest, one precision for each weight, Kronecker bases, joined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.gaussian import Gaussian, relative_cost

ORTHONORMAL = 1e-6
"""Largest entry of ``U^T U - I`` that is rounding."""


@dataclass(frozen=True)
class LowRankGaussian(Gaussian):
    """``Lambda = V diag(lambda_bar) V^T + epsilon_r (I - V V^T)``; isotropic for k = 0.

    A draw uses the symmetric root and costs O(p k).

    Attributes:
        mean: mu, shape (p,), float64.
        vectors: V, orthonormal columns, shape (p, k), float64.
        precisions: lambda_bar, shape (k,), float64, positive.
        residual_precision: epsilon_r, the precision in every direction orthogonal to V.
    """

    mean: Tensor
    vectors: Tensor
    precisions: Tensor
    residual_precision: float

    @property
    def rank(self) -> int:
        """Number of directions k with a precision of their own."""
        return self.precisions.numel()

    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """``Lambda^(-1/2) z``."""
        rest = self.residual_precision**-0.5
        along = self.vectors.T @ noise
        step: Tensor = rest * noise + self.vectors @ ((self.precisions.rsqrt() - rest) * along)
        return step

    def precision_form(self, step: Tensor) -> float:
        """``epsilon_r ||step||^2 + sum_i (lambda_bar_i - epsilon_r) (v_i^T step)^2``."""
        along = self.vectors.T @ step
        rest = self.residual_precision
        return float(rest * step.square().sum() + ((self.precisions - rest) * along.square()).sum())

    def log_det_precision(self) -> float:
        """``sum_i ln lambda_bar_i + (p - k) ln epsilon_r``."""
        return float(self.precisions.log().sum()) + (self.dim - self.rank) * math.log(self.residual_precision)

    def covariance_cost(self, epsilon: float) -> float:
        """Of the k directions, and p - k times that of the others."""
        rest = torch.tensor(self.residual_precision / epsilon - 1.0, dtype=torch.float64)
        bulk = (self.dim - self.rank) * float(relative_cost(rest))
        return 0.5 * (float(relative_cost(self.precisions / epsilon - 1.0).sum()) + bulk)


class _Independent(Gaussian):
    """Noise that is independent in some orthonormal basis; an isotropic prior is the same in every one."""

    precisions: Tensor

    def log_det_precision(self) -> float:
        """``sum_i ln x_i``."""
        return float(self.precisions.log().sum())

    def covariance_cost(self, epsilon: float) -> float:
        """A sum over the entries."""
        return 0.5 * float(relative_cost(self.precisions / epsilon - 1.0).sum())


@dataclass(frozen=True)
class DiagonalGaussian(_Independent):
    """A precision for each weight, such as that of Adam's second moment or of the Fisher diagonal.

    Attributes:
        mean: mu, shape (p,), float64.
        precisions: Shape (p,), float64, positive.

    Raises:
        ConfigurationError: For precisions of another shape, or not positive.
    """

    mean: Tensor
    precisions: Tensor

    def __post_init__(self) -> None:
        """Check the precisions."""
        if self.precisions.shape != self.mean.shape or not bool((self.precisions > 0).all()):
            raise ConfigurationError(
                f"A diagonal posterior of {self.dim:,} weights needs as many positive precisions; found shape "
                f"{tuple(self.precisions.shape)} with the least {float(self.precisions.min()):g}."
            )

    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """``z`` over the root of the precisions."""
        return noise * self.precisions.rsqrt()

    def precision_form(self, step: Tensor) -> float:
        """``sum_i x_i step_i^2``."""
        return float((self.precisions * step.square()).sum())


@dataclass(frozen=True)
class KroneckerGaussian(_Independent):
    """A matrix of weights (o, i) whose noise is independent in a Kronecker basis: ``W = M + U_B E U_A^T``.

    Every entry of E has a precision of its own. The bases are those of the two factors of a layer's curvature (Martens
    and Grosse, ICML 2015; George et al., NeurIPS 2018 for the precisions in that basis); o^2 + i^2 numbers instead of
    (o i)^2.

    Attributes:
        mean: mu, the entries of M row by row, shape (o i,), float64.
        outputs: U_B, orthonormal, (o, o), float64.
        inputs: U_A, orthonormal, (i, i), float64.
        precisions: (o, i), float64, positive.

    Raises:
        ConfigurationError: For bases that are not orthonormal to 1e-6, shapes that do not fit, or precisions that are
            not positive.
    """

    mean: Tensor
    outputs: Tensor
    inputs: Tensor
    precisions: Tensor

    def __post_init__(self) -> None:
        """Check bases and precisions: the KL takes the one to be orthonormal and the other to be positive."""
        shape = (self.outputs.shape[0], self.inputs.shape[0])
        if self.mean.numel() != shape[0] * shape[1] or tuple(self.precisions.shape) != shape:
            raise ConfigurationError(
                f"A Kronecker posterior with bases of {shape[0]} and {shape[1]} needs {shape[0] * shape[1]} weights "
                f"and precisions of that shape; found {self.mean.numel()} and {tuple(self.precisions.shape)}."
            )
        for name, basis in (("outputs", self.outputs), ("inputs", self.inputs)):
            excess = basis.T @ basis - torch.eye(len(basis), dtype=basis.dtype, device=basis.device)
            if not float(excess.abs().max()) < ORTHONORMAL:
                raise ConfigurationError(
                    f"The basis of the {name} is orthonormal only to {float(excess.abs().max()):.1g}, and its KL would "
                    "be wrong; take the eigenvectors of a symmetric factor in float64."
                )
        if not bool((self.precisions > 0).all()):
            raise ConfigurationError(
                f"A Kronecker posterior has a precision of {float(self.precisions.min()):g}; they must be positive."
            )

    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """``U_B (Z / sqrt(x)) U_A^T``, flat."""
        scaled = noise.view_as(self.precisions) * self.precisions.rsqrt()
        return (self.outputs @ scaled @ self.inputs.T).reshape(-1)

    def precision_form(self, step: Tensor) -> float:
        """``sum x (U_B^T S U_A)^2``."""
        turned = self.outputs.T @ step.view_as(self.precisions) @ self.inputs
        return float((self.precisions * turned.square()).sum())


@dataclass(frozen=True)
class JoinedGaussian(Gaussian):
    """Independent Gaussians over consecutive weights, such as one for each layer.

    Attributes:
        parts: In the order of the weights.

    Raises:
        ConfigurationError: Without a part.
    """

    parts: tuple[Gaussian, ...]

    def __post_init__(self) -> None:
        """Check that there is something."""
        if not self.parts:
            raise ConfigurationError("A joined posterior needs at least one part; give the Gaussian of each layer.")

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """All means, (p,)."""
        return torch.cat([part.mean for part in self.parts])

    def _split(self, vector: Tensor) -> list[tuple[Gaussian, Tensor]]:
        return list(zip(self.parts, torch.split(vector, [part.dim for part in self.parts]), strict=True))

    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """Part by part."""
        return torch.cat([part.root_covariance_times(piece) for part, piece in self._split(noise)])

    def precision_form(self, step: Tensor) -> float:
        """A sum over the parts."""
        return sum(part.precision_form(piece) for part, piece in self._split(step))

    def log_det_precision(self) -> float:
        """A sum over the parts."""
        return sum(part.log_det_precision() for part in self.parts)

    def covariance_cost(self, epsilon: float) -> float:
        """A sum over the parts."""
        return sum(part.covariance_cost(epsilon) for part in self.parts)
