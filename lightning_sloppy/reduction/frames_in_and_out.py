"""Rows of numbers from what a transformer is given, and reduced rows in the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.frames import frame_rows, is_frame
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.rows import NAMED_COLUMNS
from lightning_sloppy.inputs.table_in_memory import as_array
from lightning_sloppy.reduction.column_reduction import Places


def names_of(data: Any) -> tuple[str, ...] | None:
    """Names of the columns of a frame; None for arrays, and for frames whose columns are numbers.

    Raises:
        ConfigurationError: Names of which some are text and some are not.
    """
    if not is_frame(data):
        return None
    if type(data).__name__ == "LazyFrame":
        return tuple(data.collect_schema().names())
    labels = list(data.column_names if hasattr(data, "column_names") else data.columns)
    text = [isinstance(label, str) for label in labels]
    if all(text):
        return tuple(map(str, labels))
    if any(text):
        other = labels[text.index(False)]
        raise ConfigurationError(
            f"Some column names are text and some are not (the first: {other!r}); give every column a name of text."
        )
    return None


def rows_of(data: Any, fewest: int, estimator: Any) -> npt.NDArray[Any]:
    """Rows (n, d) in float32 or float64, NaN where missing.

    Args:
        data: Frame, array, tensor or nested lists.
        fewest: Rows that are needed.
        estimator: Named in errors.

    Raises:
        ConfigurationError: Text, complex or infinite numbers, another shape, too few rows.
        TypeError: Sparse matrices, and objects that are no numbers.
    """
    from sklearn.utils import check_array

    values = frame_rows(data) if is_frame(data) else _plain(data)
    if isinstance(values, np.ndarray) and values.ndim != 2:
        raise ConfigurationError(
            f"Reshape your data to rows and columns (n, d), with reshape(1, -1) if it is one row; an array of shape "
            f"{values.shape} was given."
        )
    try:
        found = check_array(
            values,
            dtype=[np.float64, np.float32],
            ensure_min_samples=fewest,
            estimator=estimator,
            **{_finite(check_array): False},
        )
    except ValueError as error:
        raise ConfigurationError(str(error).splitlines()[0]) from error
    infinite = np.isinf(found)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        names = names_of(data)
        raise ConfigurationError(
            f"Row {row} (counted from 0) of column {column if names is None else repr(names[column])} is infinite; "
            "correct it, or set it to NaN if it is missing."
        )
    return np.asarray(found)


def refuse_other_columns(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """Check the names of columns, as scikit-learn does: all of them, and in the same order.

    Args:
        found: Names given.
        expected: Names needed.
        where: The attribute that lists them.

    Raises:
        ConfigurationError: Names what is missing, what is new, or the first that is elsewhere.
    """
    if list(found) == list(expected):
        return
    missing, new = [each for each in expected if each not in found], [each for each in found if each not in expected]
    said = [f"{words} {_some(names)}" for words, names in (("missing:", missing), ("unknown:", new)) if names]
    if not said:
        pairs = enumerate(zip(found, expected, strict=False))
        other = [f"place {at} is {name!r}, but was {before!r}" for at, (name, before) in pairs if name != before]
        said = [f"in another order ({other[0]})" if other else f"twice: {_some(found[len(expected) :])}"]
    raise ConfigurationError(
        f"The columns are not those of fit, {'; '.join(said)}; select them by name in the order of {where}."
    )


def chosen_columns(frame: Any, columns: Places) -> Any:
    """Some columns of a frame, with their own types."""
    if hasattr(frame, "iloc"):
        return frame.iloc[:, columns]
    if hasattr(frame, "collect_schema") and hasattr(frame, "collect"):
        return frame.select([frame.collect_schema().names()[column] for column in columns])
    return frame.select([frame.columns[column] for column in columns] if hasattr(frame, "rows") else columns.tolist())


def frame_like(frame: Any, names: Sequence[str], values: Floats) -> Any:
    """A frame of the same kind with other columns, and the same index where there is one."""
    if hasattr(frame, "iloc"):
        import pandas

        return pandas.DataFrame(values, index=frame.index, columns=list(names))
    if type(frame).__module__.split(".")[0] == "polars":
        import polars

        made = polars.DataFrame(values, schema=list(names), orient="row")
        return made.lazy() if hasattr(frame, "collect") else made
    import pyarrow

    return pyarrow.table(dict(zip(names, values.T, strict=True)))


def _plain(data: Any) -> Any:
    """An array, or what scikit-learn is to judge."""
    if isinstance(data, (Tensor, np.ma.MaskedArray)):
        data = as_array(data)
    if isinstance(data, (list, tuple)):
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ConfigurationError("The rows have different lengths; give every row the same columns.") from error
    if isinstance(data, np.ndarray):
        if data.dtype.kind in "mM":
            raise ConfigurationError("The array holds dates or durations; pass numbers.")
        cells = enumerate(data.flat) if data.dtype.kind in "USO" else ()
        text = next((place for place, cell in cells if isinstance(cell, (str, bytes))), None)
        if text is not None:
            where = ", ".join(map(str, np.unravel_index(text, data.shape)))
            raise ConfigurationError(
                f"The array holds text (the first at [{where}]); encode it as numbers, or leave that column out."
            )
    return data


def _finite(check: Any) -> str:
    """The name of an argument, which scikit-learn 1.6 changed."""
    from inspect import signature

    return "ensure_all_finite" if "ensure_all_finite" in signature(check).parameters else "force_all_finite"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_COLUMNS]) + (
        f" and {len(names) - NAMED_COLUMNS} more" if len(names) > NAMED_COLUMNS else ""
    )
