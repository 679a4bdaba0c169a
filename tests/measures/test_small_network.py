"""A trained 64-16-16-10, small enough for dense matrices: where plain quadrature is wrong, ours must not be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import gauss, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.effective_dimension import curvature_scale, effective_dimension, eigenvalue_count
from lightning_sloppy.records import Density, Spectrum, Status

VECTORS = 4
DEEPEST = 160


@cache
def trained() -> tuple[dict[str, Tensor], float]:
    """Dense Hessian and Gauss-Newton matrix after three epochs, and the usual scale for n = 55,000."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=rng)
    targets = torch.randint(0, 10, (300,), generator=rng)
    inputs = (centres[targets] + 1.5 * torch.randn(300, 64, generator=rng)) * torch.linspace(2, 0.05, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    layout = ParameterLayout.of(module)
    z = curvature_scale(layout.dim / float(layout.vector(module).square().sum()), 55_000)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(3):
        for x, y in zip(inputs.split(32), targets.split(32), strict=True):
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
    objective, batch = Objective(module.double(), F.cross_entropy), [(inputs.double(), targets)]
    builds = {"hessian": HessianOperator, "gauss-newton": GaussNewtonOperator}
    return {name: build(objective, layout, batch).dense() for name, build in builds.items()}, z


@cache
def deep(name: str) -> tuple[Density, Tensor]:
    matrix = trained()[0][name]
    probes = rademacher(len(matrix), VECTORS, generator(1))
    density = lanczos_density(
        DenseOperator(matrix), probes, steps=DEEPEST, rng=generator(0), positive_semidefinite=name == "gauss-newton"
    )
    return density, torch.linalg.eigvalsh(matrix)


def seen(name: str, depth: int) -> tuple[Spectrum, Tensor]:
    """The first steps of a deep Lanczos process are a shallow one."""
    density, values = deep(name)
    assert all(len(diagonal) == DEEPEST for diagonal in density.diagonals)
    shallow = replace(
        density,
        diagonals=tuple(diagonal[:depth] for diagonal in density.diagonals),
        offdiagonals=tuple(offdiagonal[:depth] for offdiagonal in density.offdiagonals),
    )
    empty = torch.zeros(0, dtype=torch.float64)
    spectrum = Spectrum(
        eigenvalues=empty,
        residuals=empty,
        dim=len(values),
        num_samples=300,
        matrix=name,
        floor=0.0,
        status=Status.CONVERGED,
        largest=0.0,
        smallest=0.0,
        density=shallow,
        truncated=True,
    )
    return spectrum, values


def soft(values: Tensor, z: float) -> Tensor:
    return values.clamp_min(0) / (values.clamp_min(0) + z)


@pytest.mark.slow
def test_plain_quadrature_of_the_hessian_is_wrong_while_its_standard_error_looks_fine() -> None:
    z = trained()[1]
    spectrum, values = seen("hessian", 40)
    assert spectrum.density is not None
    rules = [gauss(*pair) for pair in zip(spectrum.density.diagonals, spectrum.density.offdiagonals, strict=True)]
    plain = len(values) * torch.stack([(weights * soft(nodes, z)).sum() for nodes, weights in rules])
    error = float(plain.std()) / VECTORS**0.5
    exact = float(soft(values, z).sum())
    assert error < 0.02 * exact
    assert abs(float(plain.mean()) - exact) > 10 * error


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 40, 80, 160])
@pytest.mark.parametrize("factor", [1.0, 10.0, 55.0])
@pytest.mark.parametrize("name", ["hessian", "gauss-newton"])
def test_estimates_are_unresolved_or_right(name: str, factor: float, depth: int) -> None:
    z = factor * trained()[1]
    spectrum, values = seen(name, depth)
    exact = {effective_dimension: float(soft(values, z).sum()), eigenvalue_count: float((values >= z).sum())}
    for function, truth in exact.items():
        estimate = function(spectrum, z)
        within = 3 * estimate.standard_error + estimate.truncation_error
        assert abs(estimate.value - truth) <= within
        if estimate.status is Status.UNRESOLVED:
            assert estimate.truncation_error > 0.1 * estimate.value
        else:
            assert within < 0.25 * truth


@pytest.mark.slow
def test_forty_steps_settle_the_gauss_newton_part_and_not_the_hessian() -> None:
    z = trained()[1]
    assert effective_dimension(seen("hessian", 40)[0], z).status is Status.UNRESOLVED
    estimate = effective_dimension(seen("gauss-newton", 40)[0], z)
    assert estimate.status is Status.CONVERGED
    assert estimate.truncation_error < 0.02 * estimate.value


def test_depth_resolves_the_hessian_at_a_larger_scale() -> None:
    z = 550 * trained()[1]
    statuses = [effective_dimension(seen("hessian", depth)[0], z).status for depth in (20, 160)]
    assert statuses == [Status.UNRESOLVED, Status.CONVERGED]
