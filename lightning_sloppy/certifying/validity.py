"""Checks of the data and the module for anything that makes a bound invalid. Each finding is a sentence."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sloppy.certificate import Reason
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.precision import HALF
from lightning_sloppy.evaluation.preserve import random_streams
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.digests import frozen_digests, sample_digests
from lightning_sloppy.probing.samples import SampleSource, curvature_indices, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TWICE = 16
"""Number of samples that are read twice to check whether reading is random."""


def split_reasons(
    trainer: Trainer, context: FitContext, certifying: SampleSource, trained: SampleSource, *, natural: bool = False
) -> list[str]:
    """Reasons why samples that were kept out of a fit cannot certify. Buffers may depend on the training samples.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        certifying: The certifying samples.
        trained: The training samples, read in the same way as the certifying ones.
        natural: Whether equal samples are independent draws, so that only identical ones must not be on both sides.
    """
    reasons: list[str] = []
    shared = shared_samples(context, certifying, trained, natural=natural)
    if shared:
        reasons.append(_seen(f"{shared:,} of the certifying samples are also training samples"))
    held_out = [SampleSource(loader) for loader in _indexable(trainer_internals.validation_loaders(trainer))]
    watched = sum(shared_samples(context, certifying, source, natural=natural) for source in held_out)
    if watched:
        reasons.append(_seen(f"{watched:,} of the certifying samples are validation samples and may have selected it"))
    if context.layout != ParameterLayout.of(context.module):
        reasons.append(_changed_parameters())
    return [*reasons, *_low_precision(context)]


def shared_samples(context: FitContext, first: SampleSource, second: SampleSource, *, natural: bool) -> int:
    """Number of samples that two sources have in common: identical ones, or equal ones."""
    same = len(first.identities() & second.identities())
    if natural:
        return same
    equal = context.samples.digests(first).distinct & context.samples.digests(second).distinct
    return max(same, len(equal))


def held_out_reasons(
    trainer: Trainer,
    context: FitContext,
    certifying: SampleSource,
    held_out: SampleSource,
    *,
    natural: bool = False,
) -> list[str]:
    """Reasons why held-out samples must not determine the prior: some of them certify, or this cannot be checked.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        certifying: The certifying samples.
        held_out: The samples that determine the prior.
        natural: Whether equal samples are independent draws.
    """
    used = sample_digests(held_out, curvature_indices(len(held_out)))
    if context.ranks.count > 1:
        # Check this first: ranks with different samples could otherwise return at different places.
        both = (context.samples.digests(certifying).fingerprint, used.fingerprint)
        if len(set(gathered_over_ranks(both))) > 1:
            return [_unseen("The processes hold different training or validation samples (a split without a seed?)")]
    if reads_differ(trainer, context, held_out):
        return [_unseen("Two reads of one validation sample differ")]
    shared = len(certifying.identities() & held_out.identities())
    if not natural:
        shared = max(shared, len(context.samples.digests(certifying).distinct & used.distinct))
    return [_seen(f"{shared:,} of the training samples are also validation samples")] if shared else []


def _indexable(loaders: list[DataLoader[Any]]) -> list[DataLoader[Any]]:
    found = []
    for loader in loaders:
        with suppress(ConfigurationError):
            SampleSource(loader)
            found.append(loader)
    return found


def _seen(what: str) -> Reason:
    return Reason(
        f"{what}, so the prior depends on them; keep training, validation and certifying samples apart, and remove "
        "duplicates before the split.",
        flag="prior_depends_on_sample",
    )


def _unseen(what: str) -> Reason:
    return Reason(
        f"{what}, so it cannot be checked that the samples that determine the prior are not certifying samples; read "
        "them without random transforms, and split with a seed.",
        flag="prior_depends_on_sample",
    )


def _changed_parameters() -> Reason:
    return Reason(
        "The set of trainable parameters changed during the fit; keep it fixed from the start.",
        flag="parameters_changed",
    )


def reads_differ(trainer: Trainer, context: FitContext, source: SampleSource) -> bool:
    """Whether two reads of a sample, with different random streams, differ."""
    indices = probe_indices(len(source), TWICE, seed=1)
    with random_streams(), source.untouched():
        (batch,) = context.samples.read(trainer, source, indices, TWICE, untouched=False)
        first = [t.clone() for t in tensors_of(batch)]
        torch.manual_seed(12_345)
        np.random.seed(12_345)  # noqa: NPY002 - transforms of users draw from the global streams
        random.seed(12_345)
        second = tensors_of(context.samples.read(trainer, source, indices, TWICE, untouched=False)[0])
    return any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def module_reasons(context: FitContext, prior_mean: Tensor | None, start: Mapping[str, str] | None = None) -> list[str]:
    """Reasons why there is no PAC-Bayes bound with the current weights and buffers of the module.

    Args:
        context: Context of the fit.
        prior_mean: The initial weights; None if they are unknown.
        start: Digests of buffers and frozen parameters before the first step; None: those at the start of this fit.
    """
    reasons: list[str] = []
    if prior_mean is None:
        reasons.append(
            Reason(
                "The weights were trained before this fit (or have gradients from a tuner), and the state of the "
                "callback with the initial weights is missing; start from newly initialised weights, or resume from a "
                "checkpoint with this callback.",
                flag="prior_depends_on_sample",
            )
        )
    elif len(prior_mean) != context.layout.dim:
        reasons.append(
            Reason(
                f"The checkpoint contains {len(prior_mean):,} initial weights, but the module has "
                f"{context.layout.dim:,} trainable parameters; resume with the same model.",
                flag="other_architecture",
            )
        )
    if context.layout != ParameterLayout.of(context.module):
        reasons.append(_changed_parameters())
    names = batch_statistics(context)
    if names:
        reasons.append(
            Reason(
                f"{len(names)} of the layers store batch statistics of the training data (first: {names[0]}), which "
                "the prior does not include; use GroupNorm or LayerNorm, or keep these layers in eval mode from the "
                "start.",
                flag="buffers_depend_on_sample",
            )
        )
    moved = changed_frozen(context.module, context.origin.digests if start is None else start)
    moved = [name for name in moved if name.rpartition(".")[0] not in set(names)]
    if moved:
        reasons.append(
            Reason(
                f"Buffers or frozen parameters changed during training (first: {moved[0]}). They depend on the data, "
                "and the prior does not include them; make them trainable parameters or constants.",
                flag="buffers_depend_on_sample",
            )
        )
    return [*reasons, *_low_precision(context)]


def _low_precision(context: FitContext) -> list[str]:
    # Frozen weights have no noise that rounding could remove.
    low = [p.dtype for p in context.module.parameters() if p.requires_grad and p.dtype in HALF]
    if not low:
        return []
    return [
        Reason(
            f"In {str(low[0]).removeprefix('torch.')}, rounding of the weights removes the noise of the posterior; "
            "keep the parameters in float32 (mixed precision does).",
            flag="low_precision",
        )
    ]


def module_conditions(context: FitContext) -> tuple[str, ...]:
    """Conditions of a bound that concern the module."""
    low = [p.dtype for p in context.module.parameters() if not p.requires_grad and p.dtype in HALF]
    if not low:
        return ()
    return (
        f"Frozen weights in {str(low[0]).removeprefix('torch.')} are converted to float32 before the networks are "
        "evaluated; deploy them in float32.",
    )


def batch_statistics(context: FitContext) -> list[str]:
    """Names of layers that store statistics of the training data in buffers, except those in eval mode at the start."""
    training = {id(child) for child, flag in context.modes if flag}
    return [
        name
        for name, child in context.module.named_modules()
        if getattr(child, "track_running_stats", False)
        and getattr(child, "running_mean", None) is not None
        and id(child) in training
    ]


def changed_frozen(module: nn.Module, start: Mapping[str, str]) -> list[str]:
    """Names of buffers and frozen parameters that have changed, and may therefore depend on the data."""
    return [name for name, digest in frozen_digests(module).items() if start.get(name) != digest]
