"""Hashes of samples, byte for byte, to find copies and to distinguish data sets."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

PLAIN = (str, bytes, int, float)
"""Strings and numbers."""
LOOKED_AT = 60_000
"""Largest number of samples that are read: all of MNIST. More would make the first evaluation of a bound slow."""


@dataclass(frozen=True)
class SampleDigests:
    """Hashes of the samples of a source.

    Attributes:
        looked_at: Number of samples read. From a larger source they are drawn at random.
        distinct: The set of their hashes.
        fingerprint: One hash for all of them, independent of their order.
    """

    looked_at: int
    distinct: frozenset[bytes]
    fingerprint: str

    @property
    def copies(self) -> int:
        """Number of samples that are exact copies of another one."""
        return self.looked_at - len(self.distinct)


def sample_digests(source: SampleSource, indices: Tensor | None = None) -> SampleDigests:
    """Read the samples, or those with the given indices, and hash all tensors of each."""
    if indices is None:
        indices = probe_indices(len(source), LOOKED_AT, seed=2)
    seen = _digests(source, indices)
    whole = hashlib.blake2b(b"".join(sorted(seen)), digest_size=16).hexdigest()
    return SampleDigests(len(seen), frozenset(seen), whole)


def groups_of_equals(source: SampleSource) -> Tensor:
    """A group number per sample, (n,): equal samples have the same, in order of first occurrence. All are read."""
    numbers: dict[bytes, int] = {}
    return torch.tensor(
        [numbers.setdefault(digest, len(numbers)) for digest in _digests(source, torch.arange(len(source)))]
    )


def first_of_equals(source: SampleSource) -> Tensor:
    """Indices of the distinct samples, each at its first occurrence. All samples are read."""
    groups = groups_of_equals(source)
    first = {group: index for index, group in reversed(list(enumerate(groups.tolist())))}
    return torch.tensor(sorted(first.values()))


def _digests(source: SampleSource, indices: Tensor) -> list[bytes]:
    found: list[bytes] = []
    with torch.no_grad(), source.untouched():
        for part in torch.split(indices, READ_CHUNK):
            columns = _columns(source.read(part), len(part)) if source.stacks else None
            if columns is None:
                alone = zip(source.each_alone(part), part.tolist(), strict=True)
                found += [_hash(_contents(sample, index)) for sample, index in alone]
            else:
                found += [_hash(row) for row in zip(*columns, strict=True)]
    return found


def frozen_digests(module: nn.Module) -> dict[str, str]:
    """A hash of every buffer and every frozen parameter, that is, of all tensors except the trained weights."""
    rest = [*module.named_buffers(), *((name, p) for name, p in module.named_parameters() if not p.requires_grad)]
    return {name: _digest(tensor) for name, tensor in rest}


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(plain.tobytes() + str(tuple(tensor.shape)).encode(), digest_size=16).hexdigest()


def _columns(batch: Any, count: int) -> list[list[bytes]] | None:
    """The bytes of each sample in each tensor, and in each list of strings or numbers.

    None if some have no row per sample (time first, packed sequences, ragged tensors), or if there are other objects.
    """
    tensors = [tensor for tensor in tensors_of(batch) if tensor.is_nested or tensor.ndim > 0]
    others = list(_others(batch))
    words = [other for other in others if isinstance(other, list)]
    known = all(isinstance(other, (list, *PLAIN)) for other in others)
    rows = [*(0 if tensor.is_nested else len(tensor) for tensor in tensors), *map(len, words)]
    if not known or not rows or any(row != count for row in rows):
        return None
    columns = [[repr(value).encode() for value in column] for column in words]
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(count, -1).view(torch.uint8).numpy()
        columns.append([flat[row].tobytes() for row in range(count)])
    return columns


def _contents(batch: Any, index: int) -> list[bytes]:
    """The bytes of a batch of one sample, as those of its row; its index if it contains objects without bytes."""
    found: list[bytes] = []
    try:
        for other in _others(batch):
            if isinstance(other, list):
                found += [repr(value).encode() for value in other]
            else:
                found.append(repr(other).encode() if isinstance(other, PLAIN) else pickle.dumps(other))
    except Exception:  # raised by classes of users: such a sample is equal to no other
        return [str(index).encode()]
    tensors = [tensor.to_padded_tensor(0) if tensor.is_nested else tensor for tensor in tensors_of(batch)]
    flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    found += [part.numpy().tobytes() for part in flat]
    return found or [str(index).encode()]


def _others(nest: Any, depth: int = 8) -> Iterator[Any]:
    """All that is not a tensor: lists of strings or numbers, as collate functions return texts, and single objects."""
    if isinstance(nest, (Tensor, PackedSequence)) or nest is None:
        return
    if isinstance(nest, (list, tuple)) and nest and all(isinstance(part, PLAIN) for part in nest):
        yield list(nest)
    elif isinstance(nest, (Mapping, list, tuple)):
        for part in nest.values() if isinstance(nest, Mapping) else nest:
            yield from _others(part, depth)
    elif tensors_of(nest):
        for part in vars(nest).values() if depth and hasattr(nest, "__dict__") else ():
            yield from _others(part, depth - 1)
    else:
        yield nest


def _hash(parts: Iterable[bytes]) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.digest()
