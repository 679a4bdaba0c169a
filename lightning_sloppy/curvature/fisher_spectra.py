"""Spectrum of the Fisher matrix of a module with its loss, by the Gram matrix or by products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_sloppy.curvature.assembly import SpectrumBuilder, descending, of_one_draw, steady
from lightning_sloppy.curvature.beside_outputs import (
    as_inputs,
    beside_outputs,
    constants_of,
    sample_losses,
    unused_by_outputs,
)
from lightning_sloppy.curvature.cotangents import Fisher, pulled_cotangents
from lightning_sloppy.curvature.cut_graphs import refuse_cut_graphs
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gram.check import Recording
from lightning_sloppy.curvature.gram.matrix import Gram, gram_of, pull_back_vectors
from lightning_sloppy.curvature.kept_graph import need_outputs
from lightning_sloppy.curvature.operators import Curvature
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.curvature.partition import layers_of_rank, samples_of_rank
from lightning_sloppy.curvature.spectra import Quadrature, Solve, spectrum_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import ALONE, Ranks
from lightning_sloppy.records import Cost, Estimate, Spectrum, Status

FisherMethod = Literal["auto", "gram", "products"]

ROW_LIMIT = 8_192
"""Rows of the largest Gram matrix. Above, its float64 eigenvalues take minutes on a CPU."""

FLOOR_ROUNDINGS = 8
"""Multiple of the rounding error below which an eigenvalue is noise. In float32, 2.5e-7 of the largest was observed."""


def fisher_of(
    objective: Objective,
    batches: list[Batch],
    *,
    fisher: Fisher,
    solve: Solve,
    rng: torch.Generator,
    quadrature: Quadrature | None = None,
    method: FisherMethod = "auto",
    parameters: Patterns = None,
    by_layer: bool = False,
    ranks: Ranks = ALONE,
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Compute all eigenvalues of a Fisher matrix from its Gram matrix, or above its limit the k largest by products.

    The arguments are those of :func:`~lightning_sloppy.analysis.fisher_spectrum`. Each of several ``ranks`` receives
    the whole probe and computes a part.

    Raises:
        UnsupportedError: If the loss is not known as a function of outputs and targets.
        ConfigurationError: If ``method="gram"`` would need more than 8,192 rows.
    """
    need_outputs(objective)
    layout = ParameterLayout.of(objective.module, parameters)
    with double_backward(objective.module):
        refuse_cut_graphs(objective, layout, batches)
        beside = beside_outputs(objective, layout, batches)
        objective, unsteady = steady(objective, batches)
        apart = sample_losses(objective, beside, batches) if fisher.kind == "empirical" and beside.own else None
    remarks = {"beside_outputs": beside.left_out(own_too=apart is None), "constants": constants_of(objective)}
    if apart is not None:
        objective, batches = apart, as_inputs(batches)
    rows = _rows(objective, layout, batches, fisher)
    if method == "gram" and rows > ROW_LIMIT:
        raise ConfigurationError(
            f"The Gram matrix would have {rows:,} rows, above {ROW_LIMIT:,}; use fewer samples, kind='empirical', or "
            "method='products'."
        )
    if method == "products" or rows > ROW_LIMIT:
        mine, first = samples_of_rank(ranks, objective, batches)
        curvature = Curvature(
            f"fisher_{fisher.kind}", objective.over(ranks), layout, mine, replace(fisher, first=first)
        )
        found = spectrum_of(
            curvature, solve=solve, rng=rng, quadrature=quadrature, by_layer=by_layer, on_product=on_product
        )
        found = replace(found, rank_bound=min(rows, layout.dim), detail={**found.detail, "rows": rows})
    else:
        # The block of a layer is computed whole on every rank.
        alone = ALONE if by_layer else ranks
        found = _by_gram(objective, layout, batches, fisher, solve, by_layer, rows, alone)
    found = of_one_draw(found, unsteady)
    return replace(found, detail={**found.detail, **{name: text for name, text in remarks.items() if text}})


def _rows(objective: Objective, layout: ParameterLayout, batches: list[Batch], fisher: Fisher) -> int:
    """Number of rows of the Gram matrix: one per sample and cotangent."""
    count = sum(sample_count(batch) for batch in batches)
    if fisher.kind != "exact":
        return count * (fisher.labels if fisher.kind == "sampled" else 1)
    leaves = layout.leaves(objective.module, objective.dtype)
    with double_backward(objective.module):
        outputs = objective.output_values(leaves, private(batches[0])[0])
    objective.examine(outputs, batches[0])
    return count * objective.rows(outputs, sample_count(batches[0])).shape[1]


def _by_gram(
    objective: Objective,
    layout: ParameterLayout,
    batches: list[Batch],
    fisher: Fisher,
    solve: Solve,
    by_layer: bool,
    rows: int,
    ranks: Ranks,
) -> Spectrum:
    builder = SpectrumBuilder(f"fisher_{fisher.kind}", objective, batches)
    mine = layers_of_rank(ranks, layout)
    leaves = mine.leaves(objective.module, objective.dtype)
    vectors = None
    # A fused attention kernel has no rule for vmap either, so the same context is used.
    with double_backward(objective.module):
        # For a single batch, the usual probe, one forward is enough for the cotangents and the Gram matrix.
        recorded = recorded_call(objective, leaves, batches[0]) if len(batches) == 1 else None
        known = [] if recorded is None else [recorded[1].outputs]
        detached = {name: leaf.detach() for name, leaf in leaves.items()}
        pulled = pulled_cotangents(objective, detached, batches, fisher, known)
        unused = unused_by_outputs(objective, layout, batches)
        gram = gram_of(objective, mine, pulled, batches, by_layer=by_layer, recorded=recorded)
        del recorded, known  # the graph of the whole batch
        gram = replace(gram, matrix=ranks.add_up(gram.matrix))
        if not bool(torch.isfinite(gram.matrix).all()):
            return builder.nothing(layout.dim, Status.NON_FINITE)
        weights = torch.cat([objective.sample_weights(batch) for batch in batches])
        total = float(weights.sum())
        if solve.eigenvectors:
            values, inner = torch.linalg.eigh(gram.matrix / total)
            values, inner = values.flip(0), inner.flip(1)[:, : min(solve.k, layout.dim)]
            # u = J^T C v / sqrt(W lambda) has unit length, because v has.
            lengths = (values[: inner.shape[1]] * total).clamp_min(torch.finfo(values.dtype).tiny).sqrt()
            vectors = pull_back_vectors(objective, layout, pulled, batches, inner / lengths)
    found = gram_spectrum(builder, layout, gram.matrix, weights, rows, path_in_words(gram))
    layers = {
        name: gram_spectrum(builder, layout.part(layout.layers()[name]), matrix, weights, rows, path_in_words(gram))
        for name, matrix in gram.layers.items()
    }
    return replace(
        found,
        eigenvectors=vectors,
        layers=layers,
        detail={"unused": unused} if unused else {},
        cost=replace(found.cost, seconds=builder.seconds),
    )


def recorded_call(
    objective: Objective, leaves: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Recording] | None:
    """Run the batch and record its calls; None if the calls of the forward cannot be recorded."""
    with suppress(Exception):
        return leaves, Recording(objective, leaves, batch)
    return None


def gram_spectrum(
    builder: SpectrumBuilder, layout: ParameterLayout, matrix: Tensor, weights: Tensor, rows: int, method: str
) -> Spectrum:
    """Spectrum of a Gram matrix. It may have fewer rows than ``rows``, because zero rows were left out."""
    total, count = float(weights.sum()), len(weights)
    values = _padded(descending(matrix / total), min(rows, layout.dim))
    half = _half(matrix, weights)
    largest = float(values[0])
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=largest,
        smallest=0.0 if len(values) < layout.dim else float(values[-1]),
        dim=layout.dim,
        rank_bound=min(len(matrix), layout.dim),
        num_samples=len(weights),
        trace=Estimate(float(matrix.diagonal().sum()) / total),
        matrix=builder.matrix,
        floor=FLOOR_ROUNDINGS * torch.finfo(builder.objective.dtype).eps * abs(largest),
        truncated=False,
        half_eigenvalues=None
        if half is None
        else _padded(descending(half), min(rows // count * (count // 2), layout.dim)),
        cost=Cost(method=method),
        status=Status.EXACT,
    )


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.cat([values[:count], values.new_zeros(max(count - len(values), 0))])


def _half(matrix: Tensor, weights: Tensor) -> Tensor | None:
    """The matrix of the first half of the samples, divided by their weight; None if the weight is zero."""
    count = len(weights)
    half = float(weights[: count // 2].sum())
    if half == 0:
        return None
    rows = (torch.arange(len(matrix), device=matrix.device) % count) < count // 2
    return matrix[rows][:, rows] / half


def path_in_words(gram: Gram) -> str:
    """The number of parameters by each path, in words."""
    paths = list(gram.paths.values())
    return "gram (" + ", ".join(f"{paths.count(path)} by {path}" for path in dict.fromkeys(paths)) + ")"
