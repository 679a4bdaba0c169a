"""From what people pass as inputs to rows of numbers, and the checks on the way."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError

Array: TypeAlias = "Tensor | npt.NDArray[Any]"

MAX_FEATURES = 8_192
"""Largest d: the d x d matrix then takes 512 MiB in float64 and its eigenvalues a few minutes on a CPU."""

NO_IDS = (torch.int8, torch.int16, torch.uint16, torch.uint32)
"""Types of integers that no embedding layer takes, so they are measurements."""

NAMED_COLUMNS = 5
"""Columns named in an error; the count says how many there are."""


def as_rows(inputs: Any) -> Tensor:
    """Return inputs of shape (n, ...) as a detached tensor of shape (n, d), without copying where that is possible.

    Raises:
        ConfigurationError: Neither tensor nor array, no samples dimension, no feature, more than 8,192 features, or
            integers that may be token ids, booleans or complex numbers.
    """
    values = _as_tensor(inputs)
    if values.ndim == 0:
        raise ConfigurationError("Inputs need a samples dimension, but a single number was given; pass shape (n, ...).")
    features = math.prod(values.shape[1:])
    if features == 0:
        raise ConfigurationError(f"Inputs of shape {tuple(values.shape)} have no features; pass at least one column.")
    if features > MAX_FEATURES:
        raise ConfigurationError(
            f"Second moments of {features:,} features were asked for, but at most {MAX_FEATURES:,} are handled (the "
            f"matrix would take {8 * features**2 / 1024**3:.1f} GiB); select or pool features first."
        )
    if values.dtype in NO_IDS:
        values = values.to(torch.float64)
    if not values.is_floating_point() and values.dtype != torch.uint8:
        raise ConfigurationError(
            f"Inputs of type {values.dtype} look like token ids or flags, whose moments mean nothing; pass what the "
            "embedding layer returns for them or, if they are measurements, cast them with .double()."
        )
    return values.detach().reshape(len(values), features)


def refuse_non_finite(rows: Tensor) -> None:
    """Check that every number is finite.

    Raises:
        ConfigurationError: Names the first five columns with NaN or infinity and says how many numbers and columns
            there are.
    """
    # A sum is finite only if its terms are, and costs a fraction of looking at each of them.
    if not rows.is_floating_point() or bool(torch.isfinite(rows.sum(dim=0)).all()):
        return
    bad = ~torch.isfinite(rows)
    columns = bad.any(dim=0).nonzero().flatten().tolist()
    if not columns:
        return
    named = ", ".join(map(str, columns[:NAMED_COLUMNS])) + (", ..." if len(columns) > NAMED_COLUMNS else "")
    raise ConfigurationError(
        f"Finite inputs are needed, but {int(bad.sum()):,} of {rows.numel():,} numbers are NaN or infinite, in "
        f"{len(columns):,} of {rows.shape[1]:,} columns (the first: {named}); fill them, or leave out those columns.",
        cause="not_finite",
    )


def refuse_infinite(rows: Tensor) -> None:
    """Check that no number is infinite; NaN is a missing value.

    Raises:
        ConfigurationError: Names the first row and column.
    """
    found = torch.isinf(rows).nonzero()
    if len(found):
        row, column = found[0].tolist()
        raise ConfigurationError(
            f"Finite or missing inputs are needed, but {len(found):,} of {rows.numel():,} numbers are infinite (the "
            f"first in row {row} of a batch, column {column}); correct them, or set them to NaN if they are missing."
        )


def _as_tensor(inputs: Any) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    if not isinstance(inputs, np.ndarray):
        raise ConfigurationError(
            f"Inputs must be a tensor or an array, but a {type(inputs).__name__} was given; pass shape (n, ...)."
        )
    try:
        # Torch takes neither negative strides nor foreign byte orders, and warns about arrays it may not write to.
        return torch.from_numpy(np.require(inputs, inputs.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise ConfigurationError(
            f"An array of type {inputs.dtype} cannot be read as numbers; convert it with .astype('float64')."
        ) from error
