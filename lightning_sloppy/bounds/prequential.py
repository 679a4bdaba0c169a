"""What the first epoch certifies for nothing: every batch is judged before it is learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lightning_sloppy.bounds.concentration import catoni_limit

PREQUENTIAL_GRID: Final[tuple[float, ...]] = tuple(0.05 * 2.0**power for power in range(10))
"""Ten values from 0.05 to 25.6, written down before any data: ln 10 nats for the choice among them."""


def prequential_bound(mean: float, *, examples: int, delta: float, grid: Sequence[float] = PREQUENTIAL_GRID) -> float:
    """Bound on the mean true risk of the networks visited so far, each judged on examples it has not yet seen.

    ``min_l (1 - exp(-l X - ln(J/delta) / N)) / (1 - exp(-l))`` for the mean loss X of N examples; with probability at
    least 1 - delta for all N at once. Assumes losses in [0, 1], that every example is a fresh draw when it is judged
    (so the first epoch only), and a grid fixed before. It certifies a network picked at random among those visited,
    weighted by the examples that judged it. Source: the supermartingale ``prod exp(-l X_i) / (1 - (1 - exp(-l)) r_i)``,
    Ville's inequality and convexity; proof in ``docs/certificates.md``.

    Args:
        mean: X.
        examples: N.
        delta: Failure probability.
        grid: Positive l.

    Returns:
        The upper limit, at most 1.

    Raises:
        ConfigurationError: For no example, an empty grid or numbers out of range.

    >>> import math
    >>> expected = (1 - 20 ** (-1 / 100)) / (1 - math.exp(-1))  # X = 0
    >>> math.isclose(prequential_bound(0.0, examples=100, delta=0.05, grid=[1.0]), expected, rel_tol=1e-12)
    True
    """
    return catoni_limit(mean, 0.0, n=examples, delta=delta, grid=grid)
