"""What drawn networks say of the Gibbs risk on the training examples: upper limits that pay for the drawing."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sloppy.bounds.concentration import mean_upper
from lightning_sloppy.bounds.inequalities import maurer_seeger_bound
from lightning_sloppy.errors import ConfigurationError


def gibbs_risk_upper(mean: float, *, draws: int, delta: float) -> float:
    """Upper limit ``kl_inverse(mean, ln(1/delta) / m)`` of ``E_Q`` of the empirical risk after m independent draws.

    With probability at least 1 - delta over the draws. Each draw is a network from Q judged on all n examples, or on a
    fresh uniform batch of them of one size: then m counts the pairs of network and batch, and the limit is still one of
    the risk on all n. Assumes that Q was fixed before the draws: not the pilot draws by which it was chosen. Source:
    Hoeffding, JASA 1963, theorem 1, for means of independent variables in [0, 1].

    Args:
        mean: Mean of the m risks.
        draws: m.
        delta: Failure probability.

    Returns:
        The upper limit.

    Raises:
        ConfigurationError: For no draw, or numbers out of range.

    >>> import math
    >>> math.isclose(gibbs_risk_upper(0.0, draws=100, delta=0.01), 1 - 0.01 ** (1 / 100), rel_tol=1e-12)
    True
    """
    return mean_upper(mean, draws, delta)


def block_risk_upper(errors: Sequence[float], sizes: Sequence[int], *, delta: float) -> float:
    """Upper limit of ``E_Q`` of the empirical risk from one pass: a fresh network from Q for each block of examples.

    The blocks are a partition of the n examples, and ``sum errors / n`` counts as the mean of ``m = n / max(sizes)``
    draws: as many as there are blocks when they are equal. With probability at least 1 - delta over the independent
    draws; proof in ``docs/certificates.md``. Networks that share a perturbation (Flipout) are not independent.

    Args:
        errors: Loss of each block, summed over its examples.
        sizes: Examples of each block.
        delta: Failure probability.

    Returns:
        The upper limit.

    Raises:
        ConfigurationError: For no block, blocks that do not match, or numbers out of range.

    >>> import math
    >>> math.isclose(block_risk_upper([0, 0], [50, 50], delta=0.01), 0.9, rel_tol=1e-12)  # 1 - 0.01^(1/2)
    True
    """
    if not sizes or len(errors) != len(sizes) or min(sizes) < 1:
        raise ConfigurationError(
            f"{len(errors)} errors of {len(sizes)} blocks were given; give one for each, of at least one example each."
        )
    total = sum(sizes)
    return mean_upper(sum(errors) / total, total, delta, effective=total / max(sizes))


def monte_carlo_bound(
    mean: float, complexity: float, *, n: int, draws: int, delta_pac: float, delta_risk: float
) -> float:
    """Bound on the true Gibbs risk from m draws: ``kl_inverse(gibbs_risk_upper, c)``, for kl_inverse grows with q.

    With probability at least ``1 - delta_pac - delta_risk`` over the examples and the draws. Source: Dziugaite and Roy,
    UAI 2017, section 3.3, one-sided.

    Args:
        mean: Mean risk of the draws on the n examples.
        complexity: ``KL(Q || P)`` in nats.
        n: Distinct examples.
        draws: m; of :func:`block_risk_upper` ``n / max(sizes)``, rounded down.
        delta_pac: Failure probability of the PAC-Bayes event.
        delta_risk: Failure probability of the draws.

    Returns:
        Upper limit of the true Gibbs risk.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> exact = maurer_seeger_bound(0.03, 100.0, n=30_000, delta=0.04)
    >>> exact < monte_carlo_bound(0.03, 100.0, n=30_000, draws=1000, delta_pac=0.04, delta_risk=0.01)
    True
    """
    upper = gibbs_risk_upper(mean, draws=draws, delta=delta_risk)
    return maurer_seeger_bound(upper, complexity, n=n, delta=delta_pac)
