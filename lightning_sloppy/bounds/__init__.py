"""What can be guaranteed: PAC-Bayes bounds on drawn networks, and hold-out bounds. No Lightning here.

The network is known only by ``risk(flat_weights, indices)``, the number of its mistakes.
"""

from lightning_sloppy.bounds.certify import certify
from lightning_sloppy.bounds.drawing import Evidence
from lightning_sloppy.bounds.hold_out import hold_out_bound, hold_out_certificate
from lightning_sloppy.bounds.kl import kl_inverse, kl_inverse_lower, log_xi
from lightning_sloppy.bounds.mixture import PRIOR_GRID

__all__ = [
    "PRIOR_GRID",
    "Evidence",
    "certify",
    "hold_out_bound",
    "hold_out_certificate",
    "kl_inverse",
    "kl_inverse_lower",
    "log_xi",
]
