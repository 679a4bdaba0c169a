"""What samples are, byte for byte: to find copies, and to tell one data set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

LOOKED_AT = 60_000
"""Samples read at most: all of MNIST; more would make the first evaluation of a bound slow."""


@dataclass(frozen=True)
class SampleDigests:
    """Hashes of the samples of a source.

    Attributes:
        looked_at: Samples read; those of a larger source are drawn at random.
        distinct: Their different hashes.
        fingerprint: One hash for all of them, whatever their order.
    """

    looked_at: int
    distinct: frozenset[bytes]
    fingerprint: str

    @property
    def copies(self) -> int:
        """Samples that are exact copies of another one."""
        return self.looked_at - len(self.distinct)


def sample_digests(source: SampleSource, indices: Tensor | None = None) -> SampleDigests:
    """Read the samples, or those with the given indices, and hash all tensors of each."""
    if indices is None:
        indices = probe_indices(len(source), LOOKED_AT, seed=2)
    seen = _digests(source, indices)
    whole = hashlib.blake2b(b"".join(sorted(seen)), digest_size=16).hexdigest()
    return SampleDigests(len(seen), frozenset(seen), whole)


def first_of_equals(source: SampleSource) -> Tensor:
    """Indices of the different samples, each where it comes first; all samples are read."""
    seen = _digests(source, torch.arange(len(source)))
    first = {digest: index for index, digest in reversed(list(enumerate(seen)))}
    return torch.tensor(sorted(first.values()))


def _digests(source: SampleSource, indices: Tensor) -> list[bytes]:
    with torch.no_grad(), source.untouched():
        if not source.stacks:
            return [_alone(sample) for sample in source.each_alone(indices)]
        return [row for batch in source.chunks(indices, READ_CHUNK) for row in _rows(batch)]


def _alone(batch: Any) -> bytes:
    """Of the one sample of a batch: the same bytes as those of its row where batches are stacked."""
    tensors = [tensor.to_padded_tensor(0) if tensor.is_nested else tensor for tensor in tensors_of(batch)]
    columns = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    return hashlib.blake2b(b"".join(column.numpy().tobytes() for column in columns), digest_size=16).digest()


def frozen_digests(module: nn.Module) -> dict[str, str]:
    """A hash of every buffer and every frozen parameter: what a network is made of besides its trained weights."""
    rest = [*module.named_buffers(), *((name, p) for name, p in module.named_parameters() if not p.requires_grad)]
    return {name: _digest(tensor) for name, tensor in rest}


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(plain.tobytes() + str(tuple(tensor.shape)).encode(), digest_size=16).hexdigest()


def _rows(batch: Any) -> Iterator[bytes]:
    columns = [tensor.detach().cpu().contiguous() for tensor in tensors_of(batch) if tensor.ndim > 0]
    arrays = [column.reshape(len(column), -1).view(torch.uint8).numpy() for column in columns]
    for row in range(len(arrays[0])):
        yield hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays), digest_size=16).digest()
