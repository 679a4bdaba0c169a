"""The eigenspectrum of the inputs: correlation, covariance or uncentred second moments."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.moments import InputMoments, Moments
from lightning_sloppy.inputs.rows import Array
from lightning_sloppy.records import Cost, Estimate, Spectrum, Status

InputKind = Literal["correlation", "covariance", "second_moment"]

FLOOR_FACTOR = 2
"""Safety of the floor, see :func:`moments_spectrum`."""


def input_spectrum(
    inputs: Array | Iterable[Array] | Iterable[tuple[Array, object]], kind: InputKind = "correlation"
) -> Spectrum:
    """Eigenvalues of the second moments of the inputs, from one pass over them.

    Args:
        inputs: One tensor or array of shape (n, ...), or an iterable of such batches; of pairs ``(inputs, targets)``
            the first is taken. A generator will do. Every process of a distributed run measures what it is given.
        kind: "correlation" (the scales of the features do not matter), "covariance" or "second_moment" (uncentred:
            what the first layer of a network meets).

    Returns:
        See :func:`moments_spectrum`.

    Raises:
        ConfigurationError: Unknown kind, fewer than two samples, nothing but constant columns, NaN or infinity, token
            ids, more than 8,192 features, or batches of another form.

    >>> input_spectrum(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).eigenvalues.tolist()
    [1.0, 1.0]
    """
    _checked_kind(kind)
    moments = InputMoments(sync_on_compute=False)
    start = time.perf_counter()
    if isinstance(inputs, (Tensor, np.ndarray)):
        moments.update(inputs)
    else:
        for batch in _batches(inputs):
            moments.update(_first(batch))
    if moments.num_features is None:
        raise ConfigurationError("The spectrum of no inputs was asked for; pass at least two samples.")
    return moments_spectrum(moments, kind, seconds=time.perf_counter() - start)


def moments_spectrum(
    moments: InputMoments | Moments, kind: InputKind = "correlation", *, seconds: float = 0.0
) -> Spectrum:
    """Eigenvalues of one of the three matrices that second moments give.

    With ``S`` the centred scatter of n samples and ``m`` the mean:

    * "covariance" ``S / n``; "second_moment" ``S / n + m m^T = X^T X / n``;
    * "correlation" ``D S D`` with ``D = diag(S)^(-1/2)``, over the columns that are not constant.

    The floor is ``2 eps max(d, sqrt(n)) lambda_1`` with the eps of float64: the error of a symmetric eigensolver grows
    at most like d, that of sums over n rounded products like sqrt(n); zeros of exactly dependent columns came out below
    a quarter of it in every trial (n from 100 to a million, d from 3 to 2,000). It is the noise of the computation
    only: that the data were once rounded to float32 or to 256 levels is a property of the data and stays visible, a
    column that is the sum of others in float32 at about ``1e-15 (mean / deviation)^2``.

    Args:
        moments: What :class:`InputMoments` gathered. For an instance the ranks are joined, so call it on all of them;
            to take several kinds pass ``moments.compute()``, which joins them once.
        kind: The matrix.
        seconds: Time already spent on gathering, added to the cost.

    Returns:
        All ``min(n, d)`` eigenvalues, signed as computed (zeros may come out as -1e-17). ``dim`` counts the columns
        used, ``detail`` the ``constant_columns`` and all ``num_features``. The trace is exact.

    Raises:
        ConfigurationError: Unknown kind, fewer than two samples, only constant columns (correlation and covariance),
            or numbers so large that their squares overflow.
    """
    _checked_kind(kind)
    start = time.perf_counter()
    gathered = moments.compute() if isinstance(moments, InputMoments) else moments
    n, mean = gathered.num_samples, gathered.mean.reshape(-1)
    scatter = gathered.scatter.reshape(len(mean), len(mean))
    if n < 2:
        raise ConfigurationError(f"A spectrum of the inputs needs at least two samples, but {n} was given; pass more.")
    # The diagonal of a positive semidefinite matrix bounds all its entries.
    if not bool(torch.isfinite(scatter.diagonal().sum() + mean.square().sum())):
        raise ConfigurationError("Squares of the inputs overflow; scale the features, for instance by their deviation.")
    used = scatter.diagonal() > 0
    constant = int((~used).sum())
    if constant == len(mean) and kind != "second_moment":
        raise ConfigurationError(
            f"The {kind} of the inputs was asked for, but all {constant} columns are constant over {n} samples; pass "
            "inputs that vary, or kind='second_moment'."
        )
    matrix = _matrix(n, mean, scatter, used, kind)
    dim = len(matrix)
    values = torch.linalg.eigvalsh(matrix).flip(0).cpu()
    largest = float(values[0])
    kept = values[: min(n, dim)].clone()
    return Spectrum(
        eigenvalues=kept,
        residuals=torch.zeros_like(kept),
        largest=largest,
        smallest=float(values[-1]),
        dim=dim,
        rank_bound=min(n if kind == "second_moment" else n - 1, dim),
        num_samples=n,
        trace=Estimate(float(matrix.diagonal().sum())),
        matrix=kind,
        floor=FLOOR_FACTOR * torch.finfo(torch.float64).eps * max(dim, n**0.5) * largest,
        cost=Cost(seconds=seconds + time.perf_counter() - start, method="moments"),
        status=Status.EXACT,
        detail={"constant_columns": constant, "num_features": len(mean)},
    )


def _matrix(n: int, mean: Tensor, scatter: Tensor, used: Tensor, kind: InputKind) -> Tensor:
    if kind == "covariance":
        return scatter / n
    if kind == "second_moment":
        return torch.addr(scatter / n, mean, mean)
    kept = scatter if bool(used.all()) else scatter[used][:, used]
    # One square root for each side: their product may underflow where the two do not.
    scale = kept.diagonal().rsqrt()
    correlation: Tensor = kept * scale[:, None] * scale
    correlation.fill_diagonal_(1.0)
    return correlation


def _checked_kind(kind: str) -> None:
    if kind not in get_args(InputKind):
        raise ConfigurationError(
            f"A spectrum of the inputs of kind {kind!r} was asked for; choose one of {', '.join(get_args(InputKind))}."
        )


def _batches(inputs: object) -> Iterable[object]:
    if isinstance(inputs, Dataset):
        raise ConfigurationError(
            f"Batches of inputs are needed, but a dataset ({type(inputs).__name__}) gives single samples; pass "
            "DataLoader(dataset, batch_size=256)."
        )
    if isinstance(inputs, (str, bytes, dict)) or not isinstance(inputs, Iterable):
        raise ConfigurationError(
            f"Inputs must be a tensor, an array or batches of them, but a {type(inputs).__name__} was given; pass "
            "shape (n, ...)."
        )
    return inputs


def _first(batch: object) -> Array:
    """The inputs of a batch.

    Raises:
        ConfigurationError: Neither tensor, array nor pair, or without a features dimension.
    """
    values = batch[0] if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2 else batch
    if not isinstance(values, (Tensor, np.ndarray)):
        raise ConfigurationError(
            f"Batches must be tensors, arrays or pairs (inputs, targets), but one is a {type(batch).__name__}; give "
            "(inputs, targets), inputs of shape (n, ...)."
        )
    # Without this, single samples in place of batches would pass silently, each taken for n samples of one feature.
    if values.ndim < 2:
        raise ConfigurationError(
            f"A batch of inputs has shape {tuple(values.shape)}, so samples and features cannot be told apart; give "
            "batches of shape (n, ...), with (n, 1) for a single feature."
        )
    return values
