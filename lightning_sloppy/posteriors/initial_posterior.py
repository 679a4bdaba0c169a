"""Where to begin with a prior of several scales: narrow where the prior is wide, as the stiff directions want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import scalar_kl_inverse
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID, draw_noise, relative_cost
from lightning_sloppy.posteriors.posterior_search import MEAN_SCALE_GRID, Risk
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian

STIFFNESS_GRID: Final[tuple[float, ...]] = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Values of kappa."""
_FIRST: Final[tuple[tuple[float, int, int], ...]] = tuple(
    (level, stiffness, 2) for level in (0.03, 0.1, 0.3) for stiffness in (0, 5, 9)
)
"""First looks: KL/n, places of kappa and of the mean's scale."""
_STRIDES: Final[tuple[tuple[int, int, int], ...]] = ((8, 2, 1), (4, 1, 1), (2, 1, 1))
"""How far to look from the best so far, in places of epsilon, kappa and the mean's scale."""
_PAIRS: Final[int] = 2


@dataclass(frozen=True)
class _Place:
    epsilon: int
    stiffness: int
    scale: int


def stiff_start(
    point: Tensor,
    scales: Tensor,
    *,
    n: int,
    log_penalty: float,
    risk: Risk,
    generator: torch.Generator,
    dtype: torch.dtype,
    samples: int = 1_000,
) -> ScaledGaussian:
    """The best of ``N(m u, diag(1 / (epsilon (1 + kappa g_i))))``, ``g = (s^2)^3``, as far as a pilot sees.

    For a quadratic loss with curvature lambda the best precision is ``epsilon + tau lambda s^2`` in coordinates that
    are stretched by s, and there ``s^2`` is the root of lambda (``curvature_scales``): hence the cube. The covariance
    costs ``1/2 sum_i (ln(1 + kappa g_i) - kappa g_i / (1 + kappa g_i))`` nats whatever epsilon is, the mean
    ``epsilon/2 m^2 ||u||^2``, so only risks take passes over examples: about forty on few of them.

    Args:
        point: u of the trained weights, shape (p,).
        scales: s, shape (p,).
        n: Examples that the bound divides by.
        log_penalty: ``ln(xi(n) / delta_pac)``.
        risk: Counts mistakes of points on examples.
        generator: Source of noise and examples.
        dtype: Type of the points handed to ``risk``.
        samples: Number of examples for each risk.

    Returns:
        The posterior, around the prior's mean 0, in float64.
    """
    stiffness = scales.double() ** 6
    squared = float(point.double().square().sum())
    covariance = [0.5 * float(relative_cost(kappa * stiffness).sum()) for kappa in STIFFNESS_GRID]
    noises = [draw_noise(point.double(), generator) for _ in range(_PAIRS)]
    indices = torch.randperm(n, generator=generator, device=generator.device)[:samples].cpu()
    known: dict[_Place, float] = {}

    def deviations(place: _Place) -> Tensor:
        return (PRIOR_GRID[place.epsilon] * (1.0 + STIFFNESS_GRID[place.stiffness] * stiffness)).rsqrt()

    def value(place: _Place) -> float:
        if place not in known:
            mean, wide = MEAN_SCALE_GRID[place.scale] * point.double(), deviations(place)
            networks = [(mean + sign * wide * z).to(dtype) for z in noises for sign in (1, -1)]
            parts = torch.tensor_split(indices, len(networks))
            judged = zip(networks, parts, strict=True)
            rate = sum(risk(network, part) for network, part in judged if part.numel()) / len(indices)
            nats = covariance[place.stiffness]
            nats += 0.5 * PRIOR_GRID[place.epsilon] * MEAN_SCALE_GRID[place.scale] ** 2 * squared
            known[place] = scalar_kl_inverse(rate, (nats + log_penalty) / n)
        return known[place]

    def nearest(level: float, stiffness_place: int, scale: int) -> _Place:
        wanted = 2.0 * level * n / max(MEAN_SCALE_GRID[scale] ** 2 * squared, 1e-30)
        place = min(range(len(PRIOR_GRID)), key=lambda j: abs(PRIOR_GRID[j] - wanted))
        return _Place(place, stiffness_place, scale)

    best = min((nearest(*look) for look in _FIRST), key=value)
    for stride in _STRIDES:
        moved = True
        while moved:
            around = [_beside(best, axis, sign * step) for axis, step in enumerate(stride) for sign in (1, -1)]
            found = min([best, *around], key=value)
            moved, best = found != best, found
    none = point.new_zeros(len(point), 0, dtype=torch.float64)
    return ScaledGaussian(MEAN_SCALE_GRID[best.scale] * point.double(), deviations(best), none, none.new_ones(0))


def _beside(place: _Place, axis: int, step: int) -> _Place:
    places = [place.epsilon, place.stiffness, place.scale]
    last = (len(PRIOR_GRID), len(STIFFNESS_GRID), len(MEAN_SCALE_GRID))[axis] - 1
    places[axis] = min(max(places[axis] + step, 0), last)
    return _Place(*places)
