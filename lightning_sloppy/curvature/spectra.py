"""Spectra of the Hessian and the Gauss-Newton matrix of a module with its loss.

The functions must be called inside :func:`~lightning_sloppy.evaluation.preserve.preserved`, on prepared batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.curvature.assembly import (
    SpectrumBuilder,
    basis_memory,
    of_one_draw,
    steady,
    steady_mean,
    trace_of,
)
from lightning_sloppy.curvature.beside_outputs import beside_outputs, constants_of
from lightning_sloppy.curvature.central_differences import CentralDifferences
from lightning_sloppy.curvature.cut_graphs import refuse_cut_graphs
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.kept_graph import LayerBlock, Method, need_outputs
from lightning_sloppy.curvature.operators import Curvature, CurvatureOperator
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import Ranks
from lightning_sloppy.linalg.basis import BasisMemoryError, Storage
from lightning_sloppy.linalg.eigenpairs import Eigenpairs
from lightning_sloppy.linalg.eigensolver import DENSE_LIMIT, top_eigenpairs
from lightning_sloppy.linalg.lanczos import NonFiniteProductError
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.quadrature import Enough, Known, exact_density, joined, lanczos_density
from lightning_sloppy.linalg.which import Which
from lightning_sloppy.records import Density, Spectrum, Status


@dataclass(frozen=True)
class Solve:
    """How eigenpairs are computed: the arguments of :func:`~lightning_sloppy.analysis.hessian_spectrum`."""

    k: int
    which: Which = "magnitude"
    tol: float | None = None
    max_products: int | None = None
    verify_multiplicity: bool | None = None
    eigenvectors: bool = False
    basis_memory: int | None = None
    basis: Storage = "device"

    def pairs(self, operator: SymmetricOperator, memory: int, rng: torch.Generator, vectors: bool) -> Eigenpairs:
        """Compute the eigenpairs of an operator."""
        return top_eigenpairs(
            operator,
            self.k,
            which=self.which,
            rng=rng,
            tol=self.tol,
            max_products=self.max_products,
            verify_multiplicity=self.verify_multiplicity,
            eigenvectors=vectors,
            basis_memory=memory,
            basis=self.basis,
        )


MOST_PROBES = 64
"""Largest number of probe vectors for ``probes="auto"``. The error is then a quarter of that of the first four."""


@dataclass(frozen=True)
class Quadrature:
    """Parameters of the stochastic Lanczos quadrature.

    Attributes:
        vectors: Rademacher probe vectors, (count, p).
        steps: Lanczos steps.
        enough: Function that is called every few steps and returns whether the quadrature of a vector is good enough.
        more: Function that returns a number of probe vectors, always starting with the same ones; None to add none.
        rel_error: Standard error of the trace, relative to the trace, at which no more probe vectors are added.
    """

    vectors: Tensor
    steps: int
    enough: Enough | None = None
    more: Callable[[int], Tensor] | None = None
    rel_error: float = 0.05


def hessian_of(
    objective: Objective,
    batches: list[Batch],
    *,
    solve: Solve,
    rng: torch.Generator,
    quadrature: Quadrature | None = None,
    method: Method = "auto",
    parameters: Patterns = None,
    by_layer: bool = False,
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Compute ``min(k, p)`` eigenpairs of the Hessian, and its density if probe vectors are given.

    The arguments are those of :func:`~lightning_sloppy.analysis.hessian_spectrum`. If the whole matrix is formed, the
    density is exact and needs no probe vectors.
    """
    layout = ParameterLayout.of(objective.module, parameters)
    return spectrum_of(
        Curvature("hessian", objective, layout, batches),
        solve=solve,
        rng=rng,
        quadrature=quadrature,
        method=method,
        by_layer=by_layer,
        on_product=on_product,
    )


def spectrum_of(
    curvature: Curvature,
    *,
    solve: Solve,
    rng: torch.Generator,
    quadrature: Quadrature | None = None,
    method: Method = "auto",
    by_layer: bool = False,
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Compute eigenpairs of one of the matrices by products; see :func:`hessian_of`."""
    layout = curvature.layout
    refuse_cut_graphs(curvature.objective, layout, curvature.batches)
    objective, loss, unsteady = steady_mean(curvature.objective, layout, curvature.batches)
    curvature = replace(curvature, objective=objective)
    builder = SpectrumBuilder(curvature.matrix, objective, curvature.batches)
    memory, ranks = basis_memory(curvature.objective, solve.basis_memory), curvature.objective.ranks
    positive = curvature.matrix != "hessian"

    def use(operator: CurvatureOperator) -> Spectrum:
        operator.on_product = on_product
        found = solve.pairs(operator, memory, rng, solve.eigenvectors or quadrature is not None)
        if isinstance(operator, CentralDifferences):
            operator.measure_rounding(rng)
            found = _honest(found, operator.rounding)
        density = None
        if found.spectrum is not None and len(found.values) < operator.dim:
            density = exact_density(found.spectrum, positive_semidefinite=positive)
        elif found.spectrum is None and quadrature is not None:
            density = _density(operator, quadrature, memory, rng, ranks, positive=positive, known=_known(found))
        if not solve.eigenvectors:
            found = replace(found, vectors=None)
        spectrum = builder.pairs(operator, found, density=density, method=operator.method)
        # One step gives the trace, but no information on the shape.
        if found.spectrum is None and quadrature is not None and quadrature.steps == 1:
            spectrum = replace(spectrum, density=None)
        layers = _blocks(builder, operator, layout, solve, memory, rng) if by_layer else {}
        detail = {**spectrum.detail, "loss": loss, "unused": ", ".join(operator.unused)}
        if curvature.matrix == "hessian":
            detail["constants"] = constants_of(curvature.objective)
        return replace(spectrum, layers=layers, detail={name: value for name, value in detail.items() if value != ""})

    try:
        spectrum, sentence = curvature.measured(use, method)
    except NonFiniteProductError:
        return builder.nothing(layout.dim, Status.NON_FINITE)
    except BasisMemoryError as error:
        return builder.nothing(layout.dim, Status.OUT_OF_MEMORY, fits=error.fits, memory=str(error))
    spectrum = of_one_draw(spectrum, unsteady)
    return replace(spectrum, detail={**spectrum.detail, "fallback": sentence}) if sentence else spectrum


def _honest(found: Eigenpairs, rounding: float) -> Eigenpairs:
    """Add the error of the products, a fraction of the largest magnitude, to the residuals."""
    size = rounding * float(found.values.abs().max())
    residuals = torch.hypot(found.residuals, torch.full_like(found.residuals, size))
    converged = residuals <= found.tolerance
    return replace(
        found,
        residuals=residuals,
        converged=converged,
        largest=(found.largest[0], math.hypot(found.largest[1], size)),
        smallest=(found.smallest[0], math.hypot(found.smallest[1], size)),
        status=Status.CONVERGED if bool(converged.all()) else Status.NOT_CONVERGED,
    )


def gauss_newton_of(
    objective: Objective,
    batches: list[Batch],
    *,
    quadrature: Quadrature,
    rng: torch.Generator,
    method: Method = "auto",
    parameters: Patterns = None,
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Compute the density of the Gauss-Newton matrix by quadrature; exact if the matrix is small enough to form.

    ``detail["beside_outputs"]`` names the terms of the loss that bypass the outputs and are left out.
    """
    layout = ParameterLayout.of(objective.module, parameters)
    need_outputs(objective)
    with double_backward(objective.module):
        left_out = beside_outputs(objective, layout, batches).left_out(own_too=True)
        objective, unsteady = steady(objective, batches)
    curvature = Curvature("gauss_newton", objective, layout, batches)
    builder = SpectrumBuilder("gauss_newton", objective, batches)
    memory = basis_memory(objective, None)

    def use(operator: CurvatureOperator) -> Spectrum:
        operator.on_product = on_product
        if layout.dim <= DENSE_LIMIT:
            return builder.pairs(operator, top_eigenpairs(operator, layout.dim, rng=rng), method=operator.method)
        density = _density(operator, quadrature, memory, rng, objective.ranks, positive=True)
        largest, smallest = float(density.nodes.max()), float(density.nodes.min())
        floor = operator.rounding * max(largest, -smallest)
        if smallest < -floor:
            # The loss is not convex in the outputs, so brackets for positive semidefinite matrices do not hold.
            density = replace(density, positive_semidefinite=False)
        return replace(
            builder.nothing(layout.dim, Status.CONVERGED),
            largest=largest,
            smallest=smallest,
            density=density,
            trace=trace_of(None, density),
            floor=floor,
            cost=builder.cost(operator, operator.method),
        )

    try:
        found = curvature.measured(use, method)[0]
    except NonFiniteProductError:
        return builder.nothing(layout.dim, Status.NON_FINITE)
    except BasisMemoryError as error:
        return builder.nothing(layout.dim, Status.OUT_OF_MEMORY, fits=error.fits, memory=str(error))
    found = of_one_draw(found, unsteady)
    return replace(found, detail={**found.detail, "beside_outputs": left_out}) if left_out else found


def _known(found: Eigenpairs) -> Known | None:
    """The converged pairs, which the quadrature counts exactly."""
    if found.vectors is None or not bool(found.converged.any()):
        return None
    keep = found.converged
    return Known(found.values[keep], found.vectors[:, keep.to(found.vectors.device)], found.residuals[keep])


def _density(
    operator: CurvatureOperator,
    quadrature: Quadrature,
    memory: int,
    rng: torch.Generator,
    ranks: Ranks,
    *,
    positive: bool,
    known: Known | None = None,
) -> Density:
    """Quadrature in the complement of the known pairs, with more probe vectors until the error is small enough.

    All vectors advance together if this saves building graphs and the bases fit; else one after the other.
    """
    one = quadrature.steps * operator.dim * operator.dtype.itemsize
    if one > memory:
        raise BasisMemoryError(needed=one, available=memory, fits=0)
    # All ranks must decide the same, although those with more memory keep their graphs.
    recomputed = bool(ranks.least(operator.method.startswith("recomputed")))

    def seen(vectors: Tensor) -> Density:
        return lanczos_density(
            operator,
            vectors,
            steps=quadrature.steps,
            rng=rng,
            positive_semidefinite=positive,
            enough=quadrature.enough,
            together=recomputed and one * len(vectors) <= memory,
            known=known,
        )

    density, count = seen(quadrature.vectors), len(quadrature.vectors)
    while quadrature.more is not None and count < MOST_PROBES:
        trace = trace_of(None, density)
        assert trace is not None
        if trace.standard_error <= quadrature.rel_error * abs(trace.value):
            break
        density = joined(density, seen(quadrature.more(2 * count)[count:]))
        count *= 2
    return density


def _blocks(
    builder: SpectrumBuilder,
    operator: CurvatureOperator,
    layout: ParameterLayout,
    solve: Solve,
    memory: int,
    rng: torch.Generator,
) -> dict[str, Spectrum]:
    """One spectrum per diagonal block of a layer, on the graphs of the whole matrix."""
    found = {}
    for name, where in layout.layers().items():
        block = LayerBlock(operator, where)
        if block.dim > 0:
            found[name] = builder.pairs(
                block, solve.pairs(block, memory, rng, solve.eigenvectors), method=operator.method
            )
    return found
