"""Frames of pandas, polars and Arrow as rows of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.table_source import table_source


def is_frame(data: Any) -> bool:
    """Whether an object is a table of pandas, polars or Arrow."""
    module, name = type(data).__module__.split(".")[0], type(data).__name__
    return (
        (module == "pandas" and name == "DataFrame")
        or (module == "polars" and name in ("DataFrame", "LazyFrame"))
        or (module == "pyarrow" and name == "Table")
    )


def frame_rows(frame: Any) -> Floats:
    """The rows of a frame, (n, d), float64, NaN where a cell is missing. Integers and booleans are numbers.

    Raises:
        ConfigurationError: A column of text, dates or other objects, by its name.
    """
    source = table_source(frame)
    parts = []
    for chunk in source.chunks():
        columns = []
        for name, column in zip(source.names, chunk, strict=True):
            numbers = np.asarray(column)
            try:
                columns.append(_as_float(numbers))
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"The column {name!r} of {source.inside} holds no numbers; leave it "
                    "out or encode it, or look at the whole table with lightning_sloppy.inspect."
                ) from error
        parts.append(np.stack(columns, axis=1))
    if not parts:
        raise ConfigurationError("The frame has no rows; pass at least two.")
    return np.concatenate(parts)


def _as_float(column: npt.NDArray[Any]) -> Floats:
    if column.dtype.kind not in "biufO" or (column.dtype.kind == "O" and any(type(cell) is str for cell in column)):
        raise TypeError(column.dtype)
    return column.astype(np.float64)
