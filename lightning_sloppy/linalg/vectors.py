"""Random vectors from an explicit CPU generator: the same on every rank and every device."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, so that the global stream of the training is never touched."""
    return torch.Generator(device="cpu").manual_seed(seed)


def rademacher(dim: int, count: int, rng: torch.Generator) -> Tensor:
    """Independent signs, shape (count, dim), int8 on the CPU; squared norm exactly ``dim``.

    For trace estimation their variance is ``2 (||A||_F^2 - ||diag A||^2)``, the least among vectors with
    independent entries of unit variance (Hutchinson 1990). One byte an entry: the vectors are kept for a run.
    """
    signs = torch.randint(0, 2, (count, dim), generator=rng, dtype=torch.int8)
    return signs.mul_(2).sub_(1)


def unit_gaussian(dim: int, rng: torch.Generator) -> Tensor:
    """One vector uniform on the unit sphere, shape (dim,), float32 on the CPU."""
    vector = torch.randn(dim, generator=rng)
    return vector.div_(torch.linalg.vector_norm(vector))
