"""How large an eigenvalue is that sampling alone makes, when rows follow one another in time."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.table_source import need

Shrinkage = Literal["ledoit_wolf", "oas"]

COPIED = 1_000_000
"""Cells of which copies are made at a time."""


def lag_one(values: Floats) -> Floats:
    """Correlation of each column with itself one row later, (d,); NaN where fewer than 3 neighbours are observed.

    Args:
        values: Rows in their order, (n, d), NaN where missing.
    """
    found = np.empty(values.shape[1])
    width = max(1, COPIED // max(len(values), 1))
    for start in range(0, values.shape[1], width):
        found[start : start + width] = _lag_one(np.asfortranarray(values[:, start : start + width]))
    return found


def _lag_one(values: Floats) -> Floats:
    early, late = values[:-1], values[1:]
    both = ~(np.isnan(early) | np.isnan(late))
    count = both.sum(0)
    safe = np.maximum(count, 1)

    def centred(part: Floats) -> Floats:
        kept = np.where(both, part, 0.0)
        return np.where(both, kept - kept.sum(0) / safe, 0.0)

    early, late = centred(early), centred(late)
    scale = np.sqrt((early**2).sum(0) * (late**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (early * late).sum(0) / scale
    return np.where((count > 2) & (scale > 0), found, np.nan)


def median_lag_one(values: Floats) -> float:
    """Median of :func:`lag_one` over the columns, not below 0."""
    found = lag_one(values)
    known = found[np.isfinite(found)]
    return max(0.0, float(np.median(known))) if len(known) else 0.0


def effective_rows(rows: int, autocorrelation: float) -> float:
    """``n (1 - r) / (1 + r)``: independent rows whose mean would be as uncertain, for first-order autocorrelation r.

    >>> effective_rows(300, 0.5)
    100.0
    """
    r = min(max(autocorrelation, 0.0), 0.999)
    return rows * (1 - r) / (1 + r)


def noise_edge(rows: float, columns: int) -> float:
    """Largest eigenvalue of the correlation matrix of independent columns, ``(1 + sqrt(d / n))^2`` (Marchenko, Pastur).

    >>> noise_edge(400, 100)
    2.25
    """
    return float((1 + np.sqrt(columns / max(rows, 1.0))) ** 2)


def shrunk_correlation(values: Floats, how: Shrinkage) -> tuple[Floats, float]:
    """Correlation pulled towards the identity, ``(1 - a) R + a I``, with scikit-learn's choice of a.

    Args:
        values: Standardised and complete, (n, d); fill missing values before.
        how: "ledoit_wolf" (Ledoit and Wolf 2004) or "oas" (Chen et al. 2010).

    Returns:
        The matrix and a.

    Raises:
        MissingExtraError: Without scikit-learn.
    """
    need("sklearn", "shrinkage=")
    from sklearn import covariance

    estimate = covariance.ledoit_wolf if how == "ledoit_wolf" else covariance.oas
    matrix, amount = estimate(values)
    scale = np.sqrt(np.diag(matrix))
    return matrix / scale[:, None] / scale, float(amount)
