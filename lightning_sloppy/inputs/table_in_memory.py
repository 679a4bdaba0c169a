"""Tables from what is in memory: arrays, frames, tensors, data sets. Read in chunks, as often as needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.rows import MAX_FEATURES

Chunk: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""Rows: one array (n, d) of numbers, or an array (n,) for each column."""

CHUNK_CELLS = 4_000_000
"""Cells read at once."""


@dataclass(frozen=True)
class TableSource:
    """A table that can be read from the start as often as wanted.

    Attributes:
        names: Of the columns.
        chunks: Gives the rows in their order.
        origin: What it is, for messages: the path, or the type of the object.
        note: What was decided while it was recognised, in one sentence; empty for nothing.
    """

    names: tuple[str, ...]
    chunks: Callable[[], Iterator[Chunk]]
    origin: str
    note: str = ""

    @property
    def inside(self) -> str:
        """The origin within a sentence: "the array", or the path."""
        return f"the {self.origin[4:]}" if self.origin.startswith("The ") else self.origin


def one_dimensional(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cells of several numbers, as lists and records become, one to a row."""
    if values.ndim == 1:
        return values
    cells = np.empty(len(values), dtype=object)
    cells[:] = list(values)
    return cells


def of_named_arrays(arrays: Mapping[str, npt.NDArray[Any]], origin: str) -> TableSource:
    """Arrays of one length side by side: "x" for one column, "x 0", "x 1" for several; one matrix alone: 0, 1."""
    if len(arrays) == 1 and next(iter(arrays.values())).ndim > 1:
        return of_matrix(next(iter(arrays.values())), origin)
    lengths = {name: len(values) for name, values in arrays.items() if values.ndim}
    if len(set(lengths.values())) != 1 or len(lengths) < len(arrays):
        said = ", ".join(f"{name} {values.shape}" for name, values in list(arrays.items())[:5])
        raise ConfigurationError(f"{origin} holds arrays of different lengths ({said}); give arrays with one row each.")
    names, columns = [], []
    for name, values in arrays.items():
        if values.ndim == 1:
            names.append(name)
            columns.append(values)
        else:
            flat = values.reshape(len(values), -1)
            names += [f"{name} {index}" for index in range(flat.shape[1])]
            columns += list(flat.T)
    return of_columns(names, columns, origin)


def of_pandas(frame: Any) -> TableSource:
    """The columns of a pandas frame; nullable numbers become float64 with NaN."""
    names = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]

    def column(index: int) -> npt.NDArray[Any]:
        series = frame.iloc[:, index]
        kind = str(series.dtype)
        if kind == "category":
            series = series.astype(object)
        elif kind[:1] in "IUFb" and series.isna().any():  # nullable integers, floats and booleans
            return np.asarray(series.to_numpy(dtype="float64", na_value=np.nan))
        elif kind[:1] in "IUF":
            return np.asarray(series.to_numpy(dtype="float64"))
        return np.asarray(series.to_numpy())

    return of_columns(names, [column(index) for index in range(len(names))], "The pandas frame")


def of_columns(names: Sequence[str], columns: Sequence[npt.NDArray[Any]], origin: str) -> TableSource:
    """Columns of one length with their names."""
    size = max(1, CHUNK_CELLS // max(len(columns), 1))

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(columns[0]) if columns else 0, size):
            yield [column[start : start + size] for column in columns]

    return TableSource(tuple(map(str, names)), chunks, origin)


def of_matrix(values: npt.NDArray[Any], origin: str) -> TableSource:
    """An array of shape (n, ...), whose columns are named by their numbers.

    Raises:
        ConfigurationError: Complex numbers, no rows or too many columns.
    """
    if values.dtype.kind == "c":
        raise ConfigurationError(f"{origin} holds complex numbers; give real and imaginary parts as columns.")
    if values.dtype.names:  # a structured array names its columns
        return of_columns(values.dtype.names, [values[name] for name in values.dtype.names], origin)
    if values.ndim == 0:
        raise ConfigurationError(f"{origin} is a single number; a table needs the shape (n, ...).")
    shape = values.shape[1:]
    if values.ndim == 1:
        return of_columns(["0"], [np.asarray(values)], origin)
    features = math.prod(shape)
    names = [",".join(map(str, index)) for index in np.ndindex(*shape)] if features <= 10 * MAX_FEATURES else None
    if names is None:
        raise ConfigurationError(
            f"{origin} has {features:,} numbers in each row, but at most {MAX_FEATURES:,} columns are handled; "
            "select or pool features first."
        )
    size = max(1, CHUNK_CELLS // max(features, 1))

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(values), size):
            part = np.asarray(values[start : start + size])
            part = part.reshape(len(part), -1)
            yield list(part.T) if part.dtype.kind in "OUSM" else part

    return TableSource(tuple(names), chunks, origin)


def of_dataset(data: Any) -> TableSource:
    """Samples one by one, or batches of a loader; of a pair the first part."""
    batched = isinstance(data, DataLoader)

    def samples() -> Iterator[npt.NDArray[Any]]:
        if batched or isinstance(data, IterableDataset):
            yield from (as_array(_inputs(item)) for item in data)
        else:
            yield from (as_array(_inputs(data[index])) for index in range(len(data)))

    def chunks() -> Iterator[Chunk]:
        held: list[npt.NDArray[Any]] = []
        rows = 0
        for values in samples():
            held.append(values.reshape(len(values), -1) if batched else values.reshape(1, -1))
            rows += len(held[-1])
            if rows * held[-1].shape[1] >= CHUNK_CELLS:
                yield _stacked(held)
                held, rows = [], 0
        if held:
            yield _stacked(held)

    first = next(iter(samples()), None)
    if first is None:
        raise ConfigurationError("The data set is empty; give one with at least two samples.")
    if batched and first.ndim < 2:
        raise ConfigurationError(
            f"A batch of the loader has the shape {first.shape}; inputs of shape (n, ...) are needed."
        )
    shape = first.shape[1:] if batched else first.shape
    names = tuple(",".join(map(str, index)) for index in np.ndindex(*shape)) if shape else ("0",)
    return TableSource(names, chunks, f"The {type(data).__name__}")


def _stacked(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise ConfigurationError(
            f"Samples of {widths[0]} and of {widths[-1]} numbers were found; give every sample the same shape."
        )
    return np.concatenate(parts)


def _inputs(item: Any) -> Any:
    if isinstance(item, (tuple, list)) and item:
        return item[0]
    if isinstance(item, Mapping):
        raise ConfigurationError(
            f"The samples are mappings with the keys {', '.join(map(str, list(item)[:5]))}; give a data set of "
            "tensors or of pairs (inputs, targets)."
        )
    return item


def as_array(values: Any) -> npt.NDArray[Any]:
    """An array of what a tensor, a list or an array holds, on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray((values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy())
    if isinstance(values, np.ma.MaskedArray):  # what is masked is missing
        values = np.ma.filled(values.astype(float), np.nan) if values.dtype.kind in "biuf" else values.filled(None)
    return np.asarray(values)
