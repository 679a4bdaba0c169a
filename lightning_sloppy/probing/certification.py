"""From a trained module to its final certificates: which prior, which samples, what forbids it; learn, judge, save."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.bounds.certify import weights_hash
from lightning_sloppy.bounds.descent import LocalSurrogate
from lightning_sloppy.bounds.final import FinalCertificates, certify_posterior
from lightning_sloppy.bounds.learning import Learnt, learn_posterior
from lightning_sloppy.bounds.pac_bayes import PAC_SHARE, scheduled_delta
from lightning_sloppy.bounds.plan import LearningPlan
from lightning_sloppy.bounds.posterior import posterior_family
from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.bounds.scaled import ScaledGaussian, scaled
from lightning_sloppy.bounds.selection import member, select_posterior
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.ranks import Ranks
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.error_counts import ErrorCounter

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CHECKPOINTS = ("certified_1.ckpt", "certified_2.ckpt")
PAIR, SINGLE = "certificate.json", "certified_1.json"
"""Names of the files in the folder of the certificates."""


@dataclass(frozen=True)
class Run:
    """What a certificate must know of the run.

    Attributes:
        prior_mean: Weights before the first step.
        evaluation: Evaluations of the schedule so far.
        split: Fingerprint of the samples that were trained on; None: nobody knows.
        rest: Digests of buffers and frozen parameters before the first step.
    """

    prior_mean: Tensor | None = None
    evaluation: int = 0
    split: str | None = None
    rest: dict[str, str] | None = None

    @classmethod
    def of(cls, state: dict[str, Any]) -> Run:
        """From a checkpoint."""
        return cls(state.get("prior_mean"), int(state.get("evaluation", 0)), state.get("split"), state.get("rest"))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        known = {} if self.prior_mean is None else {"prior_mean": self.prior_mean}
        return {**known, "evaluation": self.evaluation, "split": self.split, "rest": self.rest}


@dataclass(frozen=True)
class Question:
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
    """

    prior_mean: Tensor
    counter: ErrorCounter
    n: int
    delta: float
    evaluation: int
    plan: LearningPlan
    seed: int
    template: Certificate


def learnt_and_certified(
    context: FitContext, question: Question, on_step: Callable[[float], None]
) -> tuple[Learnt, FinalCertificates]:
    """Learn a posterior around the module's weights on rank 0, judge fresh draws of it on every rank.

    Args:
        context: Of the fit.
        question: What is to be certified.
        on_step: Told of the part of the plan that is done.
    """
    weights = context.layout.vector(context.module)
    start = _start(weights, question)
    learnt = None
    if context.ranks.rank == 0:
        learnt = _learnt(context, start, question, on_step)
    posterior = _everybodys(context.ranks, None if learnt is None else learnt.posterior, start)
    final = certify_posterior(
        posterior,
        question.prior_mean,
        question.counter,
        n=question.n,
        delta=question.delta,
        generator=_judging_stream(question, posterior),
        evaluation=question.evaluation,
        dtype=weights.dtype,
        template=question.template,
    )
    return learnt or Learnt(posterior, 0, 0.0, "on another rank", ()), final


def _start(weights: Tensor, question: Question) -> ScaledGaussian:
    """The best isotropic posterior that a pilot finds between the prior's mean and the weights."""
    family = posterior_family(
        weights,
        question.prior_mean.to(weights),
        eigenvalues=weights.new_zeros(0),
        eigenvectors=weights.new_zeros(len(weights), 0),
    )
    choice = select_posterior(
        family,
        n=question.n,
        log_penalty=log_xi(question.n) - math.log(question.delta),
        risk=lambda flat, indices: question.counter(flat.to(weights.device), indices),
        generator=_stream(question, 0),
        dtype=weights.dtype,
    )
    return scaled(member(family, choice, question.n))


def _learnt(context: FitContext, start: ScaledGaussian, question: Question, on_step: Callable[[float], None]) -> Learnt:
    def learn(local: LocalSurrogate | None) -> Learnt:
        return learn_posterior(
            start,
            question.prior_mean,
            question.counter.surrogate,
            n=question.n,
            examples=torch.arange(question.n),
            delta=scheduled_delta(PAC_SHARE * question.delta, question.evaluation) / 2,
            plan=question.plan,
            generator=_stream(question, 1),
            local=local,
            sizes=[shape.numel() for shape in context.layout.shapes],
            on_step=on_step,
        )

    with torch.enable_grad():
        try:
            return learn(question.counter.local)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):
            # Forwards that torch functions do not see (scripted, functions of their own) or that run twice (activation
            # checkpointing): one draw for each batch.
            return learn(None)


def _everybodys(ranks: Ranks, learnt: ScaledGaussian | None, start: ScaledGaussian) -> ScaledGaussian:
    """Rank 0's posterior on every rank: time limits end elsewhere on each."""
    if ranks.count == 1 and learnt is not None:
        return learnt
    own = learnt or start
    mean, deviations, factors = (
        ranks.add_up(part if learnt is not None else torch.zeros_like(part))
        for part in (own.mean, own.deviations, own.factors)
    )
    return ScaledGaussian(mean, deviations, start.vectors, factors)


def _stream(question: Question, part: int) -> torch.Generator:
    """Choice and learning never share a stream; each evaluation has its own."""
    return generator(((question.seed + 7) * 1_000_003 + question.evaluation) * 3 + part)


def _judging_stream(question: Question, posterior: ScaledGaussian) -> torch.Generator:
    """Draws that depend on the whole posterior: nobody can have chosen it by looking at them, in an earlier run either.

    A hash of the posterior takes part in the seed, so that another plan, or another checkpoint, gets other draws, the
    same ones on every rank.
    """
    parts = (posterior.mean, posterior.deviations, posterior.factors)
    whole = "".join(weights_hash(part) for part in parts) + f"{question.seed} {question.evaluation}"
    return generator(int(hashlib.sha256(whole.encode()).hexdigest()[:15], 16))


def forget_files(folder: Path) -> None:
    """Take away what an earlier run has left under the names that are written here: it would vouch for another."""
    for name in (PAIR, SINGLE, *CHECKPOINTS):
        (folder / name).unlink(missing_ok=True)


def save(trainer: Trainer, context: FitContext, folder: Path, final: FinalCertificates) -> FinalCertificates:
    """Write both networks as normal checkpoints, and the certificates beside them; on rank 0, without a word to others.

    Args:
        trainer: The Trainer; its module holds each network while it is written, and its own weights again afterwards.
        context: Of the fit.
        folder: Where to.
        final: What to write.

    Returns:
        The certificates with the names of the files in them.

    Raises:
        ConfigurationError: When a file does not hold the network that was judged.
    """
    named = replace(
        final,
        pair=replace(final.pair, networks=CHECKPOINTS),
        single=replace(final.single, networks=CHECKPOINTS[:1]),
    )
    if not trainer.is_global_zero:
        return named
    folder.mkdir(parents=True, exist_ok=True)
    for name, weights in zip(CHECKPOINTS, final.networks, strict=True):
        with _holding(context, weights):
            state = trainer_internals.weights_file(trainer)
            _compare(context, state["state_dict"], weights)
            torch.save(state, folder / name)
    named.pair.save(folder / PAIR)
    named.single.save(folder / SINGLE)
    return named


def _compare(context: FitContext, state: Mapping[str, Tensor], weights: Tensor) -> None:
    """Whether what goes into a file is what was judged, to the last bit."""
    for name, judged in context.layout.table(weights).items():
        written = state.get(name)
        if written is None or not torch.equal(written.to(judged), judged):
            raise ConfigurationError(
                f"The checkpoint of a certified network would hold another {name} than was judged, so nothing was "
                "written; look for hooks that change the state (on_save_checkpoint), or parameters of mixed precision."
            )


@contextmanager
def _holding(context: FitContext, weights: Tensor) -> Iterator[None]:
    """Other weights in the module's own tensors; its own bits come back whatever happens."""
    table = dict(context.module.named_parameters())
    own = {name: table[name].detach().clone() for name in context.layout.names}
    try:
        with torch.no_grad():
            for name, value in context.layout.table(weights).items():
                table[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                table[name].copy_(value)


def folder_of(trainer: Trainer, given: str | None) -> Path:
    """Where certificates go: as given, else beside the run's logs, else in the Trainer's root folder."""
    beside = given or (Path(trainer.log_dir) / "certificate" if trainer.log_dir else None)
    return Path(beside or Path(trainer.default_root_dir) / "certificate")
