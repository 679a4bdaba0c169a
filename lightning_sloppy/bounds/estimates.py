"""The named numbers of a certificate, for curves."""

from __future__ import annotations

import math

from lightning_sloppy.bounds.pair_inequality import HOLD_OUT_FRACTION, PAC_BAYES_FRACTION, RISK_FRACTION
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.records import Estimate


def bound_estimates(certificate: Certificate) -> dict[str, Estimate]:
    """Parts of a bound, and the bound itself where it is valid."""
    found = {
        "gibbs_error": certificate.empirical_risk,
        "log_ratio": certificate.log_ratio,
        "kl_displacement": certificate.kl_displacement,
        "kl_covariance": certificate.kl_covariance,
        "epsilon": certificate.epsilon,
        "tau": certificate.tau,
        "mean_scale": certificate.mean_scale,
        "posterior_dimension": certificate.effective_dimension,
        "stiff_directions": float(certificate.stiff_directions),
    }
    if certificate.valid:
        found |= {
            "pac_bayes": certificate.value,
            "risk_upper": certificate.risk_upper,
            "evaluation": float(certificate.evaluation),
        }
    return {name: Estimate(value) for name, value in found.items()}


def final_estimates(pair: Certificate, single: Certificate) -> dict[str, Estimate]:
    """The bounds of two certificates of one posterior, and the parts of the first."""
    parts = bound_estimates(pair)
    shared = {name: parts[name] for name in ("gibbs_error", "log_ratio", "kl_displacement", "kl_covariance")}
    return {"pair": Estimate(pair.value), "single": Estimate(single.value), **shared}


def spent_delta(delta: float, pairs: int, held_out: int) -> float:
    """What a run has spent of delta after so many evaluations on pairs and so many hold-out bounds.

    >>> spent_delta(0.05, 0, 0), spent_delta(0.05, 10**5, 10**5) < 0.05
    (0.0, True)
    """
    series = [6 / math.pi**2 * math.fsum(1 / t**2 for t in range(1, count + 1)) for count in (pairs, held_out)]
    return delta * ((PAC_BAYES_FRACTION + RISK_FRACTION) * series[0] + HOLD_OUT_FRACTION * series[1])
