"""Whether a spectrum is sloppy, by comparison with the spectrum of a null: data of the same size without structure.

No source gives a threshold. Waterfall et al. 2006 describe eigenvalues spread evenly over many decades, Yang, Mao and
Chaudhari 2022 a steep drop before them. A number of decades alone is not informative: 60 independent Gaussian features
span 4.3 decades in 60 samples and 0.2 in 6,000. The rule used here is a convention of this package.
"""

from __future__ import annotations

import math
from typing import Literal

from lightning_sloppy.measures.relative_dimension import relative_dimension
from lightning_sloppy.measures.sloppiness import Sloppiness, participation_ratio, sloppiness
from lightning_sloppy.records import SloppinessVerdict, Spectrum

FEWEST = 10
"""With fewer resolved eigenvalues, a drop and an even spread cannot be distinguished."""

DROP, NO_DROP = 1 / 2, 2 / 3
"""Dimension divided by that of the null: at most the first is a drop, at least the second is no drop."""

SPREAD, NO_SPREAD = 1.0, 0.5
"""Decades of the fitted line minus those of the null: at least the first is a spread, at most the second is none."""


def sloppiness_verdict(
    spectrum: Spectrum,
    null: Spectrum,
    null_in_words: str,
    *,
    by: Literal["participation ratio", "effective dimension"] = "participation ratio",
    dimensions: tuple[float, float] | None = None,
) -> SloppinessVerdict:
    """Judge whether a spectrum is sloppy, by comparison with that of a null.

    A spectrum is sloppy if it has a *drop* (its dimension is at most half of the null's) and a *spread* (the line
    fitted after the knee crosses at least one decade more than that of the null, counted over all resolved
    eigenvalues). It is not sloppy if either is clearly absent: the dimension is at least two thirds of the null's, or
    the line crosses at most half a decade more than that of the null. Between these thresholds, and with fewer than ten
    resolved eigenvalues, the answer is "undetermined". A few large eigenvalues above flat noise are a drop without a
    spread.

    Args:
        spectrum: Spectrum with all eigenvalues known.
        null: Spectrum of a matrix of the same size and number of samples.
        null_in_words: What the null is, for instance "the same columns, each shuffled".
        by: The dimension to use. "participation ratio" for inputs, because with few features the effective dimension
            counts nearly all of them. "effective dimension" for networks, where the direction of the mean dominates
            the participation ratio.
        dimensions: The dimensions of spectrum and null, if the caller knows better values: a floor that hides small
            eigenvalues from the shape also changes a participation ratio.

    >>> import torch
    >>> from lightning_sloppy.records import Status
    >>> def spectrum(values):
    ...     return Spectrum(values, 50, 400, "covariance", 0.0, Status.EXACT, 0 * values, 1.0, 0.0)
    >>> even, flat = torch.logspace(0, -4, 50).double(), torch.ones(50).double()
    >>> sloppiness_verdict(spectrum(even), spectrum(flat), "flat").answer
    'yes'
    """
    seen, without = sloppiness(spectrum), sloppiness(null)
    of = participation_ratio if by == "participation ratio" else relative_dimension
    dimension, null_dimension = dimensions or (of(spectrum).value, of(null).value)
    spread, null_spread = _spread(seen), _spread(without)
    few = dimension / null_dimension if null_dimension else math.nan
    beyond = spread - null_spread
    numbers = (
        f"its {by} is {dimension:.3g} ({null_dimension:.3g} for {null_in_words}), and after the first drop its "
        f"eigenvalues spread over {spread:.2g} decades ({null_spread:.2g})"
    )
    answer: Literal["yes", "no", "undetermined"]
    if min(seen.resolved, without.resolved) < FEWEST or not math.isfinite(few * beyond):
        answer, reason = "undetermined", f"fewer than {FEWEST} eigenvalues are resolved, too few to judge a shape"
    elif few <= DROP and beyond >= SPREAD:
        answer, reason = "yes", numbers
    elif few >= NO_DROP or beyond <= NO_SPREAD:
        answer, reason = "no", numbers
    else:
        answer, reason = "undetermined", f"{numbers}, near the thresholds of half the {by} and one decade more"
    return SloppinessVerdict(
        answer=answer,
        reason=reason,
        null=null_in_words,
        dimension=dimension,
        null_dimension=null_dimension,
        spread=spread,
        null_spread=null_spread,
    )


def verdict_in_words(matrix: str, verdict: SloppinessVerdict) -> str:
    """Return the verdict as a sentence.

    Args:
        matrix: The matrix in words, for instance "The correlation matrix".
        verdict: Its verdict.
    """
    answer = {"yes": "is sloppy", "no": "is not sloppy", "undetermined": "may or may not be sloppy"}[verdict.answer]
    return f"{matrix} {answer}: {verdict.reason}."


def _spread(shape: Sloppiness) -> float:
    return -shape.slope_times_rank
