"""Gaussians over weights: built from curvature, learnt for their bound, drawn and judged. No Lightning here.

The network is known only by ``risk(flat_weights, indices)``, the number of its mistakes, and for learning by
``surrogate(weights, indices)``, a loss.
"""

from lightning_sloppy.posteriors.coordinates import Coordinates, curvature_scales
from lightning_sloppy.posteriors.drawing import Evidence
from lightning_sloppy.posteriors.factored import diagonal_posterior, kronecker_posterior
from lightning_sloppy.posteriors.families import DiagonalGaussian, JoinedGaussian, KroneckerGaussian, LowRankGaussian
from lightning_sloppy.posteriors.gaussian import (
    PRIOR_GRID,
    Gaussian,
    draw_pair,
    kl_parts,
    log_density_ratio,
    mixture_log_ratio,
)
from lightning_sloppy.posteriors.initial_posterior import stiff_start
from lightning_sloppy.posteriors.learning import Learnt, learn_posterior
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.pair_certificate import certify
from lightning_sloppy.posteriors.posterior import low_rank_posterior, posterior_family
from lightning_sloppy.posteriors.posterior_certificate import FinalCertificates, certify_posterior
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian, isotropic, scaled

__all__ = [
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
    "certify",
    "certify_posterior",
    "curvature_scales",
    "diagonal_posterior",
    "draw_pair",
    "isotropic",
    "kl_parts",
    "kronecker_posterior",
    "learn_posterior",
    "log_density_ratio",
    "low_rank_posterior",
    "mixture_log_ratio",
    "posterior_family",
    "scaled",
    "stiff_start",
]
