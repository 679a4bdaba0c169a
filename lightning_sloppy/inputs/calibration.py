"""What sampling did to the eigenvalues, taken back: the spectrum whose samples look like the data.

Sampling spreads eigenvalues: large ones come out too large, small ones too small, so that a participation ratio of a
sample is too small, by a third for independent columns at ``d / n = 1/2``. Here a spectrum is sought of which Gaussian
samples have, on average, the eigenvalues that were observed (the iterated bootstrap of Kuk, JRSS B 57, 1995): as many
rows, the same cells missing, the same autocorrelation, in the coordinates of the observed eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import linalg, signal

from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments, fewest_defined

ITERATIONS = 14
"""Half of them find the spectrum, the second half are averaged: a simulation is noisy."""

SIMULATED = 300
"""Columns times simulations in one iteration: few columns need several, many average out by themselves."""

MOST_CELLS = 3_000_000
"""Cells of a simulated table; larger ones are replaced by a matrix of the Wishart distribution."""

MOST_COLUMNS = 2_048

LEAST = 0.05
"""Where eigenvalues start that the sample cannot show, beside a mean of one: zeros for want of rows, and at most for
negative ones of a pairwise matrix. Zeros of complete rows are exact combinations of columns and stay."""


def calibrated_eigenvalues(
    correlation: Floats,
    rows: int,
    missing: npt.NDArray[np.bool_] | None,
    autocorrelation: float,
    seed: int,
    advance: Callable[[], None],
) -> tuple[Floats, Floats]:
    """Eigenvalues of the population, descending, (d,), estimated as the module says, and those of samples of it.

    Args:
        correlation: Of the sample, before any repair, (d, d).
        rows: n.
        missing: Cells without a value, (n, d), or None.
        autocorrelation: Of lag one; the simulated rows follow a first-order process with it.
        seed: Of the simulations.
        advance: Told after each iteration, ``ITERATIONS`` times.

    Returns:
        The eigenvalues, and signed ones of the samples that the second half of the iterations drew, (k, d).
    """
    d = len(correlation)
    rng = np.random.default_rng(seed)
    values, vectors = linalg.eigh(correlation)
    observed, vectors = values[::-1], vectors[:, ::-1]
    # A sign that does not depend on the order of the columns: the simulated rows then do not either.
    vectors = vectors * np.where((vectors**3).sum(0) < 0, -1.0, 1.0)
    repeats = max(1, min(4, SIMULATED // d))
    least = LEAST if rows <= d else min(LEAST, max(-float(observed[-1]), 1e-12))
    population = np.maximum(observed, least)
    population *= d / population.sum()
    total = np.zeros(d)
    samples: list[Floats] = []
    for iteration in range(ITERATIONS):
        late = iteration >= ITERATIONS // 2
        factor = _factor(population, vectors)
        drawn = np.array([_sampled(factor, rows, missing, autocorrelation, rng) for _ in range(repeats)])
        step = np.clip((observed - drawn.mean(0)) / np.maximum(population, 2 * least), -1.0, 1.0)
        population = np.sort(population * np.exp((0.4 if late else 0.7) * step))[::-1]
        population *= d / population.sum()
        if late:
            total += population
            samples.append(drawn)
        advance()
    factor = _factor(total / (ITERATIONS - ITERATIONS // 2), vectors)
    return np.maximum(linalg.eigvalsh(factor.T @ factor)[::-1], 0.0), np.concatenate(samples)


def _factor(population: Floats, vectors: Floats) -> Floats:
    """A with ``A A^T`` a correlation matrix of about these eigenvalues, (d, d)."""
    factor = vectors * np.sqrt(population)
    return np.asarray(factor / np.sqrt((factor * factor).sum(1))[:, None])


def _sampled(
    factor: Floats,
    rows: int,
    missing: npt.NDArray[np.bool_] | None,
    autocorrelation: float,
    rng: np.random.Generator,
) -> Floats:
    """Eigenvalues of the correlation of one simulated table, descending."""
    d = len(factor)
    phi = autocorrelation if autocorrelation > 0.02 else 0.0
    if (missing is None and phi == 0) or rows * d > MOST_CELLS:
        # Products of two values of a first-order process are worth n (1 - phi^2) / (1 + phi^2) independent ones.
        freedom = (rows - 1) * (1 - phi * phi) / (1 + phi * phi)
        if missing is not None:
            freedom *= float((~missing).mean()) ** 2
        matrix = _wishart(factor, max(2, round(freedom)), rng)
    else:
        values = rng.standard_normal((rows, d))
        if phi:
            values[1:] *= np.sqrt(1 - phi * phi)
            values = signal.lfilter([1.0], [1.0, -phi], values, axis=0)
        values = values @ factor.T
        if missing is not None:
            values[missing] = np.nan
        matrix = PairwiseMoments.of(values).correlation(fewest_defined(rows))[0]
    return np.asarray(linalg.eigvalsh(matrix, check_finite=False)[::-1])


def _wishart(factor: Floats, freedom: int, rng: np.random.Generator) -> Floats:
    """Correlation of a scatter with the Wishart distribution, by its triangular factor (Bartlett 1933)."""
    d = len(factor)
    if freedom < d:
        root = factor @ rng.standard_normal((d, freedom))
    else:
        triangle = np.tril(rng.standard_normal((d, d)), -1)
        triangle[np.diag_indices(d)] = np.sqrt(rng.chisquare(freedom - np.arange(d)))
        root = factor @ triangle
    root /= np.sqrt((root * root).sum(1))[:, None]
    return np.asarray(root @ root.T)
