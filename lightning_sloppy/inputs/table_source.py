"""A table from whatever people have: files, frames, arrays, tensors, data sets. Read in chunks, as often as needed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.inputs.idx_files import looks_like_idx, read_idx_array
from lightning_sloppy.inputs.rows import MAX_FEATURES
from lightning_sloppy.inputs.table_text import not_utf8, opened, sniffed

Chunk: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""Rows: one array (n, d) of numbers, or an array (n,) for each column."""

_OVERFLOW = "cells beyond the last column"

CHUNK_CELLS = 4_000_000
"""Cells read at once."""

MISSING_WORDS = frozenset(
    {"", "NaN", "nan", "NAN", "-NaN", "-nan", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "?", "null", "NULL", "None"}
)
"""Cells of text that mean a missing value."""


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


def table_source(data: Any, missing: Sequence[str] = (), header: bool | None = None) -> TableSource:
    """Recognise a table.

    Args:
        data: Path of a ``.csv``, ``.tsv`` or other text file, ``.parquet``, ``.npy``, ``.npz`` or IDX file; a pandas or
            polars frame, an Arrow table, a mapping of names to columns, a tensor or array (n, ...), a Dataset or
            DataLoader (of pairs, the first is taken).
        missing: Further words that mean a missing value, in files of text.
        header: Whether the first line of a file of text names the columns; None: as it looks.

    Raises:
        ConfigurationError: Unreadable, empty, of another kind, or more than 8,192 columns.
        MissingExtraError: Where pandas or pyarrow is needed and not installed.
    """
    if header is not None and not is_text_file(data):
        raise ConfigurationError(
            "Whether the first line names the columns was given, but only files of text have one; leave it out."
        )
    source = _recognised(data, frozenset(missing) | MISSING_WORDS, header)
    twice = (
        {name for name in source.names if source.names.count(name) > 1}
        if len(set(source.names)) < len(source.names)
        else set()
    )
    if twice:
        raise ConfigurationError(
            f"{source.origin} names the column {min(twice)!r} twice; give every column its own name."
        )
    if not source.names:
        raise ConfigurationError(f"{source.origin} has no columns; give a table with at least one.")
    if len(source.names) > MAX_FEATURES:
        d = len(source.names)
        raise ConfigurationError(
            f"{source.origin} has {d:,} columns, but at most {MAX_FEATURES:,} are handled (their matrix would take "
            f"{8 * d**2 / 1024**3:.1f} GiB); select or pool columns first."
        )
    return source


def is_text_file(data: Any) -> bool:
    """Whether something is the path of a file of text."""
    if not isinstance(data, (str, Path)):
        return False
    path = Path(data)
    return path.suffix.lower() not in (".parquet", ".pq", ".npy", ".npz") and not looks_like_idx(path.name)


def need(package: str, why: str) -> None:
    """Check that an optional package is installed.

    Raises:
        MissingExtraError: Names the extra.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{why} needs {package}, which is not installed: pip install 'lightning-sloppy[data]'.")


def _recognised(data: Any, missing: frozenset[str], header: bool | None) -> TableSource:
    if isinstance(data, (str, Path)):
        return _file(Path(data).expanduser(), missing, header)
    module = type(data).__module__.split(".")[0]
    if module == "pandas" and hasattr(data, "columns"):
        return _pandas(data)
    if module == "polars" and type(data).__name__ in ("DataFrame", "LazyFrame"):
        if hasattr(data, "collect"):
            data = data.collect()
        columns = [data[name].to_numpy() for name in data.columns]
        return _columns(data.columns, columns, "The polars frame")
    if module == "pyarrow" and hasattr(data, "to_pandas"):
        return _pandas(data.to_pandas())
    if isinstance(data, Mapping):
        return _named_arrays({str(name): _array(values) for name, values in data.items()}, "The mapping")
    if isinstance(data, TensorDataset):
        return _matrix(_array(data.tensors[0]), "The data set")
    if isinstance(data, (Dataset, DataLoader)):
        return _dataset(data)
    if isinstance(data, (Tensor, np.ndarray)):
        return _matrix(_array(data), f"The {'tensor' if isinstance(data, Tensor) else 'array'}")
    if isinstance(data, (list, tuple)) and data:
        try:
            return _matrix(_array(data), "The list")
        except ValueError as error:
            raise ConfigurationError(f"The list given as a table has rows of different lengths ({error}).") from error
    raise ConfigurationError(
        f"A table was asked for, but a {type(data).__name__} was given; pass a path, a pandas or polars frame, an "
        "array or tensor of shape (n, ...), or a data set."
    )


def _file(path: Path, missing: frozenset[str], header: bool | None) -> TableSource:
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; give one file.")
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}; look at the path.")
    if path.stat().st_size == 0:
        raise ConfigurationError(f"{path} is empty; give a file with at least two rows.")
    kind = path.suffix.lower()
    if kind in (".parquet", ".pq"):
        return _parquet(path)
    if kind in (".npy", ".npz"):
        return _numpy(path)
    if looks_like_idx(path.name):
        return _matrix(read_idx_array(path), str(path))
    return _text(path, missing, header)


def _text(path: Path, missing: frozenset[str], header: bool | None) -> TableSource:
    need("pandas", f"Reading {path.name}")
    dialect = sniffed(path, missing, header)
    kept = list(range(1 if dialect.row_numbers else 0, len(dialect.names)))

    def chunks() -> Iterator[Chunk]:
        import pandas

        try:
            with opened(path) as file:
                reader = pandas.read_csv(
                    file,
                    sep=dialect.delimiter,
                    decimal=dialect.decimal,
                    header=None,
                    skiprows=dialect.header,
                    names=[*dialect.names, _OVERFLOW],
                    index_col=False,
                    keep_default_na=False,
                    na_values=sorted(missing),
                    skipinitialspace=True,
                    encoding="utf-8-sig",
                    low_memory=False,
                    chunksize=max(1, CHUNK_CELLS // len(dialect.names)),
                    on_bad_lines="error",
                )
                with reader:
                    for frame in reader:
                        extra = frame[_OVERFLOW].notna()
                        if extra.any():
                            raise ConfigurationError(
                                f"{path} cannot be read as a table: row {int(extra.idxmax())} (counted from 0) has "
                                f"more than {len(dialect.names)} cells."
                            )
                        yield [frame.iloc[:, index].to_numpy() for index in kept]
        except UnicodeDecodeError as error:
            raise ConfigurationError(not_utf8(path, error)) from error
        except (pandas.errors.ParserError, pandas.errors.EmptyDataError, ValueError, OSError, EOFError) as error:
            if isinstance(error, ConfigurationError):
                raise
            said = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
            raise ConfigurationError(f"{path} cannot be read as a table: {said}.") from error

    return TableSource(tuple(dialect.names[index] for index in kept), chunks, str(path), dialect.note)


def _parquet(path: Path) -> TableSource:
    need("pyarrow", f"Reading {path.name}")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(field for field in file.schema_arrow.names if not field.startswith("__index_level_"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}).") from error

    def chunks() -> Iterator[Chunk]:
        try:
            with parquet.ParquetFile(path) as file:
                size = max(1, CHUNK_CELLS // max(len(names), 1))
                for batch in file.iter_batches(batch_size=size, columns=list(names)):
                    yield [_arrow(batch.column(index)) for index in range(batch.num_columns)]
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigurationError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}).") from error

    return TableSource(names, chunks, str(path))


def _arrow(column: Any) -> npt.NDArray[Any]:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    if column.null_count and (pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type)):
        column = column.cast(pyarrow.float64() if pyarrow.types.is_integer(column.type) else pyarrow.uint8())
        return np.asarray(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _numpy(path: Path) -> TableSource:
    try:
        if path.suffix.lower() == ".npy":
            return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), str(path))
        with np.load(path, allow_pickle=False) as archive:
            return _named_arrays({name: archive[name] for name in archive.files}, str(path))
    except ConfigurationError:
        raise
    except Exception as error:  # a broken file may fail anywhere in the reader
        raise ConfigurationError(
            f"{path} is no file of numpy, or holds Python objects in place of numbers; save it anew with numpy.save."
        ) from error


def _named_arrays(arrays: Mapping[str, npt.NDArray[Any]], origin: str) -> TableSource:
    """Arrays of one length side by side: "x" for one column, "x 0", "x 1" for several; one matrix alone: 0, 1."""
    if len(arrays) == 1 and next(iter(arrays.values())).ndim > 1:
        return _matrix(next(iter(arrays.values())), origin)
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
    return _columns(names, columns, origin)


def _pandas(frame: Any) -> TableSource:
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

    return _columns(names, [column(index) for index in range(len(names))], "The pandas frame")


def _columns(names: Sequence[str], columns: Sequence[npt.NDArray[Any]], origin: str) -> TableSource:
    size = max(1, CHUNK_CELLS // max(len(columns), 1))

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(columns[0]) if columns else 0, size):
            yield [column[start : start + size] for column in columns]

    return TableSource(tuple(map(str, names)), chunks, origin)


def _matrix(values: npt.NDArray[Any], origin: str) -> TableSource:
    if values.dtype.kind == "c":
        raise ConfigurationError(f"{origin} holds complex numbers; give real and imaginary parts as columns.")
    if values.dtype.names:  # a structured array names its columns
        return _columns(values.dtype.names, [values[name] for name in values.dtype.names], origin)
    if values.ndim == 0:
        raise ConfigurationError(f"{origin} is a single number; a table needs the shape (n, ...).")
    shape = values.shape[1:]
    if values.ndim == 1:
        return _columns(["0"], [np.asarray(values)], origin)
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


def _dataset(data: Any) -> TableSource:
    """Samples one by one, or batches of a loader; of a pair the first part."""
    batched = isinstance(data, DataLoader)

    def samples() -> Iterator[npt.NDArray[Any]]:
        if batched or isinstance(data, IterableDataset):
            yield from (_array(_inputs(item)) for item in data)
        else:
            yield from (_array(_inputs(data[index])) for index in range(len(data)))

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


def _array(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray((values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy())
    if isinstance(values, np.ma.MaskedArray):  # what is masked is missing
        values = np.ma.filled(values.astype(float), np.nan) if values.dtype.kind in "biuf" else values.filled(None)
    return np.asarray(values)
