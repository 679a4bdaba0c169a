"""From a trained module to its final certificates: learn a posterior, judge fresh draws of it, save both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_sloppy.bounds.pair_inequality import PAC_BAYES_FRACTION, scheduled_delta
from lightning_sloppy.certifying.certificate_task import CertificateTask, initial_posteriors
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.ranks import Ranks
from lightning_sloppy.evaluation.real_numbers import real_view
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.posteriors.descent import LocalSurrogate
from lightning_sloppy.posteriors.learning import Learnt, learn_posterior
from lightning_sloppy.posteriors.pair_certificate import weights_hash
from lightning_sloppy.posteriors.posterior_certificate import FinalCertificates, certify_posterior
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CHECKPOINTS = ("certified_1.ckpt", "certified_2.ckpt")
PAIR, SINGLE = "certificate.json", "certified_1.json"
"""Names of the files in the folder of the certificates."""
TIME_OF_EACH = (0.8, 0.2)
"""Of the time to learn, where a posterior at the trained weights and one near the prior are both worth a try."""


def learn_and_certify(
    context: FitContext, task: CertificateTask, on_step: Callable[[float], None]
) -> tuple[Learnt, FinalCertificates]:
    """Learn a posterior around the module's weights on rank 0, judge fresh draws of it on every rank.

    Args:
        context: Of the fit.
        task: What is to be certified.
        on_step: Told of the part of the plan that is done.
    """
    weights = context.layout.vector(context.module)
    starts = initial_posteriors(task, weights)
    learnt = None
    if context.ranks.rank == 0:
        learnt = _best_learnt(context, starts, task, on_step)
    posterior = _of_rank_zero(context.ranks, None if learnt is None else learnt.posterior, starts[0])
    final = certify_posterior(
        posterior,
        task.centre,
        task.counter,
        n=task.n,
        delta=task.delta,
        generator=_judging_stream(task, posterior),
        evaluation=task.evaluation,
        dtype=weights.dtype,
        template=task.template,
        coordinates=task.coordinates,
        distinct=task.distinct,
    )
    return learnt or Learnt(posterior, 0, 0.0, "on another rank", ()), final


def _best_learnt(
    context: FitContext, starts: tuple[ScaledGaussian, ...], task: CertificateTask, on_step: Callable[[float], None]
) -> Learnt:
    """From each start, most of the time from the first; kept is what promises the lower bound."""
    if len(starts) == 1:
        return _learnt(context, starts[0], task, on_step)
    found, behind = [], 0.0
    for start, share in zip(starts, TIME_OF_EACH, strict=True):
        part = replace(task, plan=replace(task.plan, seconds=share * task.plan.seconds))
        found.append(_learnt(context, start, part, partial(_told, on_step, behind, share)))
        behind += share
    best = min(found, key=lambda learnt: learnt.estimates[-1])
    return replace(best, steps=sum(one.steps for one in found), seconds=sum(one.seconds for one in found))


def _told(on_step: Callable[[float], None], behind: float, share: float, done: float) -> None:
    on_step(behind + share * done)


def _learnt(
    context: FitContext, start: ScaledGaussian, task: CertificateTask, on_step: Callable[[float], None]
) -> Learnt:
    def learn(local: LocalSurrogate | None) -> Learnt:
        return learn_posterior(
            start,
            task.centre,
            task.counter.surrogate,
            n=task.n,
            examples=torch.arange(task.n),
            delta=scheduled_delta(PAC_BAYES_FRACTION * task.delta, task.evaluation) / 2,
            plan=task.plan,
            generator=task.stream(1),
            local=local,
            sizes=[shape.numel() for shape in context.layout.shapes],
            on_step=on_step,
        )

    with torch.enable_grad():
        try:
            return learn(task.counter.local)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):
            # Forwards that torch functions do not see (scripted, functions of their own) or that run twice (activation
            # checkpointing): one draw for each batch.
            return learn(None)


def _of_rank_zero(ranks: Ranks, learnt: ScaledGaussian | None, start: ScaledGaussian) -> ScaledGaussian:
    """Rank 0's posterior on every rank: time limits end elsewhere on each."""
    if ranks.count == 1 and learnt is not None:
        return learnt
    own = learnt or start
    mean, deviations, factors = (
        ranks.add_up(part if learnt is not None else torch.zeros_like(part))
        for part in (own.mean, own.deviations, own.factors)
    )
    return ScaledGaussian(mean, deviations, start.vectors, factors)


def _judging_stream(task: CertificateTask, posterior: ScaledGaussian) -> torch.Generator:
    """Draws that depend on the whole posterior: nobody can have chosen it by looking at them, in an earlier run either.

    A hash of the posterior takes part in the seed, so that another plan, or another checkpoint, gets other draws, the
    same ones on every rank.
    """
    parts = (posterior.mean, posterior.deviations, posterior.factors, posterior.vectors)
    whole = "".join(weights_hash(part) for part in parts) + f"{task.seed} {task.evaluation}"
    return generator(int(hashlib.sha256(whole.encode()).hexdigest()[:15], 16))


def forget_files(folder: Path) -> None:
    """Remove the files of an earlier run with the same names: they would certify other networks."""
    for name in (PAIR, SINGLE, *CHECKPOINTS):
        (folder / name).unlink(missing_ok=True)


def save(trainer: Trainer, context: FitContext, folder: Path, final: FinalCertificates) -> FinalCertificates:
    """Write both networks as normal checkpoints, together with the certificates, on rank 0.

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
        with context.layout.holding(context.module, weights):
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
        if written is None or not torch.equal(real_view(written).to(judged), judged):
            raise ConfigurationError(
                f"In the checkpoint of a certified network, {name} would differ from the evaluated network, so nothing "
                "was written; check for hooks that change the state (on_save_checkpoint), and for parameters of mixed "
                "precision."
            )


def folder_of(trainer: Trainer, given: str | None) -> Path:
    """Where certificates go: as given, else beside the run's logs, else in the Trainer's root folder."""
    beside = given or (Path(trainer.log_dir) / "certificate" if trainer.log_dir else None)
    return Path(beside or Path(trainer.default_root_dir) / "certificate")
