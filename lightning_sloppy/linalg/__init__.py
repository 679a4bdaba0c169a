"""Matrix-free linear algebra on symmetric operators. It is independent of networks."""

from lightning_sloppy.linalg.eigensolver import top_eigenpairs
from lightning_sloppy.linalg.lanczos import Lanczos
from lightning_sloppy.linalg.operator import DenseOperator, SymmetricOperator
from lightning_sloppy.linalg.quadrature import exact_density, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher, unit_gaussian

__all__ = [
    "DenseOperator",
    "Lanczos",
    "SymmetricOperator",
    "exact_density",
    "generator",
    "lanczos_density",
    "rademacher",
    "top_eigenpairs",
    "unit_gaussian",
]
