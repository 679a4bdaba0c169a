"""Quantities of the PAC-Bayes bound during training (with the hold-out bound), and of the final certificate."""

from __future__ import annotations

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.quantities import Quantity
from lightning_sloppy.records import Estimate

QUANTITIES = (
    Quantity(
        "pac_bayes",
        "PAC-Bayes bound on the true error of the antithetic pair of networks drawn around the model, not of the model "
        "itself. It is informative below the error of guessing. The summary explains gaps in the curve.",
        chart="Bounds and errors",
        headline=True,
        upper_bound=True,
    ),
    Quantity(
        "hold_out",
        "Bound on the true error of the model itself, computed from held-out samples. It is usually lower than the "
        "PAC-Bayes bound. If it is far lower, use it.",
        chart="Bounds and errors",
        headline=True,
        upper_bound=True,
    ),
    Quantity(
        "guess_error",
        "Error rate of always predicting the most frequent class, on up to `risk_samples` training samples. A bound "
        "above it is of no use.",
        chart="Bounds and errors",
    ),
    Quantity(
        "gibbs_error",
        "Error rate of the drawn pair on a new subsample of the training data. If it is far above the training error, "
        "the posterior is too wide for this minimum.",
        chart="Bounds and errors",
    ),
    Quantity(
        "risk_upper",
        "Upper limit of the error rate of the pair on all training samples. If it is far above `gibbs_error`, increase "
        "`risk_samples`.",
        expert=True,
        upper_bound=True,
    ),
    Quantity(
        "log_ratio",
        "Complexity term of the bound: ln dQ/dP of the drawn weights with respect to the mixture prior, mean of the "
        "pair. The bound divides it by n; it must be below n for a bound below 1.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "kl_displacement",
        "Contribution of the distance from the initial weights to the complexity, epsilon/2 ||mu - w0||^2. It is "
        "usually the largest part. Weight decay towards the initial weights reduces it.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "kl_covariance",
        "Remaining part of the KL divergence: the contribution of the posterior's covariance matrix, which is "
        "narrower than the prior in directions of large curvature.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "epsilon",
        "Prior precision from the grid that fits the posterior best. If it is the first or last value of the grid, "
        "widen the grid.",
        expert=True,
    ),
    Quantity(
        "tau",
        "Weight of the curvature in the posterior precision tau lambda + epsilon. Zero means that the curvature did "
        "not improve this bound.",
        expert=True,
    ),
    Quantity(
        "mean_scale",
        "The posterior mean is w0 + mean_scale (w - w0). Below 1, weights closer to the initial ones give a better "
        "bound.",
        expert=True,
    ),
    Quantity(
        "posterior_dimension",
        "N_eff = sum tau lambda / (tau lambda + epsilon): effective number of directions that the posterior "
        "determines. If it is far above `stiff_directions`, many directions of small curvature contribute.",
        expert=True,
    ),
    Quantity(
        "stiff_directions",
        "p(n, epsilon): number of computed eigenpairs with tau lambda >= epsilon. If it equals k, more eigenpairs "
        "would give a better posterior.",
        expert=True,
    ),
    Quantity(
        "evaluation",
        "Number t of this evaluation. It uses the fraction 6 / (pi^2 t^2) of the failure probability.",
        expert=True,
    ),
    Quantity(
        "delta_spent",
        "Failure probability used so far by all bounds of this run. It never exceeds `delta`.",
        expert=True,
    ),
    Quantity(
        "hold_out_error",
        "Error rate of the model on the held-out samples.",
        chart="Bounds and errors",
    ),
    Quantity(
        "hold_out_samples",
        "Number of held-out samples from which the hold-out bound was computed. More give a smaller bound.",
        unit="samples",
        expert=True,
    ),
)

FINAL_QUANTITIES = (
    Quantity(
        "pair",
        "Final bound on the true error of a classifier that picks one of the two drawn networks at random, after the "
        "posterior was optimised. The networks and the certificate are saved in the folder of the run.",
        chart="Final bounds and error",
        headline=True,
        upper_bound=True,
    ),
    Quantity(
        "single",
        "The same for the first of the two networks alone, which can be deployed.",
        chart="Final bounds and error",
        headline=True,
        upper_bound=True,
    ),
    Quantity(
        "gibbs_error",
        "Error rate of the drawn pair on all samples that the certificate uses.",
        chart="Final bounds and error",
    ),
    Quantity(
        "log_ratio",
        "Complexity term of the bound: ln dQ/dP of the drawn weights with respect to the mixture prior, mean of the "
        "pair. The bound divides it by n.",
        unit="nats",
    ),
    Quantity(
        "kl_displacement",
        "Contribution of the distance from the prior's mean to the complexity, epsilon/2 ||mu - w0||^2.",
        unit="nats",
    ),
    Quantity(
        "kl_covariance",
        "Remaining part of the KL divergence: the contribution of the posterior's covariance matrix.",
        unit="nats",
    ),
)


def bound_estimates(certificate: Certificate) -> dict[str, Estimate]:
    """Parts of a bound, and the bound itself if it is valid."""
    found = {
        "guess_error": certificate.guess_error,
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
