"""What can be guaranteed: PAC-Bayes bounds on drawn networks, and hold-out bounds. No Lightning here.

The network is known only by ``risk(flat_weights, indices)``, the number of its mistakes.
"""

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
from lightning_sloppy.bounds.inversion import kl, kl_inverse, kl_inverse_lower
from lightning_sloppy.bounds.pair_inequality import pair_bound
from lightning_sloppy.bounds.prequential import PREQUENTIAL_GRID, prequential_bound
from lightning_sloppy.bounds.relative_entropy import log_xi

__all__ = [
    "CATONI_GRID",
    "PREQUENTIAL_GRID",
    "block_risk_upper",
    "catoni_bound",
    "chernoff_bound",
    "closed_form_bound",
    "gibbs_risk_upper",
    "hold_out_bound",
    "hold_out_certificate",
    "kl",
    "kl_inverse",
    "kl_inverse_lower",
    "lambda_bound",
    "log_xi",
    "maurer_seeger_bound",
    "mcallester_bound",
    "monte_carlo_bound",
    "pair_bound",
    "prequential_bound",
    "quadratic_bound",
    "split_kl_bound",
]
