"""From a Spectrum to Estimates: pure functions.

``effective_dimension``, ``relative_dimension`` and ``sloppiness`` are the names of modules here; import the functions
from :mod:`lightning_sloppy`.
"""

from lightning_sloppy.measures.dimensions import degrees_of_freedom, stable_rank
from lightning_sloppy.measures.effective_dimension import converged_above, curvature_scale, eigenvalue_count
from lightning_sloppy.measures.functionals import frobenius_norm
from lightning_sloppy.measures.relative_dimension import directions_holding
from lightning_sloppy.measures.sloppiness import Sloppiness, effective_rank, entropy_rank, participation_ratio
from lightning_sloppy.measures.stopping import Condition, Curves, Rule, judge
from lightning_sloppy.measures.subspace import fraction_inside, overlap, random_fraction, sharpness
from lightning_sloppy.measures.verdict import sloppiness_verdict

__all__ = [
    "Condition",
    "Curves",
    "Rule",
    "Sloppiness",
    "converged_above",
    "curvature_scale",
    "degrees_of_freedom",
    "directions_holding",
    "effective_rank",
    "eigenvalue_count",
    "entropy_rank",
    "fraction_inside",
    "frobenius_norm",
    "judge",
    "overlap",
    "participation_ratio",
    "random_fraction",
    "sharpness",
    "sloppiness_verdict",
    "stable_rank",
]
