"""What would make a bound invalid, looked for in the data and the module; every finding is a sentence."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.preserve import random_streams
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TWICE = 16
"""Samples read twice to see whether reading is random."""


def data_reasons(trainer: Trainer, context: FitContext, source: SampleSource) -> list[str]:
    """Why error counts on these samples cannot feed a bound: random reads, repeated samples."""
    reasons = []
    if reads_differ(trainer, context, source):
        reasons.append(
            "Two reads of the same sample differ (augmentation), so the n examples are not fixed; give the training "
            "data without random transforms, for instance by augmenting in training_step."
        )
    repeated = source.repeated_indices()
    if repeated:
        reasons.append(
            f"{repeated:,} of the {len(source):,} training samples are repeated by index, so they are not independent "
            "draws; use every sample once."
        )
    elif not reasons:
        digests = context.training_digests(trainer)
        if digests.copies:
            reasons.append(
                f"{digests.copies:,} of {digests.looked_at:,} training samples are exact copies of others, so they are "
                "not independent draws; remove duplicates before splitting and training."
            )
    return reasons


def reads_differ(trainer: Trainer, context: FitContext, source: SampleSource) -> bool:
    """Whether a sample read twice, under different random streams, comes out differently."""
    indices = probe_indices(len(source), TWICE, seed=1)
    with random_streams(), source.untouched():
        first = [t.clone() for t in tensors_of(context.read_once(trainer, source, indices, TWICE)[0])]
        torch.manual_seed(12_345)
        np.random.seed(12_345)  # noqa: NPY002 - transforms of users draw from the global streams
        random.seed(12_345)
        second = tensors_of(context.read_once(trainer, source, indices, TWICE)[0])
    return any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def module_reasons(context: FitContext, prior_mean: Tensor | None) -> list[str]:
    """Why the weights or buffers of the module forbid a PAC-Bayes bound at this moment."""
    reasons = []
    if prior_mean is None:
        reasons.append(
            "The weights were trained before this fit (or hold gradients of a tuner) and the callback's state with the "
            "initial weights is missing; start from fresh weights, or resume from a checkpoint with this callback."
        )
    elif len(prior_mean) != context.layout.dim:
        reasons.append(
            f"The checkpoint holds {len(prior_mean):,} initial weights, but the module has {context.layout.dim:,} "
            "trainable parameters; resume with the same model."
        )
    if context.layout != ParameterLayout.of(context.module):
        reasons.append("The set of trainable parameters changed during the fit; keep it fixed from the start.")
    names = batch_statistics(context)
    if names:
        reasons.append(
            f"Batch statistics of the training data are kept by {len(names)} of the layers (first: {names[0]}), and "
            "the prior does not cover them; use GroupNorm or LayerNorm, or keep them in eval mode from the start."
        )
    moved = changed_buffers(context.module, context.start_buffers)
    moved = [name for name in moved if name.rpartition(".")[0] not in set(names)]
    if moved:
        reasons.append(
            f"Buffers changed during training (first: {moved[0]}): they depend on the data, and the prior does not "
            "cover them; make them parameters or constants."
        )
    low = [p.dtype for p in context.module.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    if low:
        reasons.append(
            f"Weights in {str(low[0]).removeprefix('torch.')} round away the noise of the posterior; keep the "
            "parameters in float32 (mixed precision does)."
        )
    return reasons


def batch_statistics(context: FitContext) -> list[str]:
    """Names of layers that keep statistics of the training data in buffers; in eval mode at the start they do not."""
    training = {id(child) for child, flag in context.modes if flag}
    return [
        name
        for name, child in context.module.named_modules()
        if getattr(child, "track_running_stats", False)
        and getattr(child, "running_mean", None) is not None
        and id(child) in training
    ]


def changed_buffers(module: nn.Module, start: dict[str, Tensor]) -> list[str]:
    """Names of buffers that differ from the start of the fit: functions of the data that no prior accounts for."""
    return [
        name
        for name, buffer in module.named_buffers()
        if name not in start or start[name].shape != buffer.shape or not torch.equal(start[name], buffer.cpu())
    ]
