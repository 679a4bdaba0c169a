"""One step down the bound of a posterior: risk from random weights, complexity in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_sloppy.bounds.concentration import event_nats
from lightning_sloppy.bounds.relative_entropy import scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.gaussian import LOG_GRID_COST, PRIOR_GRID, double, kl_parts
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian

Surrogate = Callable[[Tensor, Tensor], tuple[float, int, Tensor]]
"""``surrogate(flat_weights, indices)``: a mean loss, the mistakes, and the loss's slope in the weights."""

LocalSurrogate = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[float, int, Tensor, Tensor]]
"""``local(means, variances, indices, generator)``: the same for weights drawn inside the network, for each example
apart where layers allow it, with the slopes in means and variances."""

MEMORY: Final[float] = 0.98
"""Weight of the past in the running risk and loss: about fifty steps."""
REFRESH: Final[int] = 10
"""Steps between two looks at the KL's sums over all weights, which change slowly and cost as much as a step's rest."""
ROUNDED_AT: Final[float] = 0.8
"""Part of the plan after which the precision of the prior stays on the grid."""
LEAST_RATE: Final[float] = 0.02
"""Learning rate at the end of its cosine, as a part of that at the start."""


class Descent:
    """The numbers that are learnt, in the precision of the network, and one step of it.

    The deviations are ``sigma_i = exp(r_i) / sqrt(epsilon)``, and epsilon, the precision of the prior, is learnt as a
    continuous number: moved together, prior and posterior cost nothing but what the distance of the mean does. Near the
    end it is rounded to the grid of the priors, all deviations with it, and stays there.
    """

    def __init__(
        self,
        start: ScaledGaussian,
        prior_mean: Tensor,
        plan: LearningPlan,
        *,
        n: int,
        delta: float,
        sizes: Sequence[int],
    ) -> None:
        self.device = start.mean.device
        self.n, self.delta = n, delta
        self.prior = prior_mean.detach().to(self.device, torch.float32)
        self.mean = start.mean.to(torch.float32)
        self.vectors, self.exact_vectors = start.vectors.to(torch.float32), start.vectors
        self.log_factors = start.factors.log().to(torch.float32)
        self.sizes = list(sizes) or [len(self.mean)]
        if sum(self.sizes) != len(self.mean):
            raise ConfigurationError(
                f"The sizes of the parameters add up to {sum(self.sizes):,}, but there are {len(self.mean):,} weights; "
                "give the number of entries of each tensor, in order."
            )
        nearest = min(PRIOR_GRID, key=lambda epsilon: sum(kl_parts(start, prior_mean, epsilon)))
        self.scale = torch.tensor([-0.5 * math.log(nearest)], device=self.device)
        self.relative = (start.deviations.log() + 0.5 * math.log(nearest)).to(torch.float32)
        layers = plan.spread == "layers"
        self.shifts = torch.zeros(len(self.sizes), device=self.device) if layers else None
        self.base = self.relative.clone() if layers else None
        spread = self.relative if self.shifts is None else self.shifts
        self.optimiser = torch.optim.Adam(
            [
                {"params": [self.mean], "lr": plan.mean_rate},
                {"params": [spread, self.log_factors], "lr": plan.spread_rate},
                {"params": [self.scale], "lr": plan.spread_rate},
            ],
            betas=(0.9, 0.99),
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.risk: float | None = None
        self.loss: float | None = None
        self.estimate = 1.0
        self._rounded = False
        self._noise: Tensor | None = None
        self._steps = 0
        self._sums = (0.0, 0.0)

    @property
    def epsilon(self) -> float:
        """The precision of the prior."""
        return math.exp(-2.0 * float(self.scale))

    def step(
        self,
        surrogate: Surrogate,
        local: LocalSurrogate | None,
        indices: Tensor,
        done: float,
        generator: torch.Generator,
    ) -> None:
        """Look at some examples with random weights, go down."""
        if done >= ROUNDED_AT and not self._rounded:
            self._round()
        widths, epsilon = self.relative.exp(), self.epsilon  # read once: on a GPU every look at a number waits
        if local is None or len(self.log_factors):
            slope, spread, by_factor = self._drawn(surrogate, widths, indices, generator)
        else:
            slope, spread, by_factor = *self._local(local, widths, epsilon, indices, generator), self.log_factors
        tau = self._price(widths, epsilon)
        squares = widths.square_()
        self.scale.grad = tau * spread.sum().reshape(1) - epsilon * self._sums[0]
        self.mean.grad = slope.mul_(tau).add_(self.mean - self.prior, alpha=epsilon)
        spread.mul_(tau)
        if len(self.log_factors):
            excess = torch.exp(-self.log_factors) - 1.0
            spread.add_(squares * (1.0 + self.vectors.square() @ excess)).sub_(1.0)
            along = self.vectors.square().T @ squares
            self.log_factors.grad = tau * by_factor + 0.5 * (1.0 - along * torch.exp(-self.log_factors))
        else:
            spread.add_(squares).sub_(1.0)
        if self.shifts is None:
            self.relative.grad = spread
        else:
            self.shifts.grad = torch.stack([part.sum() for part in torch.split(spread, self.sizes)])
        height = LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * height
        self.optimiser.step()
        if self.shifts is not None and self.base is not None:
            each = torch.repeat_interleave(self.shifts, torch.tensor(self.sizes, device=self.device))
            self.relative = self.base + each

    def _drawn(
        self, surrogate: Surrogate, widths: Tensor, indices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of the loss of one draw in mean, log-deviations and log-factors."""
        noise = self._fresh(generator)
        along = self.vectors.T @ noise
        roots = torch.exp(-0.5 * self.log_factors)
        turned = noise + self.vectors @ ((roots - 1.0) * along) if len(along) else noise
        deviations = widths * self.scale.exp()
        loss, mistakes, slope = surrogate(torch.addcmul(self.mean, deviations, turned), indices)
        self._remember(loss, mistakes / len(indices))
        pushed = slope * deviations
        return slope, pushed * turned, -0.5 * roots * along * (self.vectors.T @ pushed)

    def _local(
        self, local: LocalSurrogate, widths: Tensor, epsilon: float, indices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Slopes of the loss of weights drawn in the network, in mean and log-deviations."""
        variances = widths.square().mul_(1.0 / epsilon)
        loss, mistakes, slope, by_variance = local(self.mean, variances, indices, generator)
        self._remember(loss, mistakes / len(indices))
        return slope, by_variance * variances * 2.0

    def _round(self) -> None:
        nearest = min(PRIOR_GRID, key=lambda epsilon: abs(math.log(epsilon / self.epsilon)))
        self.scale.fill_(-0.5 * math.log(nearest))
        self.rates[-1] = 0.0
        self._rounded = True

    def _fresh(self, generator: torch.Generator) -> Tensor:
        """Noise, and at the next step its opposite: half the drawing, and the part that is linear in it cancels."""
        if self._noise is None:
            drawn = torch.randn(len(self.mean), generator=generator, device=generator.device).to(self.device)
            self._noise = -drawn
            return drawn
        opposite, self._noise = self._noise, None
        return opposite

    def _remember(self, loss: float, risk: float) -> None:
        if not math.isfinite(loss):
            raise ConfigurationError(
                "The loss of a drawn network is not finite, so its posterior cannot be learnt; lower mean_rate, or "
                "begin with smaller deviations."
            )
        self.risk = risk if self.risk is None else MEMORY * self.risk + (1 - MEMORY) * risk
        self.loss = loss if self.loss is None else MEMORY * self.loss + (1 - MEMORY) * loss

    def _price(self, widths: Tensor, epsilon: float) -> float:
        """How many nats a unit of surrogate is worth."""
        assert self.risk is not None
        assert self.loss is not None
        if self._steps % REFRESH == 0:
            self._sums = self._summed(widths)
        self._steps += 1
        squared_distance, covariance = self._sums
        nats = 0.5 * epsilon * squared_distance + covariance + LOG_GRID_COST
        risk = min(max(self.risk, 0.5 / self.n), 1.0 - 1e-6)
        self.estimate = scalar_kl_inverse(risk, max(event_nats(nats, n=self.n, delta=self.delta), 0.0) / self.n)
        limit = min(max(self.estimate, risk), 1.0 - 1e-6)
        tau = self.n * (math.log(limit / (1 - limit)) - math.log(risk / (1 - risk)))
        return tau * self.risk / max(self.loss, 1e-12)

    def _summed(self, widths: Tensor) -> tuple[float, float]:
        """``||mu - w0||^2`` and what the covariance costs, in nats."""
        squares = widths.square()
        total = (squares - 1.0 - 2.0 * self.relative).sum(dtype=torch.float64)
        if len(self.log_factors):
            excess = (torch.exp(-self.log_factors) - 1.0).double()
            total = total + excess @ (self.vectors.square().T @ squares).double() + self.log_factors.double().sum()
        return float((self.mean - self.prior).square().sum(dtype=torch.float64)), 0.5 * float(total)

    def posterior(self) -> ScaledGaussian:
        """What was learnt, as it would be drawn from."""
        if not self._rounded:
            self._round()
        return ScaledGaussian(
            mean=double(self.mean, self.device),
            deviations=(double(self.relative, self.device) + double(self.scale, self.device)).exp(),
            vectors=self.exact_vectors,
            factors=double(self.log_factors, self.device).exp(),
        )
