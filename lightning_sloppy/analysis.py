"""The three questions without a Trainer: spectra of the Hessian, of the Fisher information and of the inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from torch import Tensor, nn

from lightning_sloppy.curvature.cotangents import checked_kind
from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.curvature.spectra import fisher_of, gauss_newton_of, hessian_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import collected
from lightning_sloppy.evaluation.objective import Loss, Objective, refuse_sum
from lightning_sloppy.evaluation.preserve import Mode, preserved
from lightning_sloppy.inputs.spectrum import input_spectrum
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.records import Spectrum

__all__ = [
    "checked_counts",
    "fisher_of",
    "fisher_spectrum",
    "gauss_newton_of",
    "hessian_of",
    "hessian_spectrum",
    "input_spectrum",
]


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
        k: Wanted pairs; ``min(k, p)`` are returned.
        probes: Rademacher probe vectors for trace and density, 0 or at least 2 (one has no standard error).
        steps: Depth of the quadrature, one product for each probe vector and step. When it is too
            little for a quantity, its estimate says UNRESOLVED.
        mode: "eval", or "train" with the random stream fixed.
        tol: Residual relative to the largest magnitude; None: 1e-3 in float32, 1e-8 in float64.
        max_products: Bound on the products of the eigensolver, beyond the first k pairs; None: ``20 k + 200``.
        verify_multiplicity: Search for further copies of repeated eigenvalues; None: up to p = 2,000.
        eigenvectors: Keep them (p x k numbers).
        method: "auto", "kept graph" or "recomputed".
        seed: Of the starting and probe vectors.

    Returns:
        The spectrum; ``status`` says whether all residuals were met. For p <= 256 the whole matrix is formed:
        everything is exact, trace and density included, without probe vectors.

    Raises:
        ConfigurationError: For arguments out of range, a generator, an empty probe or a loss that is no scalar.
        UnsupportedError: When an operation of the module has no second derivative.

    >>> import torch
    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> hessian_spectrum(module, [batch], nn.functional.mse_loss).eigenvalues  # 2/N x^T x
    tensor([10.], dtype=torch.float64)
    """
    checked_counts(k, probes)
    _check_mode(mode)
    _check_solver(steps, tol, max_products, method)
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None)
    with preserved(module, mode):
        return hessian_of(
            objective,
            # Inside, for a DataLoader draws from the global random stream.
            objective.prepare(collected(batches)),
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
        ConfigurationError: For an unknown kind, a loss that sums its samples, too many rows, a generator or an empty
            probe.

    >>> import torch
    >>> from torch import nn
    >>> module = nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> spectrum = fisher_spectrum(module, [batch], nn.functional.mse_loss, kind="exact")
    >>> round(spectrum.largest, 4)
    10.0
    """
    checked = checked_kind(kind)
    _check_mode(mode)
    objective = Objective(module, loss_fn, seed=seed if mode == "train" else None)
    with preserved(module, mode):
        held = objective.prepare(collected(batches))
        refuse_sum(objective, held[0])
        return fisher_of(objective, held, kind=checked, rng=generator(seed))


def checked_counts(k: int, probes: int) -> None:
    """Check numbers of pairs and probe vectors.

    Raises:
        ConfigurationError: For k < 1, or a single or negative number of probes.
    """
    if not isinstance(k, int) or k < 1:
        raise ConfigurationError(
            f"k={k} eigenpairs were asked for, but at least 1 is needed; pass k >= 1, a whole number."
        )
    if probes < 0 or probes == 1:
        raise ConfigurationError(
            f"probes={probes} probe vectors were asked for, but one has no standard error; pass 0, or at least 2."
        )


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode={mode!r} is unknown; choose 'eval' or 'train'.")


def _check_solver(steps: int, tol: float | None, max_products: int | None, method: str) -> None:
    if steps < 1:
        raise ConfigurationError(f"steps={steps} is no depth of a quadrature; pass steps >= 1, usually 30 to 100.")
    if tol is not None and not 0 < tol < 1:
        raise ConfigurationError(
            f"tol={tol} is a residual relative to the largest magnitude and must lie between 0 and 1; pass None for "
            "the default of the data type."
        )
    if max_products is not None and max_products < 1:
        raise ConfigurationError(f"max_products={max_products} allows no product; pass at least k, or None.")
    if method not in get_args(Method):
        raise ConfigurationError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}.")


def _vectors(module: nn.Module, probes: int, seed: int) -> Tensor | None:
    dim = ParameterLayout.of(module).dim
    return rademacher(dim, probes, generator(seed + 1)) if probes else None
