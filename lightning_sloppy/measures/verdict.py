"""Is a spectrum sloppy? It is compared with the spectrum of a null: data of the same size without structure.

No source gives a threshold (Waterfall et al. 2006 speak of eigenvalues spread evenly over many decades; Yang, Mao and
Chaudhari 2022 of a sharp drop before them), and a number of decades alone says nothing: 60 independent Gaussian
features span 4.3 decades in 60 samples and 0.2 in 6,000. The rule here is a convention of this package.
"""

from __future__ import annotations

import math
from typing import Literal

from lightning_sloppy.measures.relative_dimension import relative_dimension
from lightning_sloppy.measures.sloppiness import Sloppiness, participation_ratio, sloppiness
from lightning_sloppy.records import SloppinessVerdict, Spectrum

FEWEST = 10
"""Resolved eigenvalues below which a drop and an even spread cannot be told apart."""

DROP, NO_DROP = 1 / 2, 2 / 3
"""Dimension over that of the null: up to the first there is a drop, from the second on there is none."""

SPREAD, NO_SPREAD = 1.0, 0.5
"""Decades of the fitted line beyond those of the null: from the first on there is a spread, up to the second none."""


def sloppiness_verdict(
    spectrum: Spectrum,
    null: Spectrum,
    null_in_words: str,
    *,
    by: Literal["participation ratio", "effective dimension"] = "participation ratio",
    dimensions: tuple[float, float] | None = None,
) -> SloppinessVerdict:
    """Judge a spectrum beside that of a null.

    Sloppy is a spectrum with a *drop* (its dimension is at most half of the null's) and a *spread* (behind the knee the
    fitted line crosses at least one decade more than that of the null, counted over all resolved eigenvalues). It is
    not sloppy where either is clearly absent: a dimension of two thirds of the null's and more, or less than half a
    decade beyond the null. Between these borders, and with fewer than ten resolved eigenvalues, the answer is
    "undetermined". A few strong directions above flat noise have a drop and no spread.

    Args:
        spectrum: All eigenvalues known.
        null: Of a matrix of the same size and number of samples.
        null_in_words: What the null is, for instance "the same columns, each shuffled".
        by: The dimension. "participation ratio" for inputs: with few features the effective dimension counts nearly
            all. "effective dimension" for networks, where the direction of the mean rules the participation ratio.
        dimensions: Of spectrum and null, where the caller knows them better: a floor that hides small eigenvalues from
            the shape takes them from a participation ratio, too.

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
        f"its {by} is {dimension:.3g} ({null_dimension:.3g} for {null_in_words}), and behind the first drop its "
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
        answer, reason = "undetermined", f"{numbers}, near the borders of half the {by} and one decade more"
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
    """The verdict as a sentence.

    Args:
        matrix: What was judged, for instance "The correlation matrix".
        verdict: Of it.
    """
    answer = {"yes": "is sloppy", "no": "is not sloppy", "undetermined": "may or may not be sloppy"}[verdict.answer]
    return f"{matrix} {answer}: {verdict.reason}."


def _spread(shape: Sloppiness) -> float:
    return -shape.slope_times_rank
