"""A table from whatever people have: files, frames, arrays, tensors, data sets. Read in chunks, as often as needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.inputs.idx_files import looks_like_idx, read_idx_array
from lightning_sloppy.inputs.rows import MAX_FEATURES
from lightning_sloppy.inputs.table_in_memory import (
    CHUNK_CELLS,
    Chunk,
    TableSource,
    as_array,
    of_columns,
    of_dataset,
    of_matrix,
    of_named_arrays,
    of_pandas,
    one_dimensional,
)
from lightning_sloppy.inputs.table_text import not_utf8, opened, sniffed

_OVERFLOW = "cells beyond the last column"

_NOT_READ = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "a spreadsheet"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON"),
    **dict.fromkeys((".feather", ".arrow", ".ipc"), "an Arrow file"),
    **dict.fromkeys((".h5", ".hdf", ".hdf5"), "an HDF5 file"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "a file of Python objects"),
}
"""Endings of tables that other tools write."""

MISSING_WORDS = frozenset(
    {"", "NaN", "nan", "NAN", "-NaN", "-nan", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "?", "null", "NULL", "None"}
)
"""Cells of text that mean a missing value."""


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
        name = {"sklearn": "scikit-learn"}.get(package, package)
        raise MissingExtraError(f"{why} needs {name}, which is not installed: pip install 'lightning-sloppy[data]'.")


def _recognised(data: Any, missing: frozenset[str], header: bool | None) -> TableSource:
    if isinstance(data, (str, Path)):
        return _file(Path(data).expanduser(), missing, header)
    module = type(data).__module__.split(".")[0]
    if module == "pandas" and hasattr(data, "columns"):
        return of_pandas(data)
    if module == "polars" and type(data).__name__ in ("DataFrame", "LazyFrame"):
        if hasattr(data, "collect"):
            data = data.collect()
        columns = [one_dimensional(data[name].to_numpy()) for name in data.columns]
        return of_columns(data.columns, columns, "The polars frame")
    if module == "pyarrow" and hasattr(data, "to_pandas"):
        return of_pandas(data.to_pandas())
    if isinstance(data, Mapping):
        return of_named_arrays({str(name): as_array(values) for name, values in data.items()}, "The mapping")
    if isinstance(data, TensorDataset):
        return of_matrix(as_array(data.tensors[0]), "The data set")
    if isinstance(data, (Dataset, DataLoader)):
        return of_dataset(data)
    if isinstance(data, (Tensor, np.ndarray)):
        return of_matrix(as_array(data), f"The {'tensor' if isinstance(data, Tensor) else 'array'}")
    if isinstance(data, (list, tuple)) and data:
        try:
            return of_matrix(as_array(data), "The list")
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
        return of_matrix(read_idx_array(path), str(path))
    if kind in _NOT_READ:
        raise ConfigurationError(f"{path} is {_NOT_READ[kind]}, which is not read; save its table as .csv or .parquet.")
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
            # With buffers made ahead, what was read of the file would stay in memory.
            with parquet.ParquetFile(path, pre_buffer=False) as file:
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
            return of_matrix(np.load(path, mmap_mode="r", allow_pickle=False), str(path))
        with np.load(path, allow_pickle=False) as archive:
            return of_named_arrays({name: archive[name] for name in archive.files}, str(path))
    except ConfigurationError:
        raise
    except Exception as error:  # a broken file may fail anywhere in the reader
        raise ConfigurationError(
            f"{path} is no file of numpy, or holds Python objects in place of numbers; save it anew with numpy.save."
        ) from error
