"""The binary relative entropy, its inverses, and the constant xi(n): what every bound here is made of.

Scalars only, in double precision, whatever the precision of the training: in float32 the inverse loses
its digits for small budgets and saturates for large ones.
"""

from __future__ import annotations

import math

from scipy.special import gammaincc, gammaln

from lightning_sloppy.errors import ConfigurationError

_SERIES_BELOW = 1e-2
"""Below it ``t - log1p(t)`` cancels, and its series is exact to the last bit."""
_NEWTON_STEPS = 8
"""Five steps reach 1e-16 from the starting points used here, over all q and c."""
_ULPS_UP = 4
"""The rounding errors of the last Newton step, with a margin; an upper limit is rounded upwards."""
_ASYMPTOTIC_ABOVE = 1_000_000


def binary_kl(q: float, p: float) -> float:
    """Relative entropy ``kl(q || p) = q ln(q/p) + (1-q) ln((1-q)/(1-p))`` of two coins, in nats.

    Written as ``q phi((p-q)/q) + (1-q) phi((q-p)/(1-q))`` with ``phi(t) = t - ln(1+t)``: both terms are
    non-negative, so that nothing cancels when p is close to q.

    Args:
        q: Probability of the first coin, in [0, 1].
        p: Probability of the second coin, in [0, 1].

    Returns:
        The relative entropy; infinite where p excludes what q allows.

    Raises:
        ConfigurationError: If q or p is no probability.

    >>> round(binary_kl(0.0, 0.5), 6)  # ln 2
    0.693147
    >>> binary_kl(0.25, 0.25)
    0.0
    """
    q, p = probability(q, "q"), probability(p, "p")
    if p == q:
        return 0.0
    if p in (0.0, 1.0):
        return math.inf
    if q == 0.0:
        return -math.log1p(-p)
    if q == 1.0:
        return -math.log(p)
    return q * _phi(p, q) + (1.0 - q) * _phi(1.0 - p, 1.0 - q)


def scalar_kl_inverse(q: float, c: float) -> float:
    """Largest p in [q, 1] with ``kl(q || p) <= c``: the upper limit that a budget of c nats allows.

    Newton's method on the convex increasing ``p -> kl(q || p) - c``, started at the least of several closed
    upper limits, so that every iterate lies above the root; at the end the result is rounded upwards. It is
    never below the root (Seeger 2002; Langford 2005 for its use in bounds).

    Args:
        q: Observed rate, in [0, 1].
        c: Budget in nats for each sample. Infinite or NaN gives 1, a vacuous limit; a negative one counts as 0.

    Returns:
        The upper limit, in [q, 1].

    Raises:
        ConfigurationError: If q is no probability.

    >>> round(scalar_kl_inverse(0.1, 0.5), 12)
    0.574817291013
    >>> scalar_kl_inverse(0.3, 0.0), scalar_kl_inverse(1.0, 0.1)
    (0.3, 1.0)
    """
    q = probability(q, "q")
    if q == 1.0 or not c < math.inf:
        return 1.0
    if c <= 0.0:
        return q
    if q == 0.0:
        return _round_up(-math.expm1(-c))
    # The largest double below 1: a root above it is rounded up to 1 at the end.
    p = min(*closed_limits(q, c), 1.0 - 2.0**-53)
    for _ in range(_NEWTON_STEPS):
        excess = binary_kl(q, p) - c
        if not excess > 0.0:
            break
        lower = p - excess * p * (1.0 - p) / (p - q)
        if not q < lower < p:
            break
        p = lower
    return _round_up(p)


def scalar_kl_inverse_lower(q: float, c: float) -> float:
    """Smallest p in [0, q] with ``kl(q || p) <= c``, by the symmetry ``1 - kl_inverse(1 - q, c)``.

    Never above the root; absolute accuracy 1e-15.

    Args:
        q: Observed rate, in [0, 1].
        c: Budget in nats for each sample.

    Returns:
        The lower limit, in [0, q].

    Raises:
        ConfigurationError: If q is no probability.

    >>> round(scalar_kl_inverse_lower(0.5, 0.5), 12)
    0.10246995119
    """
    q = probability(q, "q")
    return min(q, 1.0 - scalar_kl_inverse(1.0 - q, c))


def log_xi(n: int) -> float:
    """Natural logarithm of ``xi(n) = sum_k C(n,k) (k/n)^k (1-k/n)^(n-k)``.

    It is the largest expectation of ``exp(n kl(empirical || true))`` over losses in [0, 1] (Maurer 2004), and
    lies between sqrt(n) and 2 sqrt(n), the form usually printed. In closed form
    ``xi(n) = exp(ln Gamma(n+1) + n - n ln n) Q(n+1, n)`` with the regularised upper incomplete gamma function
    Q; above a million the asymptotic series ``sqrt(pi n/2) + 2/3 + sqrt(pi/(2n))/12 - 4/(135 n)``.

    Args:
        n: Number of samples, at least 1.

    Returns:
        ln xi(n), in nats.

    Raises:
        ConfigurationError: If n is below 1.

    >>> round(math.exp(log_xi(1)), 12)  # the two terms k = 0 and k = 1
    2.0
    """
    if n < 1:
        raise ConfigurationError(f"xi(n) was asked for n = {n}; a bound needs at least one sample.")
    if n > _ASYMPTOTIC_ABOVE:
        return math.log(math.sqrt(math.pi * n / 2) + 2 / 3 + math.sqrt(math.pi / (2 * n)) / 12 - 4 / (135 * n))
    return float(gammaln(n + 1.0)) + n - n * math.log(n) + math.log(float(gammaincc(n + 1.0, float(n))))


def closed_limits(q: float, c: float) -> tuple[float, float, float, float]:
    """Four closed forms above the root, for q and c inside (0, 1) and (0, inf).

    Pinsker's, two refinements of it, and one by the entropy of q; see
    :func:`~lightning_sloppy.bounds.inequalities.closed_form_bound`.

    >>> [round(limit, 10) for limit in closed_limits(0.01, 0.05)]
    [0.168113883, 0.0916227766, 0.1181536444, 0.1015392494]
    """
    entropy = -q * math.log(q) - (1.0 - q) * math.log1p(-q)
    half = c * (1.0 - q) / 2.0
    return (
        q + math.sqrt(c / 2.0),
        q + math.sqrt(2.0 * q * c) + c,
        (math.sqrt(q + half) + math.sqrt(half)) ** 2,
        -math.expm1(-(c + entropy) / (1.0 - q)),
    )


def _round_up(p: float) -> float:
    for _ in range(_ULPS_UP):
        p = math.nextafter(p, 2.0)
    return min(p, 1.0)


def _phi(numerator: float, base: float) -> float:
    """``t - ln(1+t)`` at ``1+t = numerator / base > 0``, without loss near t = 0 and near t = -1."""
    t = (numerator - base) / base
    if abs(t) >= 0.5:
        return t - math.log(numerator / base)
    if abs(t) >= _SERIES_BELOW:
        return t - math.log1p(t)
    total = 0.0
    for power in range(9, 1, -1):
        total = 1.0 / power - t * total
    return t * t * total


def probability(value: float, name: str) -> float:
    """The value, clipped into [0, 1] when a rounding error took it out.

    Raises:
        ConfigurationError: For a value that is further out.
    """
    if not -1e-12 <= value <= 1.0 + 1e-12:
        raise ConfigurationError(
            f"{name} must be a probability in [0, 1], found {value}; pass errors divided by samples."
        )
    return min(max(float(value), 0.0), 1.0)
