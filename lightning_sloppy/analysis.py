"""Spectra without a Trainer: Hessian, Fisher information, Jacobian of the outputs, and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.arguments import check_choices, check_solver, checked_counts, one_of
from lightning_sloppy.curvature.cotangents import Fisher, Kind, checked_fisher
from lightning_sloppy.curvature.fisher_spectra import FisherMethod, fisher_of
from lightning_sloppy.curvature.hessian import mean_gradient
from lightning_sloppy.curvature.jacobian import Outputs, jacobian_objective, jacobian_of
from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.curvature.partition import gathered_batches
from lightning_sloppy.curvature.spectra import Quadrature, Solve, gauss_newton_of, hessian_of
from lightning_sloppy.curvature.summed import checked_reduction, reduced_as
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import BatchSize, checked_batch_size, collected
from lightning_sloppy.evaluation.loss_checks import checked_loss
from lightning_sloppy.evaluation.mean_weights import agreed_weights, checked_reduction_of
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.precision import Precision, checked_precision
from lightning_sloppy.evaluation.preserve import Mode, preserved
from lightning_sloppy.evaluation.ranks import ALONE, Ranks, need_ranks
from lightning_sloppy.evaluation.stand_ins import unwrapped
from lightning_sloppy.evaluation.weights import Likelihood, Reduction, SampleWeights
from lightning_sloppy.inputs.spectrum import input_spectrum
from lightning_sloppy.linalg.basis import Storage
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.linalg.which import Which
from lightning_sloppy.records import Spectrum

AUTO_PROBES = 4
"""Probe vectors that "auto" starts with."""

__all__ = [
    "Fisher",
    "Quadrature",
    "Solve",
    "checked_counts",
    "fisher_of",
    "fisher_spectrum",
    "gauss_newton_of",
    "hessian_of",
    "hessian_spectrum",
    "input_spectrum",
    "jacobian_of",
    "jacobian_spectrum",
    "mean_gradient",
]


def hessian_spectrum(
    module: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    k: int = 10,
    *,
    which: Which = "magnitude",
    probes: int | Literal["auto"] = 0,
    rel_error: float = 0.05,
    steps: int = 64,
    parameters: Patterns = None,
    by_layer: bool = False,
    mode: Mode = "eval",
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
    eigenvectors: bool = False,
    method: Method = "auto",
    sample_weights: SampleWeights | None = None,
    batch_size: BatchSize | None = None,
    reduction: Reduction | None = None,
    basis_memory: int | None = None,
    basis: Storage = "device",
    over_ranks: bool = False,
    seed: int = 0,
) -> Spectrum:
    """Compute k eigenpairs of ``H = grad^2 (1/W) sum_i w_i loss_i``, and its trace and density if ``probes`` is set.

    Args:
        module: Any module whose ``forward`` takes the inputs of a batch. It is not changed.
        batches: Re-iterable of ``(inputs, targets)``. Batches may differ in size. Inputs and targets may be nested
            containers of tensors. If a batch is not a pair (a dict, a dataclass, a batch object), ``forward`` and the
            loss both receive all of it; from a dict, ``forward`` receives the keywords that it accepts. From a longer
            tuple, ``forward`` receives as many elements as it has parameters, and the rest are the targets.
        loss_fn: ``loss_fn(outputs, targets)``, a mean or a sum over the samples of a batch. The Hessian includes every
            path from a parameter of the module to the loss, also those that bypass the outputs: penalties on weights,
            and parameters of the loss that are in the module.
        k: Number of eigenpairs; ``min(k, p)`` are returned.
        which: "magnitude", "largest", "smallest", or "both" ends (the larger half of k from the top).
        probes: Number of Rademacher probe vectors for trace and density, orthogonal to the converged eigenvectors: 0,
            at least 2 (one has no standard error), or "auto": 4, then more until ``rel_error`` is met, at most 64.
        rel_error: Standard error of the trace, relative to the trace, at which "auto" stops adding probe vectors.
        steps: Lanczos steps of the quadrature; each probe vector takes one product per step. If they are too few for a
            quantity, the status of its estimate is UNRESOLVED.
        parameters: Shell-style patterns of parameter names: the block of those parameters. None: all parameters.
        by_layer: Whether to compute the block of each layer's parameters as well, in ``layers``, on the same graphs.
        mode: "eval", or "train" with the random stream fixed.
        tol: Residual relative to the largest magnitude. None: 1e-3 in float32, 1e-8 in float64.
        max_products: Limit on the products of the eigensolver after the first k pairs. None: ``20 k + 200``.
        verify_multiplicity: Whether to search for further copies of repeated eigenvalues. None: up to p = 2,000.
        eigenvectors: Whether to keep them (p x k numbers).
        method: "kept_graph" (fastest), "recomputed" (batch by batch), "central_differences" (two gradients per product,
            no double backward; error in float32: 2e-4 of the largest value with smooth activations, 1e-2 across the
            kinks of ReLU), or "auto": chosen by the free memory and by what the module supports.
        sample_weights: ``sample_weights(targets) -> (n,)``: the weight of each sample in the mean of the loss. None:
            known for the losses of torch, including ignored targets and class weights. For other losses it is detected
            whether they are means over samples, over labels of which some are ignored, or by a mask or weights among
            the targets. If it is none of these, every sample has weight 1, and ``detail["weights"]`` says so.
        batch_size: ``batch_size(batch) -> int``: the number of samples in a batch. None: found from the size that
            inputs, targets and outputs share, in any dimension.
        reduction: "mean" or "sum" over the probe. None: the reduction of the loss itself. For a sum, every eigenvalue
            is N times that of the mean, and ``detail`` says so.
        basis_memory: Bytes for the Lanczos basis; above, the eigensolver restarts. None: a quarter of the free memory.
        basis: Where the Lanczos basis is kept: "device", or "host" or "half" (bfloat16) if it does not fit there.
        over_ranks: Whether the probe is the union of the batches of all ranks of a running ``torch.distributed`` group:
            one reduction per product, the same result on every rank. All must call with the same arguments.
        seed: Seed of the starting vector and the probe vectors.

    Returns:
        The spectrum. ``status`` says whether all residuals are below the tolerance, ``cost.method`` how products were
        computed, ``detail`` which parameters the loss does not use and whether the module is not deterministic. For
        p <= 256 the whole matrix is formed: everything, trace and density included, is exact without probe vectors.

    Raises:
        ConfigurationError: If an argument is out of range, ``batches`` is a generator, the probe is empty, a pattern
            matches no parameter, the loss is not a scalar, or the samples of a batch cannot be counted.
        UnsupportedError: If ``method`` needs a double backward that a layer lacks; the message names the layer.

    >>> import torch
    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> hessian_spectrum(module, [batch], nn.functional.mse_loss).eigenvalues  # 2/N x^T x
    tensor([10.], dtype=torch.float64)
    """
    module = unwrapped(module)
    checked_loss(loss_fn, needed=True)
    checked_counts(k, probes)
    check_choices(mode, which, method, basis)
    check_solver(steps, tol, max_products, basis_memory)
    if not rel_error > 0:
        raise ConfigurationError(f"rel_error={rel_error} cannot be reached; pass a positive number such as 0.05.")
    checked_batch_size(batch_size)
    checked_reduction(reduction)
    ranks = need_ranks() if over_ranks else ALONE
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None, weights=sample_weights, ranks=ranks)

    def measured() -> tuple[Spectrum, str]:
        held = objective.located(objective.prepare(collected(batches, batch_size, module)))
        note = checked_reduction_of(objective, held)
        if not ranks.least(objective.reduction == "mean"):
            objective.reduction = "sum"  # a rank with a single sample cannot tell
        agreed_weights(objective)
        if len(held) == 1 and not over_ranks:
            note = ""  # with one batch, the weights of the batches do not matter
        found = hessian_of(
            objective,
            held,
            solve=Solve(k, which, tol, max_products, verify_multiplicity, eigenvectors, basis_memory, basis),
            quadrature=_quadrature(module, parameters, probes, steps, seed, rel_error),
            method=method,
            parameters=parameters,
            by_layer=by_layer,
            rng=generator(seed),
        )
        return reduced_as(found, objective, held, reduction), note

    return _on(module, mode, ranks, measured)


def fisher_spectrum(
    module: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    kind: Kind = "empirical",
    *,
    labels: int = 1,
    likelihood: Likelihood | None = None,
    method: FisherMethod = "auto",
    k: int = 10,
    probes: int = 0,
    steps: int = 64,
    parameters: Patterns = None,
    by_layer: bool = False,
    eigenvectors: bool = False,
    mode: Mode = "eval",
    precision: Precision | None = None,
    sample_weights: SampleWeights | None = None,
    batch_size: BatchSize | None = None,
    reduction: Reduction | None = None,
    over_ranks: bool = False,
    seed: int = 0,
) -> Spectrum:
    """Compute all eigenvalues of the Fisher matrix on the batches, from the Gram matrix of per-sample gradients.

    * "empirical": ``(1/W) sum_i w_i g_i g_i^T`` with the gradients at the targets of the data.
    * "sampled": the same at targets drawn from the model, ``labels`` per sample.
    * "exact": ``(1/W) sum_i w_i J_i^T [grad^2_f loss_i] J_i``, the Gauss-Newton matrix; one row per sample and output.

    Args:
        module: Any module. It is not changed.
        batches: Re-iterable of ``(inputs, targets)``, as for :func:`hessian_spectrum`.
        loss_fn: ``loss_fn(outputs, targets)``, a mean or a sum over the samples of a batch. Its own parameters, if they
            are in the module, belong to the empirical kind. All else that bypasses the outputs is left out and named
            in ``detail["beside_outputs"]``.
        kind: "empirical", "sampled" or "exact".
        labels: Number of targets drawn per sample (sampled kind).
        likelihood: The model of a loss that is none of torch's (sampled kind): "categorical", "bernoulli" with logits,
            or "gaussian".
        method: "gram" for all eigenvalues; "products" for the k largest pairs by Lanczos, with trace and density if
            ``probes`` is set; "auto" uses products above 8,192 rows.
        k: Number of eigenpairs (products), and of eigenvectors (both methods).
        probes: Number of probe vectors (products): 0 or at least 2.
        steps: Lanczos steps of the quadrature.
        parameters: Shell-style patterns of parameter names. None: all parameters.
        by_layer: Whether to compute the block of each layer's parameters as well, in ``layers``.
        eigenvectors: Whether to keep those of the k largest eigenvalues: one backward each, no per-sample gradients.
        mode: "eval", or "train" with the random stream fixed.
        precision: "float64" resolves eigenvalues below the rounding of float32: 13 decades instead of 6, at two to
            three times the cost. None: the data type of the parameters, at least float32.
        sample_weights: As for :func:`hessian_spectrum`.
        batch_size: As for :func:`hessian_spectrum`.
        reduction: As for :func:`hessian_spectrum`. For a sum: ``sum_i g_i g_i^T`` with the gradients of the terms.
        over_ranks: Whether the probe is the union of the batches of all ranks. Each rank receives all batches, because
            every pair of samples is needed, and computes the inner products of some of the layers.
        seed: Seed of the sampled targets.

    Returns:
        ``min(N, p)`` eigenvalues (``min(N C, p)`` for "exact"), exact up to rounding, and those of the first half of
        the samples in ``half_eigenvalues``. By products, ``min(k, p)`` eigenvalues with residuals.

    Raises:
        ConfigurationError: If the kind is unknown, there are too many rows for ``method="gram"``, ``batches`` is a
            generator, or the probe is empty.

    >>> import torch
    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> spectrum = fisher_spectrum(module, [batch], nn.functional.mse_loss, kind="exact")
    >>> round(spectrum.largest, 4)
    10.0
    """
    module = unwrapped(module)
    checked_loss(loss_fn, needed=True)
    fisher = checked_fisher(kind, labels, likelihood, seed)
    checked_counts(k, probes)
    check_choices(mode)
    dtype = getattr(torch, checked_precision(precision) or "float32")
    one_of("method", method, FisherMethod)
    check_solver(steps, None, None, None)
    checked_batch_size(batch_size)
    checked_reduction(reduction)
    ranks = need_ranks() if over_ranks else ALONE
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None, weights=sample_weights).at(dtype)

    def measured() -> tuple[Spectrum, str]:
        held = objective.prepare(gathered_batches(ranks, collected(batches, batch_size, module)))
        held = objective.located(held)
        note = checked_reduction_of(objective, held)
        found = fisher_of(
            objective,
            held,
            fisher=fisher,
            solve=Solve(k, eigenvectors=eigenvectors),
            quadrature=_quadrature(module, parameters, probes, steps, seed),
            method=method,
            parameters=parameters,
            by_layer=by_layer,
            ranks=ranks,
            rng=generator(seed),
        )
        return reduced_as(found, objective, held, reduction), note

    return _on(module, mode, ranks, measured)


def jacobian_spectrum(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    outputs: Outputs | None = None,
    normalize: bool = True,
    method: FisherMethod = "auto",
    probes: int = 0,
    steps: int = 64,
    parameters: Patterns = None,
    mode: Mode = "eval",
    precision: Precision | None = None,
    batch_size: BatchSize | None = None,
    over_ranks: bool = False,
    seed: int = 0,
) -> Spectrum:
    """Compute all eigenvalues of ``(1/N) sum_i J_i^T J_i / tr(J_i J_i^T)``; J_i: Jacobian of sample i's outputs.

    The eigenvalues are those of the kernel ``K_ij / sqrt(tr K_ii tr K_jj)`` with ``K_ij = J_i J_j^T``, divided by N.
    Every sample has the same weight, and the trace is 1. Targets are not used. With ``normalize=False`` the matrix is
    the Fisher matrix of outputs with unit variance, ``(1/N) sum_i J_i^T J_i``.

    Args:
        module: Any module. It is not changed.
        batches: Re-iterable of ``(inputs, targets)`` or of inputs alone (tensors). Targets are ignored.
        outputs: A key of the mapping that ``forward`` returns, or a function of what it returns. None: all
            floating-point tensors with one row per sample. For classifiers, choose the scores (logits).
        normalize: Whether every sample has the same weight. A sample scaled by 1,000 then changes the result little.
        method: "gram" for all eigenvalues; "products" for trace and density from ``probes`` by Lanczos; "auto" uses
            products above 8,192 rows (samples times outputs; positions of a sequence count).
        probes: Number of probe vectors (products), at least 2.
        steps: Lanczos steps of the quadrature.
        parameters: Shell-style patterns of parameter names. None: all parameters.
        mode: "eval", or "train" with the random stream fixed.
        precision: "float64" for eigenvalues below the rounding of float32: 13 decades instead of 6, at two to three
            times the cost. None: the data type of the parameters, at least float32.
        batch_size: As for :func:`hessian_spectrum`.
        over_ranks: Whether the probe is the union of the batches of all ranks.
        seed: Seed of the probe vectors, and of the random signs that estimate ``tr K_ii`` if there are too many rows
            and more than 128 outputs.

    Returns:
        ``min(N D, p)`` eigenvalues, exact up to rounding, and those of the first half of the samples in
        ``half_eigenvalues``. By products, a density. ``detail`` names the sample with the largest Jacobian and its
        fraction of the trace.

    Raises:
        ConfigurationError: If ``outputs`` are missing, ``batches`` is a generator, the probe is empty, or there are too
            many rows and no ``probes``.

    >>> import torch
    >>> from torch import nn
    >>> module = nn.Linear(2, 1, bias=False)  # J_i = x_i
    >>> spectrum = jacobian_spectrum(module, [torch.tensor([[1.0, 0.0], [0.0, 3.0]])], normalize=False)
    >>> spectrum.eigenvalues
    tensor([4.5000, 0.5000], dtype=torch.float64)
    """
    module = unwrapped(module)
    checked_counts(1, probes)
    check_choices(mode)
    dtype = getattr(torch, checked_precision(precision) or "float32")
    one_of("method", method, FisherMethod)
    check_solver(steps, None, None, None)
    checked_batch_size(batch_size)
    ranks = need_ranks() if over_ranks else ALONE
    objective = jacobian_objective(module, outputs, seed=seed if mode == "train" else None).at(dtype)

    def measured() -> tuple[Spectrum, str]:
        held = objective.prepare(gathered_batches(ranks, collected(batches, batch_size, module)))
        held = objective.located(held)
        quadrature = _quadrature(module, parameters, probes, steps, seed)
        found = jacobian_of(
            objective,
            held,
            rng=generator(seed),
            normalize=normalize,
            quadrature=quadrature,
            method=method,
            parameters=parameters,
            ranks=ranks,
        )
        return found, ""

    return _on(module, mode, ranks, measured)


def _on(module: nn.Module, mode: Mode, ranks: Ranks, measured: Callable[[], tuple[Spectrum, str]]) -> Spectrum:
    """Compute a spectrum with its note on the weights, and restore the module. Either all ranks succeed or none."""

    def guarded() -> Spectrum:
        # Batches are read inside, because a DataLoader draws from the global random stream.
        with preserved(module, mode):
            found, note = measured()
        return replace(found, detail={**found.detail, "weights": note}) if note else found

    return ranks.together(guarded)


def _quadrature(
    module: nn.Module,
    parameters: Patterns,
    probes: int | Literal["auto"],
    steps: int,
    seed: int,
    rel_error: float = 0.05,
) -> Quadrature | None:
    if probes == 0:
        return None
    dim = ParameterLayout.of(module, parameters).dim

    def vectors(count: int) -> Tensor:
        return rademacher(dim, count, generator(seed + 1))

    if probes == "auto":
        return Quadrature(vectors(AUTO_PROBES), steps, more=vectors, rel_error=rel_error)
    return Quadrature(vectors(probes), steps)
