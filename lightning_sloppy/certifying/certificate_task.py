"""The task of a final certificate, and the posteriors from which its optimisation starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.posteriors.coordinates import Coordinates
from lightning_sloppy.posteriors.gaussian import double
from lightning_sloppy.posteriors.initial_posterior import stiff_start
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.posterior import posterior_family
from lightning_sloppy.posteriors.posterior_search import member, select_posterior
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian, scaled
from lightning_sloppy.records import Spectrum


@dataclass(frozen=True)
class RunState:
    """What a certificate must know of the run.

    Attributes:
        prior_mean: Weights before the first step.
        evaluation: Evaluations of the schedule so far.
        split: Fingerprint of the training samples; None if unknown.
        frozen: Digests of buffers and frozen parameters before the first step.
        buffers: The buffers themselves at that moment, by name, where training may move them.
        value: The latest bound of the run's PACBayesBound; NaN for none.
    """

    prior_mean: Tensor | None = None
    evaluation: int = 0
    split: str | None = None
    frozen: dict[str, str] | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    value: float = math.nan

    @classmethod
    def of(cls, state: dict[str, Any]) -> RunState:
        """From a checkpoint."""
        return cls(
            state.get("prior_mean"),
            int(state.get("evaluation", 0)),
            state.get("split"),
            state.get("frozen"),
            dict(state.get("buffers") or {}),
            float(state.get("value", math.nan)),
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        known = {} if self.prior_mean is None else {"prior_mean": self.prior_mean}
        shared = {"evaluation": self.evaluation, "split": self.split, "frozen": self.frozen}
        return {**known, **shared, "buffers": self.buffers, "value": self.value}


@dataclass(frozen=True)
class CertificateTask:
    """What is to be certified.

    Attributes:
        prior_mean: w0, flat.
        counter: Judges networks on the n samples.
        n: Samples.
        delta: Failure probability of all that the run calls a bound.
        evaluation: Number in the schedule of the run.
        plan: How the posterior is learnt.
        seed: Of everything that is drawn.
        template: Conditions and statements to copy into the certificates.
        coordinates: In which the posterior is learnt and the counter judges; None: weights.
        distinct: Indices of the different samples, where the bound must hold on these as well.
        pairs: Leading eigenpairs at the trained weights, whose directions get a precision of their own.
    """

    prior_mean: Tensor
    counter: ErrorCounter
    n: int
    delta: float
    evaluation: int
    plan: LearningPlan
    seed: int
    template: Certificate
    coordinates: Coordinates | None = None
    pairs: Spectrum | None = None
    distinct: Tensor | None = None

    def stream(self, part: int) -> torch.Generator:
        """Choice and learning never share a stream; each evaluation has its own."""
        return generator(((self.seed + 7) * 1_000_003 + self.evaluation) * 3 + part)

    @property
    def centre(self) -> Tensor:
        """The prior's mean in the coordinates."""
        return self.prior_mean if self.coordinates is None else torch.zeros_like(self.coordinates.origin)


def initial_posteriors(task: CertificateTask, weights: Tensor) -> tuple[ScaledGaussian, ...]:
    """Where the optimisation begins: the best simple posterior that a pilot finds around the weights.

    A mean that is shrunk in flat directions may have the best bound of all simple posteriors, for instance as the prior
    itself, whose complexity is nothing; but from there no step leads to the trained weights. So where a shrunk one is
    the best, it is the second of two.

    Args:
        task: What is to be certified.
        weights: Of the trained module, flat.
    """
    coordinates, counter = task.coordinates, task.counter
    log_penalty = log_xi(task.n) - math.log(task.delta)
    if coordinates is not None and coordinates.scales is not None:
        begin = stiff_start(
            coordinates.point(double(weights, coordinates.origin.device)),
            coordinates.scales,
            n=task.n,
            log_penalty=log_penalty,
            risk=counter,
            generator=task.stream(0),
            dtype=weights.dtype,
        )
        return (begin,)
    pairs = task.pairs
    vectors = None if pairs is None else pairs.eigenvectors
    family = posterior_family(
        weights,
        task.prior_mean.to(weights),
        eigenvalues=weights.new_zeros(0) if pairs is None else pairs.eigenvalues[: task.plan.directions],
        eigenvectors=weights.new_zeros(len(weights), 0) if vectors is None else vectors[:, : task.plan.directions],
        trace=None if pairs is None or pairs.trace is None else pairs.trace.value,
    )
    plain, shrunk = (
        select_posterior(
            family,
            n=task.n,
            log_penalty=log_penalty,
            risk=lambda flat, indices: counter.mistakes(flat.to(weights.device), indices),
            generator=task.stream(0),
            dtype=weights.dtype,
            shrink=shrink,
        )
        for shrink in (False, True)
    )
    starts = [scaled(member(family, choice, task.n)) for choice in ([plain, shrunk] if shrunk.shrink else [plain])]
    if coordinates is not None:
        # One deviation for all weights is one in any basis.
        starts = [
            replace(start, mean=coordinates.point(start.mean), vectors=coordinates.directions(start.vectors))
            for start in starts
        ]
    return tuple(starts)
