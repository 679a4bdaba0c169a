"""Random vectors from an explicit CPU generator: the same on every rank and every device."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """Return a new CPU generator, so that the global random stream of the training is not used."""
    return torch.Generator(device="cpu").manual_seed(seed)


def rademacher(dim: int, count: int, rng: torch.Generator) -> Tensor:
    """Independent random signs, shape (count, dim), int8 on the CPU. The squared norm is exactly ``dim``.

    In trace estimation their variance is ``2 (||A||_F^2 - ||diag A||^2)``, the smallest among vectors with independent
    entries of unit variance (Hutchinson 1990). They take one byte per entry, because they are kept for a run.
    """
    signs = torch.randint(0, 2, (count, dim), generator=rng, dtype=torch.int8)
    return signs.mul_(2).sub_(1)


def unit_gaussian(dim: int, rng: torch.Generator) -> Tensor:
    """One vector uniform on the unit sphere, shape (dim,), float32 on the CPU."""
    vector = torch.randn(dim, generator=rng)
    return vector.div_(torch.linalg.vector_norm(vector))
