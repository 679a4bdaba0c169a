"""The eigenspectrum of the inputs: correlation, covariance or uncentred second moments."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sloppy.display import percent
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.frames import frame_rows, is_frame
from lightning_sloppy.inputs.incomplete import IncompleteMoments, Missing
from lightning_sloppy.inputs.moment_blocks import (
    FEWEST_ROWS,
    AnyMoments,
    Gathered,
    MomentBlocks,
    number_of_blocks,
)
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.pairwise import LEAST_OBSERVED, fewest_common
from lightning_sloppy.inputs.rows import Array, as_rows
from lightning_sloppy.records import Cost, Estimate, Spectrum, Status

InputKind = Literal["correlation", "covariance", "second_moment"]

DEALT_ROWS = 4_096
"""Rows of small batches that are joined before they are dealt out to blocks."""

FLOOR_FACTOR = 2
"""Safety of the floor, see :func:`moments_spectrum`."""


def input_spectrum(
    inputs: Any,
    kind: InputKind = "correlation",
    *,
    missing: Missing = "error",
    intervals: bool = False,
) -> Spectrum:
    """Eigenvalues of the second moments of the inputs, from one pass over them.

    Args:
        inputs: One tensor or array of shape (n, ...), a pandas or polars frame of numbers, or an iterable of batches;
            of pairs ``(inputs, targets)`` the first is taken. A generator will do. Every process of a distributed run
            measures what it is given.
        kind: "correlation" (the scales of the features do not matter), "covariance" or "second_moment" (uncentred:
            what the first layer of a network meets).
        missing: What is done about NaN. "error": refuse, the default, because both other choices assume something that
            no data can show. "pairwise": each correlation over the rows that both columns have; takes values as missing
            completely at random, so that which are missing depends on no value. "em": the Gaussian model that makes the
            observed values most likely; which are missing may depend on observed values; keeps all rows in memory.
        intervals: Whether to take the spectra of random halves of the rows as well (``Spectrum.halves``), from which
            :func:`~lightning_sloppy.spectrum_intervals` computes intervals. Rows are taken as independent. There are no
            halves above 1,024 features, with fewer than two rows for each feature, and with "em".

    Returns:
        See :func:`moments_spectrum`.

    Raises:
        ConfigurationError: Unknown kind, fewer than two samples, nothing but constant columns, NaN (unless ``missing``
            says what to do), infinity, token ids, text, more than 8,192 features, or batches of another form.

    >>> input_spectrum(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).eigenvalues.tolist()
    [1.0, 1.0]
    """
    _checked_kind(kind)
    checked_missing(missing)
    start = time.perf_counter()
    blocks, count = MomentBlocks(missing), 1
    for rows, total in row_chunks(inputs, wait=intervals):
        if blocks.features is None and intervals:
            # The length of a stream is not known: the first chunk must be long enough for halves.
            count = number_of_blocks(total, rows.shape[1], resampled=True)
        blocks.deal(rows, count)
    if blocks.features is None:
        raise ConfigurationError("The spectrum of no inputs was asked for; pass at least two samples.")
    return gathered_spectrum(blocks.gathered(count), kind, intervals=intervals, start=start)


def gathered_spectrum(gathered: Gathered, kind: InputKind, *, intervals: bool, start: float) -> Spectrum:
    """Spectrum of all rows of some blocks, with those of halves.

    Args:
        gathered: Blocks of rows.
        kind: The matrix.
        intervals: Whether to take the spectra of halves.
        start: When the work began, for the cost.
    """
    whole = gathered.whole()
    spectrum = moments_spectrum(whole, kind, seconds=time.perf_counter() - start)
    return with_halves(spectrum, gathered, whole) if intervals else spectrum


def with_halves(spectrum: Spectrum, gathered: Gathered, whole: AnyMoments) -> Spectrum:
    """The spectrum with those of random halves of its rows, where these were gathered.

    Args:
        spectrum: Of one of the three matrices of ``whole``.
        gathered: The blocks.
        whole: Moments of all rows.
    """
    if spectrum.num_samples < FEWEST_ROWS * spectrum.dim:
        return spectrum
    if isinstance(whole, IncompleteMoments) and not whole.enough_for_halves:
        return spectrum
    found = [[_half(each, spectrum) for each in pair] for pair in gathered.halves(whole)]
    return replace(spectrum, halves=torch.stack([torch.stack(pair) for pair in found])) if found else spectrum


def _half(moments: AnyMoments, spectrum: Spectrum) -> Tensor:
    """Signed eigenvalues of a half, as many as the whole has; columns that are constant in the half give zeros."""
    with suppress(ConfigurationError):  # all columns may be constant in a half
        matrix = _matrix_of(moments, cast(InputKind, spectrum.matrix))[0]
        values = torch.linalg.eigvalsh(matrix).flip(0).cpu()
        signed = torch.zeros(len(spectrum.eigenvalues), dtype=torch.float64)
        kept = min(len(values), len(signed))
        signed[:kept] = values[:kept]
        return signed
    return torch.full((len(spectrum.eigenvalues),), torch.nan, dtype=torch.float64)


def moments_spectrum(
    moments: InputMoments | AnyMoments, kind: InputKind = "correlation", *, seconds: float = 0.0
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

    A matrix from pairs of columns may have negative eigenvalues: they become zero, as in the nearest matrix without any
    (Higham, Linear Algebra Appl. 103, 1988). An error that makes eigenvalues negative down to -a hides all up to a as
    well, so ``noise_floor`` is a, and decades, knee and slope count what is above. Sums such as the participation ratio
    take all eigenvalues above ``floor``. The Gaussian model resolves nothing below a millionth of the mean eigenvalue.

    Args:
        moments: What :class:`InputMoments` gathered, or moments of rows with missing values. For an instance the ranks
            are joined, so call it on all of them; to take several kinds pass ``moments.compute()``, which joins them
            once.
        kind: The matrix.
        seconds: Time already spent on gathering, added to the cost.

    Returns:
        All ``min(n, d)`` eigenvalues, signed as computed (zeros may come out as -1e-17). ``dim`` counts the columns
        used, ``detail`` the ``constant_columns`` and all ``num_features``. The trace is exact. With missing values
        ``detail`` also holds ``missing`` (how they were treated), ``missing_rate``, ``negative_eigenvalues`` and
        ``smallest_eigenvalue`` before they became zero, ``overlap_limit`` (rows that two columns need in common),
        ``smallest_overlap`` and ``mean_overlap``, ``undefined_pairs`` below the limit, and the number of
        ``set_aside_columns`` (observed in fewer than 5 % of the rows, or in fewer than 30 or half of them).

    Raises:
        ConfigurationError: Unknown kind, fewer than two samples, only constant columns (correlation and covariance),
            or numbers so large that their squares overflow.
    """
    _checked_kind(kind)
    start = time.perf_counter()
    matrix, n, detail = _matrix_of(moments.compute() if isinstance(moments, InputMoments) else moments, kind)
    dim = len(matrix)
    values = torch.linalg.eigvalsh(matrix).flip(0).cpu()
    largest = float(values[0])
    floor = FLOOR_FACTOR * torch.finfo(torch.float64).eps * max(dim, n**0.5) * largest
    noise, trace = 0.0, float(matrix.diagonal().sum())
    unrepaired: Tensor | None = None
    if isinstance(moments, IncompleteMoments):
        smallest = float(values[-1])
        detail |= {"negative_eigenvalues": int((values < -floor).sum()), "smallest_eigenvalue": smallest}
        noise = max(floor, -smallest, moments.resolution * trace / dim)
        unrepaired, values = values, values.clamp_min(0.0)
        trace = float(values.sum())
    kept = values[: min(n, dim)].clone()
    return Spectrum(
        eigenvalues=kept,
        residuals=torch.zeros_like(kept),
        largest=largest,
        smallest=float(values[-1]),
        dim=dim,
        rank_bound=min(n if kind == "second_moment" else n - 1, dim),
        num_samples=n,
        trace=Estimate(trace),
        matrix=kind,
        floor=floor,
        unrepaired=unrepaired,
        noise_floor=noise,
        cost=Cost(seconds=seconds + time.perf_counter() - start, method="moments"),
        status=Status.EXACT,
        detail=detail,
    )


def _matrix_of(moments: AnyMoments, kind: InputKind) -> tuple[Tensor, int, dict[str, str | int | float]]:
    """The matrix, the number of rows behind it, and facts about its columns."""
    n = moments.num_samples
    if n < 2:
        raise ConfigurationError(f"A spectrum of the inputs needs at least two samples, but {n} was given; pass more.")
    if isinstance(moments, IncompleteMoments):
        if not moments.used.any() and not (kind == "second_moment" and moments.constant.any()):
            aside, constant = int(moments.set_aside.sum()), int(moments.constant.sum())
            raise ConfigurationError(
                f"The {kind} of the inputs was asked for, but of {len(moments.used)} columns {constant} are constant "
                f"and {aside} are NaN in too many of the {n} samples (observed in fewer than {percent(LEAST_OBSERVED)} "
                f"or fewer than {fewest_common(n)}); pass inputs that vary and are observed."
            )
        found = torch.from_numpy(np.ascontiguousarray(moments.matrix(kind)))
        counted = {"constant_columns": int(moments.constant.sum()), "num_features": len(moments.used)}
        return found, n, {**counted, **moments.detail()}
    mean = moments.mean.reshape(-1)
    scatter = moments.scatter.reshape(len(mean), len(mean))
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
    return _matrix(n, mean, scatter, used, kind), n, {"constant_columns": constant, "num_features": len(mean)}


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


def checked_missing(missing: str) -> Missing:
    """What is done about missing values, checked.

    Raises:
        ConfigurationError: For another word.
    """
    if missing not in get_args(Missing):
        raise ConfigurationError(f"missing={missing!r} is unknown; choose one of {', '.join(get_args(Missing))}.")
    return cast(Missing, missing)


def row_chunks(inputs: object, *, wait: bool) -> Iterator[tuple[Tensor, int]]:
    """Rows (n, d), and how many there are in all as far as that is known.

    Args:
        inputs: As for :func:`input_spectrum`.
        wait: Whether to join small batches, which are to be dealt out to blocks.
    """
    if is_frame(inputs):
        inputs = frame_rows(inputs)
    if isinstance(inputs, (Tensor, np.ndarray)):
        rows = as_rows(inputs)
        yield from [(rows, len(rows))] if len(rows) else []
        return
    held: list[Tensor] = []
    for batch in _batches(inputs):
        rows = as_rows(_first(batch))
        if len(rows):
            held.append(rows)
        if held and (not wait or sum(map(len, held)) >= DEALT_ROWS):
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(held: list[Tensor]) -> tuple[Tensor, int]:
    widths = sorted({rows.shape[1] for rows in held})
    if len(widths) > 1:
        raise ConfigurationError(
            f"Batches of {widths[0]} and of {widths[-1]} features were found; give every input the same shape (resize, "
            "crop or pad)."
        )
    rows = held[0] if len(held) == 1 else torch.cat(held)
    return rows, len(rows)


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
