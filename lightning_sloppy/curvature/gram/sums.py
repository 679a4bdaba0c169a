"""Sums of inner products of per-sample gradients: one symmetric matrix, or one for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROW_BLOCK = 128
"""Rows multiplied at a time on a CPU, with those above them only: nearly half of the operations are saved."""

NARROW = 1_024
"""Columns below which gradients of several parameters are put together before they are multiplied."""

COLUMN_BLOCK = 32_768
"""Columns summed up in the data type of the gradients before they join the float64 total."""


class GramSums:
    """Gram matrices of the rows (sample i, cotangent r), at ``i R + r`` while they are built.

    Only what lies on or below the diagonal is added; :meth:`matrices` completes it.

    Args:
        samples: N.
        copies: R.
        keys: Name of the matrix that each parameter adds to.
        device: Where the gradients are.
    """

    def __init__(self, samples: int, copies: int, keys: Mapping[str, str], device: torch.device) -> None:
        self.samples = samples
        self.copies = copies
        self.device = device
        self._keys = keys
        # Apple's devices have no float64.
        self._home = torch.device("cpu") if device.type == "mps" else device
        self._blocked = device.type == "cpu"
        self._sums = {key: self.zeros() for key in dict.fromkeys(keys.values())}

    def zeros(self) -> Tensor:
        """The matrix of no parameter at all."""
        size = self.samples * self.copies
        return torch.zeros(size, size, dtype=torch.float64, device=self._home)

    def add_rows(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the inner products of formed gradients: some columns, (N, R, ...), of each of some parameters."""
        narrow: dict[str, list[Tensor]] = {}
        for name, part in gradients.items():
            rows = part.reshape(self.samples * self.copies, -1)
            if rows.shape[1] < NARROW:
                narrow.setdefault(self._keys[name], []).append(rows)
            else:
                self._add_products(self._sums[self._keys[name]], rows)
        for key, parts in narrow.items():
            self._add_products(self._sums[key], torch.cat(parts, dim=1))

    def _add_products(self, total: Tensor, rows: Tensor) -> None:
        step = ROW_BLOCK if self._blocked else len(rows)
        for column in range(0, rows.shape[1], COLUMN_BLOCK):
            part = rows[:, column : column + COLUMN_BLOCK]
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                total[start:stop, :stop] += (part[start:stop] @ part[:stop].T).to(self._home)

    def add_block(self, name: str, first: tuple[int, int], second: tuple[int, int], products: Tensor) -> None:
        """Add products of the rows that start at sample and cotangent ``first`` with those from ``second`` on.

        Args:
            name: The parameter.
            first: Sample and cotangent of the first row; not before ``second``.
            second: Sample and cotangent of the first column.
            products: (rows, columns).
        """
        row, column = (sample * self.copies + copy for sample, copy in (first, second))
        height, width = products.shape
        self._sums[self._keys[name]][row : row + height, column : column + width] += products.to(self._home)

    def matrices(self) -> dict[str, Tensor]:
        """The whole matrices (R N, R N), float64, with row ``r N + i``."""
        return {key: self._completed(lower) for key, lower in self._sums.items()}

    def _completed(self, lower: Tensor) -> Tensor:
        whole = lower.tril() + lower.tril(-1).T
        if self.copies == 1:
            return whole
        shape = (self.samples, self.copies, self.samples, self.copies)
        return whole.view(shape).permute(1, 0, 3, 2).reshape(whole.shape)
