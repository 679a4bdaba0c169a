"""IDX files, the format in which MNIST and its relatives are published."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError

UNSIGNED_BYTE = 0x08

TYPES = {UNSIGNED_BYTE: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Types of the format, by their byte; numbers are big-endian."""


def read_idx(path: Path) -> Tensor:
    """One IDX file of unsigned bytes as a uint8 tensor; decompressed if its name ends in ``.gz``.

    The format: two zero bytes, one byte for the type, one for the number of dimensions, the dimensions as
    big-endian 32-bit integers, then the values in C order.

    Args:
        path: The file.

    Raises:
        ConfigurationError: If the file is no complete IDX file of unsigned bytes.
    """
    return torch.from_numpy(_values(path, {UNSIGNED_BYTE: "u1"}, "00 00 08", " of unsigned bytes"))


def read_idx_array(path: Path) -> npt.NDArray[Any]:
    """One IDX file of any type of the format.

    Args:
        path: The file, packed or not.

    Raises:
        ConfigurationError: If the file is no complete IDX file.
    """
    return _values(path, TYPES, "00 00 and a type", "")


def looks_like_idx(name: str) -> bool:
    """Whether a file name is one of the usual ones: ``...-idx3-ubyte``, ``....idx``, packed or not.

    >>> looks_like_idx("train-images-idx3-ubyte.gz"), looks_like_idx("table.csv")
    (True, False)
    """
    plain = name.lower().removesuffix(".gz")
    return plain.endswith((".idx", "-ubyte")) or ("idx" in plain and plain.rsplit("idx", 1)[1][:1].isdigit())


def _values(path: Path, types: dict[int, str], beginning: str, kind: str) -> npt.NDArray[Any]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); download the file again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in types:
        raise ConfigurationError(
            f"{path} should be an IDX file{kind}, but begins with {content[:4].hex(' ') or 'nothing'}"
            f" instead of {beginning}; download the file again, and end its name in .gz only if it is compressed."
        )
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else (0,)
    kept = np.dtype(types[content[2]])
    if len(content) < start or len(content) - start != math.prod(shape) * kept.itemsize:
        raise ConfigurationError(
            f"{path} declares {math.prod(shape)} values in the shape {shape}, but contains"
            f" {max(len(content) - start, 0) // kept.itemsize}: it is incomplete; download it again."
        )
    values = np.frombuffer(bytearray(content[start:]), dtype=kept).reshape(shape)
    return values.astype(kept.newbyteorder("="), copy=False)
