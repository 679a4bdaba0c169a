"""The Gauss-Newton part of a Hessian during a fit: exact on few samples, or estimated with probe vectors on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sloppy.analysis import Fisher, Quadrature, Solve, fisher_of, gauss_newton_of
from lightning_sloppy.curvature.jacobian import width_of
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, picked, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.eigensolver import DENSE_LIMIT
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.measures import brackets
from lightning_sloppy.measures.relative_dimension import THOUSANDTH
from lightning_sloppy.probing.probe import MOST_ROWS, Probe, small_probe
from lightning_sloppy.records import Estimate, Spectrum, Status

STOP_AT = 0.02
"""Quadrature stops at this width of the bracket of N_eff: a fifth of what makes a value unresolved."""


def exact_gauss_newton(probe: Probe, *, parameters: Patterns, most: int) -> Spectrum | None:
    """All eigenvalues from the Gram matrix of the first ``min(256, max(64, 1280 // outputs))`` probe samples.

    On 784-600-600-10 the 1,280 rows take 0.2 s, the quadrature on 1,024 samples 130 to 220 products (5 to 8 s). Up to
    256 parameters the products form the whole matrix of all samples anyway, so this is not needed.

    Args:
        probe: Probe of the measurement.
        parameters: Patterns of parameter names.
        most: Maximum number of samples.

    Returns:
        The spectrum. None if the matrix would have more than 2,560 rows, if there are at most 256 parameters, or if
        the loss of a sample has no Hessian with respect to its outputs (one that depends on other samples, too).
    """
    objective, layout = probe.choice.objective, ParameterLayout.of(probe.module, parameters)
    if layout.dim <= DENSE_LIMIT:
        return None
    width = width_of(objective, layout, picked(probe.batches[0], torch.arange(1)))
    few = small_probe(probe.batches, width, most)
    if sum(map(sample_count, few)) * width > MOST_ROWS:
        return None
    with suppress(ConfigurationError, UnsupportedError):
        found = fisher_of(
            objective,
            few,
            fisher=Fisher("exact"),
            solve=Solve(k=1),
            method="gram",
            parameters=parameters,
            ranks=probe.context.ranks,
            rng=probe.generator(),
        )
        return replace(found, matrix="gauss_newton")
    return None


def estimated_gauss_newton(
    objective: Objective,
    batches: list[Batch],
    *,
    vectors: Tensor,
    steps: int,
    z: float | None,
    parameters: Patterns,
    seed: int,
    on_product: Callable[[int], None],
) -> Spectrum:
    """Trace and density estimated with probe vectors.

    Args:
        objective: The loss, summed over the ranks.
        batches: This rank's part of the probe samples.
        vectors: Probe vectors, (vectors, p).
        steps: Maximum depth of the quadrature; 1 is enough for the trace. It stops earlier when the dimensions are
            known to 2 %, and the count to a tenth.
        z: Scale of the prior; None if it is unknown.
        parameters: Patterns of parameter names.
        seed: Seed of the instrument.
        on_product: Called after every product.
    """
    dim = vectors.shape[1]

    def enough(diagonal: Tensor, off: Tensor) -> bool:
        trace = dim * float(diagonal[0])  # of one probe vector of unit length
        scales = [THOUSANDTH * trace, 10 * THOUSANDTH * trace]
        if z is not None:
            scales += [z / 10, z, z * 10]
        return brackets.density_is_resolved(diagonal, off, tuple(scales), STOP_AT) and (
            z is None or brackets.count_is_resolved(diagonal, off, z, dim)
        )

    return gauss_newton_of(
        objective,
        batches,
        quadrature=Quadrature(vectors, steps, enough),
        parameters=parameters,
        rng=generator(seed),
        on_product=on_product,
    )


def unresolved(estimates: Mapping[str, Estimate], gauss_newton: Spectrum | None) -> list[str]:
    """A sentence for the values that are not shown for the same reason."""
    found = []
    for status in (Status.UNRESOLVED, Status.UNAVAILABLE):
        names = ", ".join(name for name, estimate in estimates.items() if estimate.status is status)
        reason = status.value
        if status is Status.UNAVAILABLE and gauss_newton is not None and gauss_newton.smallest < -gauss_newton.floor:
            reason = (
                "missing, because the Gauss-Newton part has negative eigenvalues, down to "
                f"{gauss_newton.smallest:.2g}. These values "
                "need a positive semidefinite matrix, which central differences do not give."
            )
        if names:
            found.append(f"{names}: {reason}")
    return found
