"""Spectra without a Trainer: of the Hessian, of the Fisher information, of the outputs' Jacobian, and of the inputs."""

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
    """The k wanted eigenpairs of ``H = grad^2 (1/W) sum_i w_i loss_i``, and more with ``probes``.

    Args:
        module: Any module; ``forward`` takes the inputs of a batch. It is left as it was.
        batches: Re-iterable of ``(inputs, targets)``; batches may differ in size. Inputs and targets may be nests of
            tensors. A batch that is no pair (a dict, a dataclass, a batch object) goes whole to ``forward`` and to the
            loss, a dict by the keywords that ``forward`` knows. Of a longer tuple ``forward`` takes as many parts as
            it has parameters, and the rest are the targets.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the samples of a batch or their sum. Every path from a
            parameter of the module to it counts, also past the outputs: penalties on weights, parameters of the loss
            that are in the module.
        k: Wanted pairs; ``min(k, p)`` are returned.
        which: "magnitude", "largest", "smallest", or "both" ends (the larger half of k from the top).
        probes: Rademacher probe vectors for trace and density, beside the converged pairs: 0, at least 2 (one has no
            standard error), or "auto": four, and more until the trace is known to ``rel_error``, at most 64.
        rel_error: Standard error of the trace relative to it that "auto" is after.
        steps: Depth of the quadrature, one product for each probe vector and step. When it is too
            little for a quantity, its estimate says UNRESOLVED.
        parameters: Shell-style patterns of parameter names: the block of those parameters. None: all.
        by_layer: Also the block of each layer's parameters, in ``layers``, on the same graphs.
        mode: "eval", or "train" with the random stream fixed.
        tol: Residual relative to the largest magnitude; None: 1e-3 in float32, 1e-8 in float64.
        max_products: Bound on the products of the eigensolver, beyond the first k pairs; None: ``20 k + 200``.
        verify_multiplicity: Search for further copies of repeated eigenvalues; None: up to p = 2,000.
        eigenvectors: Keep them (p x k numbers).
        method: "kept_graph" (fastest), "recomputed" (batch by batch), "central_differences" (two gradients a product,
            without a double backward; good to 2e-4 of the largest value with smooth activations in float32, to 1e-2
            across the kinks of ReLU), or "auto": by the free memory, and by what the module allows.
        sample_weights: ``sample_weights(targets) -> (n,)``: what each sample weighs in the loss's mean. None knows the
            losses of torch, with their ignored targets and class weights. Of others it finds out whether they are means
            over samples, over labels of which some do not count, or by a mask or weights among the targets; where it is
            none of these every sample weighs 1, and ``detail["weights"]`` says so.
        batch_size: ``batch_size(batch) -> int``: how many samples a batch holds. None finds it from what inputs,
            targets and outputs have in common, in whichever dimension it is.
        reduction: "mean" or "sum" over the probe; None: as the loss itself reduces. Of a sum every eigenvalue is N
            times that of the mean, which ``detail`` says.
        basis_memory: Bytes for the Lanczos basis; it restarts beyond. None: a quarter of what is free.
        basis: Where the basis is kept: "device", or "host" or "half" (bfloat16) when it does not fit.
        over_ranks: The probe is the union of the batches of all ranks of a running ``torch.distributed`` group: one
            reduction for each product, the same result on every rank; all must call with the same arguments.
        seed: Of the starting and probe vectors.

    Returns:
        The spectrum; ``status`` says whether all residuals were met, ``cost.method`` how the products were made,
        ``detail`` which parameters the loss does not use and whether the module is not deterministic. For p <= 256 the
        whole matrix is formed: everything is exact, trace and density included, without probe vectors.

    Raises:
        ConfigurationError: For arguments out of range, a generator, an empty probe, a pattern without a match, a
            loss that is no scalar, or batches whose samples cannot be counted.
        UnsupportedError: When a forced method needs a double backward that some layer has not; it is named.

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
        raise ConfigurationError(f"rel_error={rel_error} can never be reached; pass a positive number such as 0.05.")
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
            note = ""  # there are no batches to weigh
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
    """All eigenvalues of the Fisher information on the batches, through the Gram matrix of per-sample gradients.

    * "empirical": ``(1/W) sum_i w_i g_i g_i^T`` with the gradients at the data's own targets.
    * "sampled": the same at targets drawn from the model, ``labels`` for each sample.
    * "exact": ``(1/W) sum_i w_i J_i^T [grad^2_f loss_i] J_i``, the Gauss-Newton matrix; N times the outputs rows.

    Args:
        module: Any module; left as it was.
        batches: Re-iterable of ``(inputs, targets)``, as for :func:`hessian_spectrum`.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the samples of a batch or their sum. Its own parameters,
            where they are in the module, belong to the empirical kind; what else goes past the outputs is left out and
            named in ``detail["beside_outputs"]``.
        kind: Which of the three.
        labels: Targets drawn for each sample (sampled kind).
        likelihood: The model behind a loss that equals none of torch's (sampled kind): "categorical", "bernoulli" with
            logits, or "gaussian".
        method: "gram" for all eigenvalues, "products" for the k largest pairs by Lanczos, with trace and density when
            there are ``probes``; "auto" takes products beyond 8,192 rows.
        k: Wanted pairs (products), and eigenvectors (both).
        probes: Probe vectors of the products, 0 or at least 2.
        steps: Depth of the quadrature.
        parameters: Shell-style patterns of parameter names. None: all.
        by_layer: Also the block of each layer's parameters, in ``layers``.
        eigenvectors: Keep those of the k largest eigenvalues; one backward each, never a per-sample gradient.
        mode: "eval", or "train" with the random stream fixed.
        precision: "float64" for eigenvalues below the rounding of float32: 13 decades instead of 6, at two to three
            times the cost. None: the data type of the parameters, at least float32.
        sample_weights: As for :func:`hessian_spectrum`.
        batch_size: As for :func:`hessian_spectrum`.
        reduction: As for :func:`hessian_spectrum`. Of a sum it is ``sum_i g_i g_i^T`` with the gradients of the terms.
        over_ranks: The probe is the union of the batches of all ranks. Every sample meets every other, so each rank
            gets all batches, and makes the inner products of some of the layers.
        seed: Of the sampled targets.

    Returns:
        ``min(N, p)`` eigenvalues (``min(N C, p)`` for "exact"), exact up to rounding, with those of the first half of
        the samples beside them; by products ``min(k, p)`` with residuals.

    Raises:
        ConfigurationError: For an unknown kind, too many rows for ``method="gram"``, a
            generator or an empty probe.

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
    """All eigenvalues of ``(1/N) sum_i J_i^T J_i / tr(J_i J_i^T)``, with J_i the Jacobian of sample i's outputs.

    The eigenvalues are those of the kernel ``K_ij / sqrt(tr K_ii tr K_jj)`` with ``K_ij = J_i J_j^T``, divided by N:
    each sample counts the same, and the trace is 1. Targets play no part. With ``normalize=False`` it is the Fisher
    matrix of outputs with unit variance, ``(1/N) sum_i J_i^T J_i``.

    Args:
        module: Any module; left as it was.
        batches: Re-iterable of ``(inputs, targets)`` or of inputs alone (tensors); targets are ignored.
        outputs: Which outputs of a sample: a key of the mapping that ``forward`` returns, or a function of what it
            returns; None: all floating-point tensors with a row for each sample. For classifiers give scores (logits).
        normalize: Whether each sample counts the same. One row times 1,000 then changes little.
        method: "gram" for all eigenvalues, "products" for trace and density from ``probes`` by Lanczos; "auto" takes
            products beyond 8,192 rows (samples times outputs; positions of a sequence count).
        probes: Probe vectors of the products, at least 2.
        steps: Depth of the quadrature.
        parameters: Shell-style patterns of parameter names. None: all.
        mode: "eval", or "train" with the random stream fixed.
        precision: "float64" for eigenvalues below the rounding of float32: 13 decades instead of 6, at two to three
            times the cost. None: the data type of the parameters, at least float32.
        batch_size: As for :func:`hessian_spectrum`.
        over_ranks: The probe is the union of the batches of all ranks.
        seed: Of the probe vectors, and of the random signs that estimate ``tr K_ii`` of more than 128 outputs where
            there are too many rows.

    Returns:
        ``min(N D, p)`` eigenvalues, exact up to rounding, with those of the first half of the samples beside them; by
        products a density. ``detail`` names the sample with the largest Jacobian and its fraction of the trace.

    Raises:
        ConfigurationError: For outputs that are not there, a generator or an empty probe, or too many rows without
            ``probes``.

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
    """A spectrum, with its note on the weights, from a module that is left as it was; of all ranks or of none."""

    def guarded() -> Spectrum:
        # Batches are read inside, for a DataLoader draws from the global random stream.
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
