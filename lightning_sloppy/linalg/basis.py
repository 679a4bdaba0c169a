"""Storage of a Lanczos basis: one tensor of rows on the device, on the host, or in half precision.

Memory: ``rows * p * itemsize`` bytes, plus that of the old rows while the basis grows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Storage = Literal["device", "half", "host"]

CHUNK_BYTES = 64 * 1024**2
"""Bytes of columns that are moved to the device at a time, if the rows are stored elsewhere or in half precision."""

SPARE = 10
"""Rows needed in addition to the k eigenpairs. With fewer, restarts hardly converge."""


class BasisMemoryError(ArithmeticError):
    """A basis of k + 10 vectors does not fit.

    Args:
        needed: Bytes of the smallest basis that is enough.
        available: Bytes available.
        fits: Largest k that fits; 0 if none does.
    """

    def __init__(self, *, needed: int, available: int, fits: int) -> None:
        super().__init__(
            f"the Lanczos basis needs {needed:,} bytes, but {available:,} are available; "
            + (f"k = {fits} would fit" if fits else "no k fits, select fewer parameters")
        )
        self.needed = needed
        self.available = available
        self.fits = fits


def rows_that_fit(dim: int, k: int, itemsize: int, memory: int | None) -> int | None:
    """Number of rows of a basis that fit into ``memory`` bytes; None without a limit.

    Raises:
        BasisMemoryError: If fewer than k + 10 rows fit, and fewer than the dimension of the space.
    """
    if memory is None:
        return None
    rows = memory // max(dim * itemsize, 1)
    least = min(k + SPARE, dim + 1)
    if rows < least:
        raise BasisMemoryError(needed=least * dim * itemsize, available=memory, fits=max(rows - SPARE, 0))
    return rows


def item_bytes(dtype: torch.dtype, storage: Storage) -> int:
    """Bytes per number in the basis."""
    return 2 if storage == "half" else dtype.itemsize


class Basis:
    """Rows of unit length that are added one by one.

    Args:
        rows: Initial number of rows.
        dim: Length p of a row.
        dtype: Data type of the vectors.
        device: Device of the vectors.
        storage: "device": without change. "host": in the memory of the CPU. "half": as bfloat16, rounded to 3 digits.

    Attributes:
        peak_bytes: Peak memory of the rows.
    """

    def __init__(
        self, rows: int, dim: int, *, dtype: torch.dtype, device: torch.device, storage: Storage = "device"
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._direct = storage == "device" or (storage == "host" and device.type == "cpu")
        self._store = torch.empty(
            rows,
            dim,
            dtype=torch.bfloat16 if storage == "half" else dtype,
            device="cpu" if storage == "host" else device,
        )
        self.peak_bytes = self._store.numel() * self._store.element_size()

    def __len__(self) -> int:
        """Number of rows that are allocated."""
        return len(self._store)

    def __getitem__(self, row: int) -> Tensor:
        """One row on the device."""
        return self._store[row].to(self._device, self._dtype)

    def put(self, row: int, vector: Tensor) -> None:
        """Write one row."""
        self._store[row].copy_(vector)

    def put_normalised(self, row: int, vector: Tensor, norm: Tensor) -> None:
        """Write ``vector / norm``; nothing is read back from the device."""
        scale = norm.clamp_min(torch.finfo(vector.dtype).tiny)
        if self._direct:
            torch.div(vector, scale, out=self._store[row])
        else:
            self._store[row].copy_(vector / scale)

    def rows(self, last: int) -> Tensor:
        """The first rows as one tensor on the device, (last, p)."""
        return self._store[:last].to(self._device, self._dtype)

    def project_out(self, vector: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """One pass of block classical Gram-Schmidt against some rows; returns the vector and its coefficients."""
        if self._direct:
            rows = self._store[first:last]
            coefficients = rows @ vector
            return torch.addmv(vector, rows.T, coefficients, alpha=-1), coefficients
        coefficients = vector.new_zeros(last - first)
        for part in self._parts(last - first):
            coefficients += self._moved(slice(first, last), part) @ vector[part]
        result = torch.cat(
            [
                torch.addmv(vector[part], self._moved(slice(first, last), part).T, coefficients, alpha=-1)
                for part in self._parts(last - first)
            ]
        )
        return result, coefficients

    def combined(self, rotation: Tensor) -> Tensor:
        """Combinations of the first rows, (p, l), for a rotation of shape (rows, l)."""
        rotation = rotation.to(self._device, self._dtype)
        count = len(rotation)
        if self._direct:
            return self._store[:count].T @ rotation
        return torch.cat([self._moved(slice(0, count), part).T @ rotation for part in self._parts(count)])

    def rotate(self, rotation: Tensor) -> None:
        """Replace the first rows by their combinations, in place and by columns: no second basis is needed."""
        rotation = rotation.to(self._device, self._dtype)
        count, kept = rotation.shape
        for part in self._parts(count):
            self._store[:kept, part] = (rotation.T @ self._moved(slice(0, count), part)).to(self._store)

    def grow(self, rows: int, used: int) -> None:
        """Allocate this many rows, and keep the used ones."""
        store = torch.empty(rows, self._store.shape[1], dtype=self._store.dtype, device=self._store.device)
        store[:used] = self._store[:used]
        self.peak_bytes = max(self.peak_bytes, (len(store) + len(self)) * store.shape[1] * store.element_size())
        self._store = store

    def _moved(self, rows: slice, part: slice) -> Tensor:
        return self._store[rows, part].to(self._device, self._dtype)

    def _parts(self, rows: int) -> list[slice]:
        width = max(CHUNK_BYTES // (max(rows, 1) * self._dtype.itemsize), 1)
        dim = self._store.shape[1]
        return [slice(start, min(start + width, dim)) for start in range(0, dim, width)]
