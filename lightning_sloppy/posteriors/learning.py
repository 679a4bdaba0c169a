"""Optimise a posterior for its bound: descend ``kl_inverse(risk, (K + ln(xi(n)/delta)) / n)`` by draws of weights.

Everything learnt belongs to the posterior, so it may be learnt on the training examples at no cost in the bound. What
it shows on the way is an estimate; only fresh draws make a bound (``certify``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.descent import Descent, LocalSurrogate, Surrogate
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian


@dataclass(frozen=True)
class Learnt:
    """An optimised posterior.

    Attributes:
        posterior: The posterior.
        steps: Steps taken.
        seconds: Time they took.
        method: Where the noise was drawn, in words.
        estimates: Estimated bound after each epoch: no bound, for the draws were used to learn.
    """

    posterior: ScaledGaussian
    steps: int
    seconds: float
    method: str
    estimates: tuple[float, ...]


def learn_posterior(
    start: ScaledGaussian,
    prior_mean: Tensor,
    surrogate: Surrogate,
    *,
    n: int,
    examples: Tensor,
    delta: float,
    plan: LearningPlan,
    generator: torch.Generator,
    local: LocalSurrogate | None = None,
    sizes: Sequence[int] = (),
    on_step: Callable[[float], None] | None = None,
) -> Learnt:
    """Minimise the inverted kl over mean, deviations and factors of directions, one draw of weights a step.

    The bound B rises with the risk q and with ``c = (K + ln(xi(n) / delta)) / n``; its gradient points along ``tau
    grad(q) + grad(K)`` with ``tau = n (dB/dq) / (dB/dc) = n (logit B - logit q)``, the implicit derivatives at the
    running risk. The precision of the prior is learnt with the posterior, as one number, and rounded to the grid
    before the end. In place of the gradient of the 0-1 risk stands that of the surrogate, scaled to the size of the
    risk (the quotient of the two running means), as Garcia-Perez et al. (arXiv 2510.07935) found best. The derivatives
    of K are closed; only the surrogate is differentiated. Reparametrised draws: Blundell et al., ICML 2015, equation 4.

    Args:
        start: Where to begin; its directions V stay, their factors are learnt.
        prior_mean: w0, shape (p,).
        surrogate: Loss and mistakes of weights of its own data type, shape (p,), on examples.
        n: Examples that the bound will divide by.
        examples: Indices to learn from, all of which the posterior may see.
        delta: Failure probability of the event that the bound will spend.
        plan: Time, rates, and what has a deviation of its own.
        generator: Source of batches and draws; never used again for the certificate.
        local: Loss of weights that are drawn inside the network. Preferred where the start has no directions, for
            its gradients are far less noisy.
        sizes: Entries of each parameter tensor, for ``spread="layers"``.
        on_step: Told of the part of the plan that is done, in (0, 1], after each step.

    Returns:
        The posterior in float64, and how it was found.

    Raises:
        ConfigurationError: If shapes disagree, or the loss is not finite at the first step.
    """
    if len(examples) == 0 or n < 2:
        raise ConfigurationError(f"A posterior was to be learnt from {len(examples)} examples for n={n}; give some.")
    descent = Descent(start, prior_mean, plan, n=n, delta=delta, sizes=sizes)
    began = time.perf_counter()
    steps, done, estimates = 0, 0.0, []
    per_epoch = max(len(examples) // plan.batch_size, 1)
    for epoch in _epochs(plan.epochs):
        for step, part in enumerate(_batches(examples, plan.batch_size, generator)):
            descent.step(surrogate, local, part, done, generator)
            steps += 1
            done = (time.perf_counter() - began) / plan.seconds
            if plan.epochs is not None:
                done = max(done, (epoch + (step + 1) / per_epoch) / plan.epochs)
            if on_step is not None:
                on_step(min(done, 1.0))
            if done >= 1.0:
                break
        estimates.append(descent.estimate)
        if done >= 1.0:
            break
    method = "noise of each example" if local is not None and start.rank == 0 else "one draw for each batch"
    return Learnt(descent.posterior(), steps, time.perf_counter() - began, method, tuple(estimates))


def _epochs(limit: int | None) -> Iterator[int]:
    epoch = 0
    while limit is None or epoch < limit:
        yield epoch
        epoch += 1


def _batches(examples: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Whole batches in random order; what is left over comes in another epoch."""
    order = examples[torch.randperm(len(examples), generator=generator, device=generator.device).cpu()]
    size = min(size, len(order))
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]
