"""Which posterior to certify: a search with cheap pilot risks.

Everything chosen here belongs to the posterior, so it may be chosen on the training data, at no cost in the
bound. What must not be used again are the draws and examples of the pilot: their risks are biased downwards
by the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import scalar_kl_inverse
from lightning_sloppy.posteriors.families import LowRankGaussian
from lightning_sloppy.posteriors.gaussian import LOG_GRID_COST, PRIOR_GRID, draw_noise
from lightning_sloppy.posteriors.posterior import PosteriorFamily, family_kl, low_rank_posterior, member_parts

Risk = Callable[[Tensor, Tensor], int]
"""``risk(flat_weights, indices)``: mistakes of the network with these weights on these training examples."""

TAU_GRID: Final[tuple[float, ...]] = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Weights of the curvature, in units of n."""
MEAN_SCALE_GRID: Final[tuple[float, ...]] = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Interpolations of the mean between w0 and w."""
_PAIRS: Final[int] = 4
_STRIDE: Final[int] = 6
_NEAR: Final[float] = 1.1
_KL_LEVELS: Final[tuple[float, ...]] = (0.3, 0.1, 0.9, 0.03)
"""First looks, as KL/n: bounds between 3 % and 60 % live there. Epsilon itself has no such natural scale."""


@dataclass(frozen=True)
class Choice:
    """A member of a posterior family, by places in the grids.

    Attributes:
        epsilon_index: Place in ``PRIOR_GRID``.
        tau_index: Place in ``TAU_GRID``.
        scale_index: Place in ``MEAN_SCALE_GRID``.
        shrink: Whether the mean is also shrunk direction by direction.
    """

    epsilon_index: int
    tau_index: int = 3
    scale_index: int = 3
    shrink: bool = False

    @property
    def epsilon(self) -> float:
        """Prior precision."""
        return PRIOR_GRID[self.epsilon_index]

    @property
    def mean_scale(self) -> float:
        """Interpolation of the mean."""
        return MEAN_SCALE_GRID[self.scale_index]

    def tau(self, n: int) -> float:
        """Weight of the curvature in samples."""
        return TAU_GRID[self.tau_index] * n


@dataclass
class _Pilot:
    """Estimated bounds of members, all judged with the same noise on the same examples, and remembered.

    Common noise makes the differences between neighbours far less noisy than the risks themselves.

    Attributes:
        family: The members.
        n: Training examples.
        log_penalty: ``ln(xi(n) / delta_pac)``.
        risk: Counts mistakes.
        noises: z of each antithetic pair, shape (p,), in the type of the networks. Networks drawn so wide differ more
            from one another than a hundred examples do from the next hundred: several pairs on few examples each
            tell more.
        indices: Examples, shared out among the networks.
        dtype: Type of the weights handed to ``risk``.
        budget: Most members whose risk is looked at.
        values: Estimated bound of every member looked at.
    """

    family: PosteriorFamily
    n: int
    log_penalty: float
    risk: Risk
    noises: tuple[Tensor, ...]
    indices: Tensor
    dtype: torch.dtype
    budget: int
    values: dict[Choice, float] = field(default_factory=dict)
    _kl: dict[Choice, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What all members share: in the precision of the network, for a pilot needs no more."""
        family, kind = self.family, self.dtype
        self._vectors = family.vectors.T.to(kind).contiguous()
        self._along = torch.stack([self._vectors @ noise for noise in self.noises], dim=1).double()
        self._origin, self._displacement = family.prior_mean.to(kind), family.displacement.to(kind)

    def kl(self, choice: Choice) -> Tensor:
        """KL of the member at every epsilon of the grid, shape (100,)."""
        key = replace(choice, epsilon_index=0)
        if key not in self._kl:
            self._kl[key] = family_kl(
                self.family, PRIOR_GRID, tau=choice.tau(self.n), mean_scale=choice.mean_scale, shrink=choice.shrink
            )
        return self._kl[key]

    def matched(self, choice: Choice, target: float) -> Choice:
        """The member with epsilon such that its KL is as close to ``target`` nats as the grid allows.

        Only epsilons above the one of least KL: those below cost more and shake the network harder.
        """
        costs = self.kl(choice)
        least = 0 if choice.shrink else int(costs.argmin())
        return replace(choice, epsilon_index=least + int((costs[least:] - target).abs().argmin()))

    def bound(self, choice: Choice) -> float:
        """Estimated bound of a member; infinite when it cannot be the best, or the budget is spent."""
        if choice in self.values:
            return self.values[choice]
        budget = (float(self.kl(choice)[choice.epsilon_index]) + LOG_GRID_COST + self.log_penalty) / self.n
        if len(self.values) >= self.budget or (
            self.values and scalar_kl_inverse(0.0, budget) >= min(self.values.values())
        ):
            return float("inf")
        self.values[choice] = scalar_kl_inverse(self._risk(choice), budget)
        return self.values[choice]

    def _risk(self, choice: Choice) -> float:
        parts = member_parts(
            self.family,
            epsilon=choice.epsilon,
            tau=choice.tau(self.n),
            mean_scale=choice.mean_scale,
            shrink=choice.shrink,
        )
        rest = parts.residual_precision**-0.5
        # The mean and every draw have a part within the k directions: one pass over the vectors serves all.
        draws = (parts.precisions.rsqrt() - rest)[:, None] * self._along
        inside = torch.cat([parts.along[:, None], draws], dim=1).to(self.dtype).T @ self._vectors
        mean = self._origin + parts.kept * self._displacement + inside[0]
        subsets = iter(torch.tensor_split(self.indices, 2 * len(self.noises)))
        errors = 0
        for noise, own in zip(self.noises, inside[1:], strict=True):
            step = own.add_(noise, alpha=rest)
            # The pair comes first: zip then stops before it takes a third subset.
            for drawn, subset in zip((mean + step, mean - step), subsets, strict=False):
                errors += self.risk(drawn, subset) if subset.numel() else 0
        return errors / self.indices.numel()


def member(family: PosteriorFamily, choice: Choice, n: int) -> LowRankGaussian:
    """The posterior that a choice names."""
    return low_rank_posterior(
        family, epsilon=choice.epsilon, tau=choice.tau(n), mean_scale=choice.mean_scale, shrink=choice.shrink
    )


def select_posterior(
    family: PosteriorFamily,
    *,
    n: int,
    log_penalty: float,
    risk: Risk,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    pilot_samples: int = 1_000,
    max_evaluations: int = 20,
    start: Choice | None = None,
    shrink: bool = True,
) -> Choice:
    """Choose (epsilon, tau, mean_scale, shrink) by coordinate search on ``kl_inverse(pilot risk, (KL + ...)/n)``.

    The displacement is nearly the whole KL, and risk and KL pull epsilon and the mean in opposite ways, so
    a coordinate is never moved alone: the search first finds a good KL, then moves along curves of equal KL
    (halving the mean's distance affords four times the precision), then refines epsilon.

    Args:
        family: From ``posterior_family``.
        n: Training examples.
        log_penalty: ``ln(xi(n) / delta_pac)``, nats.
        risk: Counts mistakes of flat weights on indices.
        generator: A source of its own, never used again for the certificate.
        dtype: Type of the weights handed to ``risk``.
        pilot_samples: Number of examples for each pilot risk, half of them for each network of the pair.
        max_evaluations: Most pilot risks, at least 1; 20 at the defaults cost 20,000 forward passes.
        start: A choice that was good a little earlier; the search then goes on from there, with half the draws
            on half the samples, at about a quarter of the cost.
        shrink: Whether to look at a mean that is also shrunk in flat directions. Without curvature that is the prior
            itself.

    Returns:
        The best choice seen.
    """
    looked_at, pairs = (pilot_samples, _PAIRS) if start is None else (-(-pilot_samples // 2), _PAIRS // 2)
    pilot = _Pilot(
        family=family,
        n=n,
        log_penalty=log_penalty,
        risk=risk,
        noises=tuple(draw_noise(family.displacement.to(dtype), generator) for _ in range(pairs)),
        indices=torch.randperm(n, generator=generator, device=generator.device)[:looked_at].cpu(),
        dtype=dtype,
        budget=max(max_evaluations, 1),
    )
    curved = float(family.eigenvalues.sum()) + family.residual_eigenvalue > 0.0
    if family.squared_distance == 0.0 and not curved:
        return _widest(pilot)
    if start is not None:
        best = _climb(pilot, start, lambda at, way: _step_epsilon(at, 2 * way))
        best = _climb(pilot, best, lambda at, way: _step_scale(pilot, at, way))
    else:
        best = _best(pilot, [pilot.matched(Choice(0), level * n) for level in _KL_LEVELS])
        best = _climb(pilot, best, lambda at, way: _step_epsilon(at, 4 * way))
        best = _climb(pilot, best, lambda at, way: _step_scale(pilot, at, way))
        best = _climb(pilot, best, lambda at, way: _step_epsilon(at, 2 * way))
        best = _best(pilot, [best, *([replace(best, shrink=True)] if shrink else [])])
    if curved:
        best = _climb(pilot, best, lambda at, way: _step_tau(pilot, at, way))
    return _climb(pilot, best, _step_epsilon)


def _widest(pilot: _Pilot) -> Choice:
    """At the prior itself every width costs nothing: the widest whose bound is near the best leaves room to move."""
    choices = [Choice(place, tau_index=0) for place in range(len(PRIOR_GRID) - 1, -1, -_STRIDE)]
    limits = [pilot.bound(choice) for choice in choices]
    near = [choice for choice, limit in zip(choices, limits, strict=True) if limit <= _NEAR * min(limits)]
    return near[-1]


def _best(pilot: _Pilot, candidates: Sequence[Choice]) -> Choice:
    return min(candidates, key=pilot.bound)


def _climb(pilot: _Pilot, start: Choice, step: Callable[[Choice, int], Choice]) -> Choice:
    """Walk one way while the estimated bound falls; the other way only if the first step did not help."""
    for way in (1, -1):
        at = start
        while pilot.bound(following := step(at, way)) < pilot.bound(at):
            at = following
        if at != start:
            return at
    return start


def _step_epsilon(at: Choice, places: int) -> Choice:
    return replace(at, epsilon_index=min(max(at.epsilon_index + places, 0), len(PRIOR_GRID) - 1))


def _step_scale(pilot: _Pilot, at: Choice, way: int) -> Choice:
    # Downwards first: in all trials so far the mean wanted to go towards w0.
    place = min(max(at.scale_index - way, 0), len(MEAN_SCALE_GRID) - 1)
    return pilot.matched(replace(at, scale_index=place), float(pilot.kl(at)[at.epsilon_index]))


def _step_tau(pilot: _Pilot, at: Choice, way: int) -> Choice:
    place = min(max(at.tau_index + way, 0), len(TAU_GRID) - 1)
    return pilot.matched(replace(at, tau_index=place), float(pilot.kl(at)[at.epsilon_index]))
