"""Hessian, Gauss-Newton, Fisher and Jacobian, as operators or by Gram matrices of per-sample gradients. Torch only."""

from lightning_sloppy.curvature.central_differences import CentralDifferences
from lightning_sloppy.curvature.cotangents import Fisher
from lightning_sloppy.curvature.diagonal import adam_second_moment, fisher_diagonal
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator, mean_gradient
from lightning_sloppy.curvature.kfac import kronecker_factors
from lightning_sloppy.curvature.parameters import ParameterLayout

__all__ = [
    "CentralDifferences",
    "Fisher",
    "GaussNewtonOperator",
    "HessianOperator",
    "ParameterLayout",
    "adam_second_moment",
    "fisher_diagonal",
    "kronecker_factors",
    "mean_gradient",
]
