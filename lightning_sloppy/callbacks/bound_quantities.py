"""What a bound on a curve shows (the bound, its parts, the hold-out bound beside it), and a final certificate."""

from __future__ import annotations

from lightning_sloppy.quantities import Quantity

QUANTITIES = (
    Quantity(
        "pac_bayes",
        "PAC-Bayes bound on the true error of the pair of networks drawn around the model, not of the model "
        "itself. Below the error of guessing it is informative; a gap in the curve has its reason in the "
        "summary.",
        chart="Bounds and errors",
        headline=True,
    ),
    Quantity(
        "hold_out",
        "Bound on the true error of the model itself from samples that training never saw. The honest "
        "baseline: if it is far lower, use it.",
        chart="Bounds and errors",
        headline=True,
    ),
    Quantity(
        "gibbs_error",
        "Error rate of the drawn pair on a fresh subsample of the training data. Far above the training "
        "error, the posterior is too wide for this minimum.",
        chart="Bounds and errors",
    ),
    Quantity(
        "risk_upper",
        "The Gibbs error after paying for the subsample. If it is far above `gibbs_error`, raise the number "
        "of samples of the bound.",
    ),
    Quantity(
        "log_ratio",
        "ln dQ/dP of the drawn weights to the mixture prior, in nats, mean of the pair: the complexity that "
        "the bound divides by n. It must stay below n for a bound below 1.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "kl_displacement",
        "epsilon/2 ||mu - w0||^2, nats: what moving away from the initial weights costs. Usually nearly all "
        "of the complexity: decay towards the initial weights lowers it.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "kl_covariance",
        "Rest of the KL divergence, nats: what being sure about stiff directions costs.",
        unit="nats",
        chart="Complexity in nats",
    ),
    Quantity(
        "epsilon",
        "Prior precision of the grid that fits the posterior best. If it is an end of the grid, widen the grid.",
    ),
    Quantity(
        "tau",
        "Weight of the curvature in the posterior precision tau lambda + epsilon. Zero means that curvature "
        "did not help this bound.",
    ),
    Quantity(
        "mean_scale",
        "The posterior mean is w0 + mean_scale (w - w0). Below 1, a shrunk model has the better bound.",
    ),
    Quantity(
        "posterior_dimension",
        "N_eff = sum tau lambda / (tau lambda + epsilon): how many directions the posterior pins down. Far "
        "above `stiff_directions`, the many flat directions count together.",
    ),
    Quantity(
        "stiff_directions",
        "p(n, epsilon): the eigenpairs at hand with tau lambda of at least epsilon. If it is k itself, more "
        "pairs would give a better posterior.",
    ),
    Quantity(
        "evaluation",
        "Number t of this evaluation; the failure probability is spent as 6 / (pi^2 t^2).",
    ),
    Quantity(
        "delta_spent",
        "Failure probability spent so far by all that this run calls a bound. It never exceeds `delta`.",
    ),
    Quantity(
        "hold_out_error",
        "Error rate of the model on the hold-out samples, before the bound is paid for.",
        chart="Bounds and errors",
    ),
)

FINAL_QUANTITIES = (
    Quantity(
        "pair",
        "Final bound on the true error of picking one of the two drawn networks at random, after the "
        "posterior was optimised; the networks and the certificate are files beside the run.",
        chart="Final bounds and error",
        headline=True,
    ),
    Quantity(
        "single",
        "The same for the first of the two networks: one that can be deployed.",
        chart="Final bounds and error",
        headline=True,
    ),
    Quantity(
        "gibbs_error",
        "Error rate of the drawn pair on all certifying examples.",
        chart="Final bounds and error",
    ),
    Quantity(
        "log_ratio",
        "ln dQ/dP of the drawn weights to the mixture prior, in nats, mean of the pair: divided by n.",
        unit="nats",
    ),
    Quantity(
        "kl_displacement",
        "epsilon/2 ||mu - w0||^2, nats: what the distance from the prior's mean costs.",
        unit="nats",
    ),
    Quantity(
        "kl_covariance",
        "Rest of the KL divergence, nats: what being sure about the weights costs.",
        unit="nats",
    ),
)
