"""The three questions without a Trainer: spectra of the Hessian, of the Fisher information and of the inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.cotangents import Kind, checked_kind
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.gram import fisher_gram
from lightning_sloppy.curvature.hessian import HessianOperator, Method
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, collected, sample_count
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.preserve import Mode, preserved
from lightning_sloppy.inputs.spectrum import input_spectrum
from lightning_sloppy.linalg.eigensolver import Eigenpairs, top_eigenpairs
from lightning_sloppy.linalg.lanczos import NonFiniteProductError
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.quadrature import Enough, lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.records import Cost, Density, Estimate, Spectrum, Status

__all__ = ["fisher_spectrum", "hessian_spectrum", "input_spectrum"]


def hessian_spectrum(
    module: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    k: int = 10,
    *,
    probes: int = 0,
    steps: int = 64,
    mode: Mode = "eval",
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
    eigenvectors: bool = False,
    method: Method = "auto",
    seed: int = 0,
) -> Spectrum:
    """The k eigenpairs of largest magnitude of ``H = grad^2 (1/N) sum_i loss_i``, and more with ``probes``.

    Args:
        module: Any module; ``forward`` takes the inputs of a batch. It is left as it was.
        batches: Re-iterable of ``(inputs, targets)``; batches may differ in size.
        loss_fn: Mean-reduced ``loss_fn(outputs, targets)``.
        k: Wanted pairs; ``min(k, p)`` are returned, all p when p <= 256 is formed as a whole and k >= p.
        probes: Rademacher probe vectors for trace and density, 0 or at least 2 (one has no standard error).
        steps: Depth of the quadrature, one product for each probe vector and step. 64: see :mod:`measures`.
        mode: "eval", or "train" with the random stream fixed.
        tol: Residual relative to the largest magnitude; None: 1e-3 in float32, 1e-8 in float64.
        max_products: Bound on the products of the eigensolver; None: ``20 k + 200``.
        verify_multiplicity: Search for further copies of repeated eigenvalues; None: up to p = 2,000.
        eigenvectors: Keep them (p x k numbers).
        method: "auto", "kept graph" or "recomputed".
        seed: Of the starting and probe vectors.

    Returns:
        The spectrum; ``status`` says whether all residuals were met.

    Raises:
        ConfigurationError: For k < 1, one probe, a generator, an empty probe or a loss that is no scalar.
        UnsupportedError: When an operation of the module has no second derivative.

    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> hessian_spectrum(module, [batch], nn.functional.mse_loss).eigenvalues  # 2/N x^T x
    tensor([10.], dtype=torch.float64)
    """
    checked_counts(k, probes)
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None)
    held = objective.prepare(collected(batches))
    with preserved(module, mode):
        return hessian_of(
            objective,
            held,
            k=k,
            probe_vectors=_vectors(module, probes, seed),
            steps=steps,
            tol=tol,
            max_products=max_products,
            verify_multiplicity=verify_multiplicity,
            eigenvectors=eigenvectors,
            method=method,
            rng=generator(seed),
        )


def fisher_spectrum(
    module: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    kind: str = "empirical",
    *,
    mode: Mode = "eval",
    seed: int = 0,
) -> Spectrum:
    """All eigenvalues of the Fisher information on the batches, through the Gram matrix of per-sample gradients.

    * "empirical": ``(1/N) sum_i g_i g_i^T`` with the gradients at the data's own targets.
    * "sampled": the same at targets drawn from the model, one for each sample.
    * "exact": ``(1/N) sum_i J_i^T [grad^2_f loss_i] J_i``, the Gauss-Newton matrix; N times the number of outputs rows.

    Args:
        module: Any module; left as it was.
        batches: Re-iterable of ``(inputs, targets)``.
        loss_fn: Mean-reduced ``loss_fn(outputs, targets)``.
        kind: Which of the three.
        mode: "eval", or "train" with the random stream fixed.
        seed: Of the sampled targets.

    Returns:
        ``min(N, p)`` eigenvalues (``min(N C, p)`` for "exact"), exact up to rounding, with those of the first half of
        the samples beside them.

    Raises:
        ConfigurationError: For an unknown kind, too many rows, a generator or an empty probe.

    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> fisher_spectrum(module, [batch], nn.functional.mse_loss, kind="exact").eigenvalues
    tensor([10.], dtype=torch.float64)
    """
    checked = checked_kind(kind)
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None)
    held = objective.prepare(collected(batches))
    with preserved(module, mode):
        return fisher_of(objective, held, kind=checked, rng=generator(seed))


def hessian_of(
    objective: Objective,
    batches: list[Batch],
    *,
    k: int,
    probe_vectors: Tensor | None,
    steps: int,
    rng: torch.Generator,
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
    eigenvectors: bool = False,
    method: Method = "auto",
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """:func:`hessian_spectrum` on an objective and prepared batches, inside somebody's :func:`preserved`."""
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    count = sum(sample_count(batch) for batch in batches)
    try:
        with double_backward(objective.module):
            operator = HessianOperator(objective, layout, batches, method=method)
            operator.on_product = on_product
            pairs = top_eigenpairs(
                operator, k, rng=rng, tol=tol, max_products=max_products, verify_multiplicity=verify_multiplicity
            )
            density = None
            if pairs.spectrum is None and probe_vectors is not None:
                density = lanczos_density(operator, probe_vectors, steps=steps, rng=rng, positive_semidefinite=False)
    except NonFiniteProductError:
        return _not_finite("hessian", layout.dim, count)
    return Spectrum(
        eigenvalues=pairs.values,
        residuals=pairs.residuals,
        eigenvectors=pairs.vectors if eigenvectors else None,
        largest=pairs.largest[0],
        largest_residual=pairs.largest[1],
        smallest=pairs.smallest[0],
        smallest_residual=pairs.smallest[1],
        # One step tells the trace and nothing of the shape.
        density=density if steps > 1 else None,
        dim=layout.dim,
        num_samples=count,
        trace=_trace(pairs, density, layout.dim),
        matrix="hessian",
        floor=_floor(objective.dtype, float(pairs.values.abs().max())),
        truncated=len(pairs.values) < layout.dim,
        cost=_cost(operator, start, operator.method),
        status=pairs.status,
        detail={"loss": operator.loss, "tolerance": pairs.tolerance},
    )


def gauss_newton_of(
    objective: Objective,
    batches: list[Batch],
    *,
    probe_vectors: Tensor,
    steps: int,
    rng: torch.Generator,
    enough: Enough | None = None,
    method: Method = "auto",
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Whole-spectrum view of the Gauss-Newton matrix by quadrature; exact where it is small enough to form."""
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    count = sum(sample_count(batch) for batch in batches)
    try:
        with double_backward(objective.module):
            operator = GaussNewtonOperator(objective, layout, batches, method=method)
            operator.on_product = on_product
            pairs = top_eigenpairs(operator, layout.dim, rng=rng) if layout.dim <= 256 else None
            density = None
            if pairs is None:
                density = lanczos_density(
                    operator, probe_vectors, steps=steps, rng=rng, positive_semidefinite=True, enough=enough
                )
    except NonFiniteProductError:
        return _not_finite("gauss_newton", layout.dim, count)
    values = pairs.values if pairs is not None else torch.zeros(0, dtype=torch.float64)
    largest = float(values[0]) if pairs is not None else float(density.nodes.max())  # type: ignore[union-attr]
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=largest,
        smallest=0.0,
        density=density,
        dim=layout.dim,
        num_samples=count,
        trace=_trace(pairs, density, layout.dim),
        matrix="gauss_newton",
        floor=_floor(objective.dtype, largest),
        truncated=pairs is None,
        cost=_cost(operator, start, operator.method),
        status=Status.EXACT if pairs is not None else Status.CONVERGED,
    )


def fisher_of(objective: Objective, batches: list[Batch], *, kind: Kind, rng: torch.Generator) -> Spectrum:
    """:func:`fisher_spectrum` on an objective and prepared batches, inside somebody's :func:`preserved`."""
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    # A fused attention kernel has no rule for vmap either, so the same context serves.
    with double_backward(objective.module):
        gram = fisher_gram(objective, layout, batches, kind, rng)
    if not bool(torch.isfinite(gram.matrix).all()):
        return _not_finite(f"fisher_{kind}", layout.dim, gram.num_samples)
    values = _descending(gram.matrix)[: layout.dim]
    half = _half_matrix(gram.matrix, gram.num_samples)
    trace = float(gram.matrix.diagonal().sum())
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=float(values[0]),
        smallest=0.0 if len(values) < layout.dim else float(values[-1]),
        dim=layout.dim,
        rank_bound=min(len(gram.matrix), layout.dim),
        num_samples=gram.num_samples,
        trace=Estimate(trace),
        matrix=f"fisher_{kind}",
        floor=_floor(objective.dtype, float(values[0])),
        truncated=False,
        half_eigenvalues=None if half is None else _descending(half)[: layout.dim],
        cost=Cost(seconds=time.perf_counter() - start, method=gram.method),
        status=Status.EXACT,
    )


def checked_counts(k: int, probes: int) -> None:
    """Check numbers of pairs and probe vectors.

    Raises:
        ConfigurationError: For k < 1, or a single or negative number of probes.
    """
    if k < 1:
        raise ConfigurationError(f"k={k} eigenpairs were asked for, but at least 1 is needed; pass k >= 1.")
    if probes < 0 or probes == 1:
        raise ConfigurationError(
            f"probes={probes} probe vectors were asked for, but one has no standard error; pass 0, or at least 2."
        )


def _vectors(module: nn.Module, probes: int, seed: int) -> Tensor | None:
    dim = ParameterLayout.of(module).dim
    return rademacher(dim, probes, generator(seed + 1)) if probes else None


def _trace(pairs: Eigenpairs | None, density: Density | None, dim: int) -> Estimate | None:
    """Exact from the whole spectrum, else Hutchinson's estimate: the first entry of every T is ``v^T A v / p``."""
    if pairs is not None and pairs.spectrum is not None:
        return Estimate(float(pairs.spectrum.sum()))
    if density is None:
        return None
    samples = torch.stack([diagonal[0] for diagonal in density.diagonals]) * dim
    error = float(samples.std(unbiased=True)) / len(samples) ** 0.5
    return Estimate(float(samples.mean()), standard_error=error, status=Status.CONVERGED)


def _descending(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.flip(0).to("cpu", torch.float64)


def _half_matrix(matrix: Tensor, count: int) -> Tensor | None:
    """Gram matrix of the first half of the samples, rescaled to their mean; None for a single sample."""
    half = count // 2
    if half == 0:
        return None
    rows = (torch.arange(len(matrix), device=matrix.device) % count) < half
    return matrix[rows][:, rows] * (count / half)


def _floor(dtype: torch.dtype, largest: float) -> float:
    """Rounding of the products, relative to the largest magnitude: 2.5e-7 was seen in float32, 8 eps is 9.5e-7."""
    return 8 * torch.finfo(dtype).eps * abs(largest)


def _cost(operator: SymmetricOperator, start: float, method: str) -> Cost:
    return Cost(
        products=operator.products,
        seconds=time.perf_counter() - start,
        product_seconds=operator.product_seconds,
        method=method,
    )


def _not_finite(matrix: str, dim: int, count: int) -> Spectrum:
    empty = torch.zeros(0, dtype=torch.float64)
    nan = float("nan")
    return Spectrum(
        eigenvalues=empty,
        residuals=empty,
        largest=nan,
        smallest=nan,
        dim=dim,
        num_samples=count,
        matrix=matrix,
        floor=nan,
        truncated=True,
        status=Status.NON_FINITE,
    )
