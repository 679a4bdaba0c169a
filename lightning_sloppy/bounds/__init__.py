"""What can be guaranteed: PAC-Bayes bounds on drawn networks, and hold-out bounds. No Lightning here.

The network is known only by ``risk(flat_weights, indices)``, the number of its mistakes.
"""

from lightning_sloppy.bounds.coordinates import Coordinates, curvature_scales
from lightning_sloppy.bounds.drawing import Evidence
from lightning_sloppy.bounds.factored import diagonal_posterior, kronecker_posterior
from lightning_sloppy.bounds.families import DiagonalGaussian, JoinedGaussian, KroneckerGaussian, LowRankGaussian
from lightning_sloppy.bounds.gaussian import Gaussian, draw_pair, kl_parts, log_density_ratio
from lightning_sloppy.bounds.gibbs import block_risk_upper, gibbs_risk_upper, monte_carlo_bound
from lightning_sloppy.bounds.hold_out import chernoff_bound, hold_out_bound, hold_out_certificate
from lightning_sloppy.bounds.inequalities import (
    CATONI_GRID,
    catoni_bound,
    closed_form_bound,
    lambda_bound,
    maurer_seeger_bound,
    mcallester_bound,
    quadratic_bound,
    split_kl_bound,
)
from lightning_sloppy.bounds.initial_posterior import stiff_start
from lightning_sloppy.bounds.inversion import kl, kl_inverse, kl_inverse_lower
from lightning_sloppy.bounds.learning import Learnt, learn_posterior
from lightning_sloppy.bounds.learning_plan import LearningPlan
from lightning_sloppy.bounds.mixture import PRIOR_GRID, mixture_log_ratio
from lightning_sloppy.bounds.pair_certificate import certify
from lightning_sloppy.bounds.pair_inequality import pair_bound
from lightning_sloppy.bounds.posterior import low_rank_posterior, posterior_family
from lightning_sloppy.bounds.posterior_certificate import FinalCertificates, certify_posterior
from lightning_sloppy.bounds.prequential import PREQUENTIAL_GRID, prequential_bound
from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.bounds.scaled_gaussian import ScaledGaussian, isotropic, scaled

__all__ = [
    "CATONI_GRID",
    "PREQUENTIAL_GRID",
    "PRIOR_GRID",
    "Coordinates",
    "DiagonalGaussian",
    "Evidence",
    "FinalCertificates",
    "Gaussian",
    "JoinedGaussian",
    "KroneckerGaussian",
    "LearningPlan",
    "Learnt",
    "LowRankGaussian",
    "ScaledGaussian",
    "block_risk_upper",
    "catoni_bound",
    "certify",
    "certify_posterior",
    "chernoff_bound",
    "closed_form_bound",
    "curvature_scales",
    "diagonal_posterior",
    "draw_pair",
    "gibbs_risk_upper",
    "hold_out_bound",
    "hold_out_certificate",
    "isotropic",
    "kl",
    "kl_inverse",
    "kl_inverse_lower",
    "kl_parts",
    "kronecker_posterior",
    "lambda_bound",
    "learn_posterior",
    "log_density_ratio",
    "log_xi",
    "low_rank_posterior",
    "maurer_seeger_bound",
    "mcallester_bound",
    "mixture_log_ratio",
    "monte_carlo_bound",
    "pair_bound",
    "posterior_family",
    "prequential_bound",
    "quadratic_bound",
    "scaled",
    "split_kl_bound",
    "stiff_start",
]
