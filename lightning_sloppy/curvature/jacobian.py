"""Spectrum of the Jacobian of the outputs, ``(1/N) sum_i J_i^T J_i``, optionally with each sample normalised.

The kernel of the samples is ``K_ij = J_i J_j^T``, a block of D x D for each pair (the neural tangent kernel). It needs
no targets and no loss. It describes how the outputs can change, not how well the network fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.assembly import SpectrumBuilder, of_one_draw, steady
from lightning_sloppy.curvature.beside_outputs import unused_by_outputs
from lightning_sloppy.curvature.cut_graphs import refuse_cut_graphs
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.fisher_spectra import (
    ROW_LIMIT,
    FisherMethod,
    gram_spectrum,
    path_in_words,
    recorded_call,
)
from lightning_sloppy.curvature.gram.matrix import gram_of
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.curvature.partition import layers_of_rank, samples_of_rank
from lightning_sloppy.curvature.spectra import Quadrature, gauss_newton_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import AnyBatch, Batch, picked, private, rows_in, sample_count
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import ALONE, Ranks
from lightning_sloppy.evaluation.real_numbers import real_parts
from lightning_sloppy.evaluation.sample_rows import row_axes
from lightning_sloppy.records import Estimate, Spectrum, Status

Outputs = Callable[[Any], Any] | str
"""Selection of outputs: a function of what ``forward`` returns, or a key of the mapping that it returns."""

MOST_EXACT = 128
"""Largest number of outputs for which the norm of a sample's Jacobian is exact if there is no kernel."""

DRAWS = 32
"""Number of random signs for the norm of a Jacobian with more outputs. The relative error is at most 25 %."""

CHUNK_ROWS, CHUNK_NUMBERS = 1_024, 2**24
"""Rows of a Gram matrix of which only the diagonal is used, and numbers of its cotangents in memory."""


class _ChosenOutputs(Objective):
    """The module with the chosen outputs as its outputs.

    Args:
        module: Any module.
        chosen: Which outputs; None: all floating-point tensors with a row for each sample.
        seed: Set before every forward, for train mode.
    """

    def __init__(self, module: nn.Module, chosen: Outputs | None, *, seed: int | None = None) -> None:
        super().__init__(module, self._half_squares, seed=seed)
        self._chosen = chosen
        self._places: set[int] | None = None

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> list[Tensor]:
        """The chosen tensors of floating point."""
        found = super().outputs(parameters, inputs)
        if isinstance(self._chosen, str):
            found = found.get(self._chosen) if isinstance(found, Mapping) else getattr(found, self._chosen, None)
            if found is None:
                raise ConfigurationError(
                    f"outputs={self._chosen!r} was asked for, but forward returns no such part; pass a key of the "
                    "mapping that it returns, or a function."
                )
        elif self._chosen is not None:
            found = self._chosen(found)
        return [leaf for leaf in map(real_parts, tensors_of(found)) if leaf.is_floating_point()]

    def examine(self, outputs: Any, batch: AnyBatch) -> None:
        """Which tensors have a row for each sample: in one batch and in all before."""
        found, count = tensors_of(outputs), sample_count(batch)
        axes = row_axes(found, batch)
        if count == 1 and not axes:  # a forward that squeezes its outputs drops the dimension of a single sample
            axes = dict.fromkeys(range(len(found)) if self._places is None else self._places, 0)
        places = set(axes) if self._places is None else set(axes) & self._places
        if count > 1:
            self._places = places  # a state of shape (1, 1, H) looks like the output of a single sample
        if not places:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in found) or "no floating-point tensor"
            raise ConfigurationError(
                f"The Jacobian needs outputs with one row per sample, but for {count:,} samples forward returned "
                f"{shapes}; pass outputs=, a key or a function of what forward returns, that selects such tensors."
            )
        self._axes, self._used = axes, tuple(sorted(places))

    def located(self, batches: Sequence[Batch]) -> list[Batch]:
        """By the chosen outputs, which need not be those of the module: what was seen of others is forgotten."""
        return super().located([batch.with_rows(None) for batch in batches])

    def __copy__(self) -> _ChosenOutputs:
        """A copy whose loss knows its own rows."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        made.loss_fn = made._half_squares
        return made

    def _half_squares(self, found: list[Tensor], weights: Any) -> Tensor:
        loss: Tensor = (weights * self.rows(found, len(weights)).square().sum(1)).mean() / 2
        return loss


def jacobian_objective(module: nn.Module, outputs: Outputs | None, *, seed: int | None = None) -> Objective:
    """The module with ``mean_i |f_i|^2 / 2`` as its loss: the Gauss-Newton matrix of that is ``(1/N) sum_i J_i^T J_i``.

    Args:
        module: Any module.
        outputs: Which outputs f; None: all floating-point tensors with a row for each sample.
        seed: Set before every forward, for train mode.
    """
    return _ChosenOutputs(module, outputs, seed=seed)


def weighted(batches: Sequence[AnyBatch], weights: Tensor | None = None) -> list[Batch]:
    """The same inputs with the weight of each sample in place of the targets, 1 where none is given."""
    found: list[Batch] = []
    first = 0
    for batch in batches:
        count = sample_count(batch)
        part = None if weights is None else weights[first : first + count]
        first += count
        device = tensors_of(batch[0])[0].device
        targets = torch.ones(count, device=device) if part is None else part.to(device)
        found.append(Batch(batch[0], targets, replace(rows_in(batch), targets=(0,))))
    return found


@dataclass(frozen=True)
class Kernel:
    """The Gram matrix of the outputs' Jacobian.

    Attributes:
        matrix: (D N, D N), float64, row ``d N + i`` is output d of sample i.
        samples: N.
        method: Which path served how many parameters.
        dim: Parameters p.
    """

    matrix: Tensor
    samples: int
    method: str
    dim: int

    @property
    def norms(self) -> Tensor:
        """``tr K_ii``, the squared norm of each sample's Jacobian, (N,)."""
        return self.matrix.diagonal().reshape(-1, self.samples).sum(0)

    def normalized(self) -> Tensor:
        """``K_ij / sqrt(tr K_ii tr K_jj)``; a sample whose outputs do not depend on the parameters stays zero."""
        norms = self.norms
        scales = norms.clamp_min(torch.finfo(norms.dtype).tiny).rsqrt() * (norms > 0)
        scales = scales.repeat(len(self.matrix) // self.samples)
        return self.matrix * scales * scales[:, None]


def width_of(objective: Objective, layout: ParameterLayout, batch: Batch) -> int:
    """Outputs D of a sample."""
    leaves = layout.leaves(objective.module, objective.dtype)
    with double_backward(objective.module):
        if sample_count(batch) > 2 and rows_in(batch).apart and not rows_in(batch).outputs:
            # A tensor that has a row for each of N samples by chance has none for each of two.
            two = picked(batch, torch.arange(2))
            objective.examine(objective.output_values(leaves, private(two)[0]), two)
        outputs = objective.output_values(leaves, private(batch)[0])
        objective.examine(outputs, batch)
    return int(objective.rows(outputs, sample_count(batch)).shape[1])


def kernel_of(
    objective: Objective, layout: ParameterLayout, batches: list[Batch], widths: list[int], ranks: Ranks = ALONE
) -> Kernel:
    """All inner products of the gradients of all outputs of all samples.

    Args:
        objective: Of :func:`jacobian_objective`.
        layout: Chosen parameters.
        batches: Prepared, with weights in place of targets.
        widths: Outputs of a sample in each batch.
        ranks: Each is given the whole probe, and makes the inner products of some of the layers.
    """
    most = max(widths)
    pulled = []
    for batch, width in zip(batches, widths, strict=True):
        eye = torch.eye(most, width, device=objective.device, dtype=objective.dtype)
        # Shorter sequences have fewer rows: cotangents of zero add nothing.
        pulled.append(eye.unsqueeze(1).expand(most, sample_count(batch), width))
    matrix, method = _inner_products(objective, layers_of_rank(ranks, layout), pulled, batches)
    return Kernel(ranks.add_up(matrix), sum(map(sample_count, batches)), method, layout.dim)


def _inner_products(
    objective: Objective, layout: ParameterLayout, pulled: list[Tensor], batches: list[Batch]
) -> tuple[Tensor, str]:
    leaves = layout.leaves(objective.module, objective.dtype)
    # A fused attention kernel has no rule for vmap either, so the same context serves.
    with double_backward(objective.module):
        recorded = recorded_call(objective, leaves, batches[0]) if len(batches) == 1 else None
        gram = gram_of(objective, layout, pulled, batches, recorded=recorded)
    return gram.matrix, path_in_words(gram)


def jacobian_of(
    objective: Objective,
    batches: list[Batch],
    *,
    rng: torch.Generator,
    normalize: bool = True,
    quadrature: Quadrature | None = None,
    method: FisherMethod = "auto",
    parameters: Patterns = None,
    ranks: Ranks = ALONE,
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """The spectrum of the Jacobian on prepared batches; see :func:`~lightning_sloppy.analysis.jacobian_spectrum`.

    Raises:
        ConfigurationError: When ``method="gram"`` would have more than 8,192 rows, or products have no probe vectors.
    """
    layout = ParameterLayout.of(objective.module, parameters)
    batches = weighted(batches)
    count = sum(map(sample_count, batches))
    widths = [width_of(objective, layout, batch) for batch in batches]
    rows = count * max(widths)
    with double_backward(objective.module):
        refuse_cut_graphs(objective, layout, batches)
        unused = unused_by_outputs(objective, layout, batches)
        objective, unsteady = steady(objective, batches)
    remarks: dict[str, str | int | float] = {"unused": unused} if unused else {}
    if rows <= ROW_LIMIT and method != "products":
        kernel = kernel_of(objective, layout, batches, widths, ranks)
        found = kernel_spectrum(objective, layout, batches, kernel, normalize)
        return of_one_draw(replace(found, detail={**found.detail, **remarks}), unsteady)
    if method == "gram":
        raise ConfigurationError(
            f"The kernel of the Jacobian would have {rows:,} rows ({count:,} samples times their outputs), above "
            f"{ROW_LIMIT:,}; use fewer samples, choose some of the outputs by outputs=, or method='products'."
        )
    if quadrature is None:
        raise ConfigurationError(
            f"The kernel of the Jacobian would have {rows:,} rows ({count:,} samples times their outputs), above "
            f"{ROW_LIMIT:,}, so its spectrum is computed by products; pass probes=4, or use fewer samples or outputs."
        )
    detail: dict[str, str | int | float] = {}
    trace: Estimate | None = None
    if normalize:
        norms = sample_norms(objective, layout, batches, widths, rng, ranks)
        weights = torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), torch.zeros_like(norms))
        batches = weighted(batches, weights.to(objective.dtype))
        detail = _largest_sample(norms)
        if max(widths) <= MOST_EXACT and bool(torch.isfinite(norms).all()):
            trace = Estimate(float((norms > 0).double().mean()))  # known, so that no probe vector has to find it
    mine, _ = samples_of_rank(ranks, objective, batches)
    found = gauss_newton_of(
        objective.over(ranks), mine, quadrature=quadrature, rng=rng, parameters=parameters, on_product=on_product
    )
    found = replace(
        found,
        matrix=name_of(normalize),
        rank_bound=min(rows, layout.dim),
        num_samples=count,
        trace=trace if trace is not None and found.status.ok else found.trace,
        detail={**found.detail, **detail, **remarks, "outputs": rows // count},
    )
    return of_one_draw(found, unsteady)


def name_of(normalize: bool) -> str:
    """Name of the matrix in ``Spectrum.matrix``."""
    return "jacobian" if normalize else "jacobian_raw"


def kernel_spectrum(
    objective: Objective, layout: ParameterLayout, batches: list[Batch], kernel: Kernel, normalize: bool
) -> Spectrum:
    """All eigenvalues that the kernel has in common with ``(1/N) sum_i J_i^T J_i``, and those of half the samples."""
    builder = SpectrumBuilder(name_of(normalize), objective, batches)
    if not bool(torch.isfinite(kernel.matrix).all()):
        return builder.nothing(layout.dim, Status.NON_FINITE)
    matrix = kernel.normalized() if normalize else kernel.matrix
    ones = torch.ones(kernel.samples, dtype=torch.float64)
    found = gram_spectrum(builder, layout, matrix, ones, len(matrix), kernel.method)
    detail = {**_largest_sample(kernel.norms), "outputs": len(matrix) // kernel.samples}
    return replace(found, detail=detail, cost=replace(found.cost, seconds=builder.seconds))


def _largest_sample(norms: Tensor) -> dict[str, str | int | float]:
    """The sample whose Jacobian is the largest, and its fraction of the trace before samples count the same."""
    total = float(norms.sum())
    if not total > 0:
        return {}
    return {"largest_sample": int(norms.argmax()), "largest_sample_fraction": float(norms.max()) / total}


def sample_norms(
    objective: Objective,
    layout: ParameterLayout,
    batches: list[Batch],
    widths: list[int],
    rng: torch.Generator,
    ranks: Ranks = ALONE,
) -> Tensor:
    """``tr K_ii`` of each sample without the kernel, (N,), float64 on the CPU.

    Exact for up to 128 outputs. Beyond, by S = 32 random signs over the outputs (Hutchinson), with the relative
    variance ``2 / S`` over the participation ratio of K_ii: a sample then counts more or less than others by chance,
    by 25 % at the most (one output direction for all) and by a few per cent where outputs differ.
    """
    mine = layers_of_rank(ranks, layout)
    found: list[Tensor] = []
    for batch, width in zip(batches, widths, strict=True):
        exact = width <= MOST_EXACT
        draws = width if exact else DRAWS
        samples = max(1, min(CHUNK_ROWS // draws, CHUNK_NUMBERS // (draws * width)))
        together = draws if exact else max(1, min(draws, CHUNK_NUMBERS // (samples * width)))
        for places in torch.split(torch.arange(sample_count(batch)), samples):
            part, here = picked(batch, places), len(places)
            total = torch.zeros((), dtype=torch.float64)
            for rows in torch.split(torch.arange(draws), together):
                pulled = _cotangents(objective, width, here, None if exact else (len(rows), rng))
                matrix, _ = _inner_products(objective, mine, [pulled], [part])
                total = total + matrix.diagonal().reshape(len(rows), here).sum(0)
            found.append(total if exact else total / draws)
    return ranks.add_up(torch.cat(found)).to("cpu", torch.float64)


def _cotangents(objective: Objective, width: int, samples: int, signs: tuple[int, torch.Generator] | None) -> Tensor:
    """One cotangent per output, (D, samples, D), or random signs."""
    if signs is None:
        eye = torch.eye(width, device=objective.device, dtype=objective.dtype)
        return eye.unsqueeze(1).expand(width, samples, width)
    drawn = torch.randint(0, 2, (signs[0], samples, width), generator=signs[1], dtype=torch.int8)
    return drawn.to(objective.device, objective.dtype).mul_(2).sub_(1)
