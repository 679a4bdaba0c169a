"""What would make a bound invalid, looked for in the data and the module; every finding is a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sloppy.evaluation.objective import tensors_of
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

COPIES_AMONG = 60_000
"""Samples compared for exact copies: all of MNIST; more would make the first evaluation slow."""

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
        copies, looked = exact_copies(source)
        if copies:
            reasons.append(
                f"{copies:,} of {looked:,} training samples are exact copies of others, so they are not independent "
                "draws; remove duplicates before splitting and training."
            )
    return reasons


def reads_differ(trainer: Trainer, context: FitContext, source: SampleSource) -> bool:
    """Whether a sample read twice, under different random streams, comes out differently."""
    indices = probe_indices(len(source), TWICE, seed=1)
    first = context.read(trainer, source, indices, TWICE)[0]
    kept = [tensor.clone() for tensor in tensors_of(first)]
    from lightning_sloppy.evaluation.preserve import random_streams

    with random_streams():
        torch.manual_seed(12_345)
        np.random.seed(12_345)  # noqa: NPY002 - transforms of users draw from the global stream
        import random

        random.seed(12_345)
        second = tensors_of(context.read(trainer, source, indices, TWICE)[0])
    return any(not torch.equal(a, b) for a, b in zip(kept, second, strict=True))


def exact_copies(source: SampleSource) -> tuple[int, int]:
    """How many of the samples looked at are byte for byte copies of an earlier one, and how many were looked at."""
    indices = probe_indices(len(source), COPIES_AMONG, seed=2)
    seen: set[bytes] = set()
    with torch.no_grad():
        for batch in source.chunks(indices, READ_CHUNK):
            seen.update(_digests(batch))
    return len(indices) - len(seen), len(indices)


def _digests(batch: Any) -> list[bytes]:
    """One key for each sample: the bytes of all its tensors, hashed."""
    import hashlib

    columns = [t.detach().cpu().contiguous() for t in tensors_of(batch) if t.ndim > 0]
    arrays = [column.reshape(len(column), -1).view(torch.uint8).numpy() for column in columns]
    return [
        hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays), digest_size=16).digest()
        for row in range(len(arrays[0]))
    ]


def overlap(training: SampleSource, holding: SampleSource) -> int:
    """Samples that two sources share by identity of the data set and index."""
    first, second = training.identities(), holding.identities()
    return len(first & second)


def batch_statistics(module: nn.Module) -> list[str]:
    """Names of layers that keep statistics of the training data in buffers."""
    return [
        name
        for name, child in module.named_modules()
        if getattr(child, "track_running_stats", False) and getattr(child, "running_mean", None) is not None
    ]


def changed_buffers(module: nn.Module, start: dict[str, Tensor]) -> list[str]:
    """Names of buffers that differ from the start of the fit: functions of the data that no prior accounts for."""
    return [
        name
        for name, buffer in module.named_buffers()
        if name not in start or start[name].shape != buffer.shape or not torch.equal(start[name], buffer.cpu())
    ]
