"""Spectra like those of a trained network, known whole or seen through probe vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import Known, lanczos_density
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.records import Estimate, Spectrum, Status

DIM = 400


def rotated(values: Tensor, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=rng)).Q
    return turn @ torch.diag(values) @ turn.T


def of_a_network(*, negative: bool) -> Tensor:
    """Nearly all zero: a few large, a sloppy part over six decades, perhaps some below zero."""
    top = torch.tensor([20.0, 9.0, 4.0, 2.0])
    sloppy = 10 ** torch.linspace(0, -6, 80)
    below = -(10 ** torch.linspace(-1, -4, 15)) if negative else torch.zeros(15)
    return torch.cat([top, sloppy, torch.zeros(DIM - 99), below]).double()


def seen_through(
    matrix: Tensor, vectors: Tensor, *, positive: bool, steps: int = 30, known: Known | None = None
) -> Spectrum:
    density = lanczos_density(
        DenseOperator(matrix),
        vectors,
        steps=steps,
        rng=generator(0),
        positive_semidefinite=positive,
        together=True,
        known=known,
    )
    empty = torch.zeros(0, dtype=torch.float64)
    samples = torch.stack([d[0] for d in density.diagonals]) * density.masses + density.known.sum()
    trace = Estimate(float(samples.mean()), float(samples.std()) / len(samples) ** 0.5, status=Status.CONVERGED)
    return Spectrum(
        eigenvalues=empty,
        dim=len(matrix),
        num_samples=1,
        matrix="test",
        floor=1e-12,
        status=Status.CONVERGED,
        residuals=empty,
        largest=float(density.nodes.max()),
        smallest=float(density.nodes.min()),
        density=density,
        truncated=True,
        trace=trace,
    )


def whole(values: Tensor) -> Spectrum:
    values = values.sort(descending=True).values
    return Spectrum(
        eigenvalues=values,
        dim=len(values),
        num_samples=1,
        matrix="test",
        floor=1e-12,
        status=Status.EXACT,
        residuals=torch.zeros_like(values),
        largest=float(values[0]),
        smallest=float(values[-1]),
        trace=Estimate(float(values.sum())),
    )


def top_pairs(matrix: Tensor, count: int, noise: float = 0.0) -> Known:
    values, vectors = torch.linalg.eigh(matrix)
    chosen = values.abs().argsort(descending=True)[:count]
    vectors = vectors[:, chosen]
    if noise:
        bent = vectors + noise * torch.randn(vectors.shape, dtype=torch.float64, generator=generator(9))
        vectors = torch.linalg.qr(bent).Q
    inner = vectors.T @ matrix @ vectors
    ritz, turn = torch.linalg.eigh(inner)
    vectors = vectors @ turn
    return Known(ritz, vectors, torch.linalg.vector_norm(matrix @ vectors - vectors * ritz, dim=0))
