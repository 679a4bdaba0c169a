"""Other coordinates of the weights, in which a prior is isotropic and a posterior diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError

EXACT, QUICK = 1e-10, 1e-4
"""How far a basis in float64, and one in less, may be from orthonormal: the first certify, the others learn."""

Basis = tuple[Tensor, Tensor | None]
"""Left (o, o) and right (i, i) eigenvectors of a weight of o rows and i columns; a bias has no right ones."""


@dataclass(frozen=True)
class Coordinates:
    """``w = w0 + U (s u)``: U turns each tensor into its Kronecker eigenbasis, s are scales of the prior.

    The KL between two Gaussians is the same in any coordinates, so a bound for u is one for the networks of w(u). In u
    the prior is ``N(0, I/epsilon)``; in w it is ``N(w0, U diag(s^2) U^T / epsilon)``. Hence

    * where s = 1 the prior is isotropic whatever U is, and U may be chosen on the examples;
    * otherwise U and s belong to the prior, and must not depend on them.

    Attributes:
        origin: w0, shape (p,).
        sizes: Entries of each parameter tensor, in order.
        bases: For each tensor B and A: a point X of it, (o, i), stands for ``B X A^T``; None where it is not turned.
        scales: s, shape (p,), positive, in the order of u; None for ones.

    Raises:
        ConfigurationError: For shapes that do not fit, scales that are not positive, or bases that are not orthonormal
            to 1e-10 in float64, as a certificate needs them, 1e-4 in less.
    """

    origin: Tensor
    sizes: tuple[int, ...]
    bases: tuple[Basis | None, ...]
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what the bound relies on."""
        p = self.origin.numel()
        if self.origin.shape != (p,) or sum(self.sizes) != p or len(self.bases) != len(self.sizes):
            raise ConfigurationError(
                f"Coordinates of {p:,} weights were given {len(self.bases)} bases and sizes that add up to "
                f"{sum(self.sizes):,}; give one entry for each parameter tensor."
            )
        if self.scales is not None and (self.scales.shape != (p,) or not bool((self.scales > 0).all())):
            raise ConfigurationError(
                f"The scales of a prior must be {p:,} positive numbers; found shape {tuple(self.scales.shape)}."
            )
        for size, basis in zip(self.sizes, self.bases, strict=True):
            sides = [] if basis is None else [side for side in basis if side is not None]
            if (sides and math.prod(map(len, sides)) != size) or not all(map(_orthonormal, sides)):
                raise ConfigurationError(
                    f"A basis of shapes {[tuple(side.shape) for side in sides]} for a tensor of {size:,} entries does "
                    "not fit, or is not orthonormal; take the eigenvectors of its factors in float64."
                )

    @property
    def prior(self) -> Tensor:
        """What the prior is made of, flat: the origin, and scales and bases where they belong to it."""
        if self.scales is None:
            return self.origin
        sides = [side for basis in self.bases for side in basis or () if side is not None]
        return torch.cat([self.origin, self.scales, *(side.reshape(-1) for side in sides)])

    def weights(self, point: Tensor) -> Tensor:
        """Weights of a point u, shape (p,)."""
        turned = point if self.scales is None else point * self.scales
        return self.origin + self._each(turned, _turned)

    def point(self, weights: Tensor) -> Tensor:
        """The point u of weights, shape (p,)."""
        turned = self._each(weights - self.origin, _turned_back)
        return turned if self.scales is None else turned / self.scales

    def directions(self, vectors: Tensor) -> Tensor:
        """Directions of w, (p, k), as directions of u; orthonormal ones stay so where s = 1."""
        columns = [self._each(column, _turned_back) for column in vectors.T]
        turned = torch.stack(columns, dim=1) if columns else vectors
        return turned if self.scales is None else turned / self.scales[:, None]

    def slope(self, slope: Tensor) -> Tensor:
        """The slope in u of what has this slope in w, shape (p,)."""
        turned = self._each(slope, _turned_back)
        return turned if self.scales is None else turned * self.scales

    def to(self, device: torch.device, dtype: torch.dtype) -> Coordinates:
        """The same, elsewhere or less precise."""
        known: dict[int, Tensor] = {}

        def moved(side: Tensor) -> Tensor:
            # Once for each: weight and bias of a layer share their left one.
            return known.setdefault(id(side), side.to(device, dtype))

        def both(basis: Basis) -> Basis:
            return moved(basis[0]), None if basis[1] is None else moved(basis[1])

        return replace(
            self,
            origin=self.origin.to(device, dtype),
            bases=tuple(None if basis is None else both(basis) for basis in self.bases),
            scales=None if self.scales is None else self.scales.to(device, dtype),
        )

    def _each(self, flat: Tensor, function: Callable[[Tensor, Basis], Tensor]) -> Tensor:
        parts = torch.split(flat, list(self.sizes))
        return torch.cat(
            [part if basis is None else function(part, basis) for part, basis in zip(parts, self.bases, strict=True)]
        )


def _orthonormal(side: Tensor) -> bool:
    excess = side.T @ side - torch.eye(len(side), dtype=side.dtype, device=side.device)
    return bool((excess.abs() <= (EXACT if side.dtype == torch.float64 else QUICK)).all())  # NaN is not


def _turned(part: Tensor, basis: Basis) -> Tensor:
    left, right = basis
    rows = left @ part.reshape(len(left), -1)
    return (rows if right is None else rows @ right.T).reshape(-1)


def _turned_back(part: Tensor, basis: Basis) -> Tensor:
    left, right = basis
    rows = left.T @ part.reshape(len(left), -1)
    return (rows if right is None else rows @ right).reshape(-1)


FLOOR = 1e-2
"""What a direction without any curvature counts for, in units of the mean: it may move all the same."""


def curvature_scales(curvature: Tensor) -> Tensor:
    """``s_i = (lambda_i / mean(lambda) + 0.01)^(1/4)``: a prior that is wider where the loss is stiffer at the start.

    Training moves the weights mostly along stiff directions (Yang, Mao and Chaudhari 2022, section 4), but less than in
    proportion: the root stands between an isotropic prior and one like the curvature itself. The floor is for
    directions that no example shows at the start.

    Args:
        curvature: lambda, shape (p,), at least 0, of the network at w0 on examples that the bound does not use.

    Returns:
        Shape (p,), float64.

    Raises:
        ConfigurationError: If there is no curvature at all, or it is not finite.

    Example:
        >>> curvature_scales(torch.tensor([0.0, 0.0, 0.0, 4.0]))
        tensor([0.3162, 0.3162, 0.3162, 1.4151], dtype=torch.float64)
    """
    double = curvature.detach().to("cpu" if curvature.device.type == "mps" else curvature.device).double()
    mean = double.clamp(min=0.0).mean()
    if not 0.0 < float(mean) < float("inf"):
        raise ConfigurationError(
            f"The mean curvature of the network at its start is {float(mean)}, so it makes no prior; look at the "
            "validation samples and the initial weights, or take prior='initialization'."
        )
    return (double.clamp(min=0.0) / mean + FLOOR) ** 0.25
