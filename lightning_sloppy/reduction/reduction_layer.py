"""The reduction as the first layer of a network: buffers alone, so that it is saved with the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.reduction.column_reduction import ColumnReduction

BUFFERS = ("columns", "means", "scale", "directions", "utf8_names")

HALF = (torch.float16, torch.bfloat16)


class ReductionLayer(nn.Module):
    """Rows of all columns in, reduced rows out: the numbers of ``SpectralReducer.transform``.

    ``ReductionLayer()`` is empty. It takes the sizes of the first state that it loads, so that a network which is built
    in another process needs neither the reducer nor its sizes. A layer that is not empty loads a state of its own sizes
    only, like every layer of torch.

    Attributes:
        columns: Places of the columns that stay, (k,).
        means: Of all d columns over the training rows, (d,).
        scale: What the centred columns are divided by, (k,).
        directions: (k, m); (k, 0) without projection.
        utf8_names: Names of the d columns as bytes with zeros between them; see :attr:`names`.

    >>> layer = ReductionLayer()
    >>> layer
    ReductionLayer(empty)
    """

    columns: Tensor
    means: Tensor
    scale: Tensor
    directions: Tensor
    utf8_names: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", torch.empty(0, dtype=torch.int64))
        self.register_buffer("means", torch.empty(0, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(0, dtype=torch.float64))
        self.register_buffer("directions", torch.empty(0, 0, dtype=torch.float64))
        self.register_buffer("utf8_names", torch.empty(0, dtype=torch.uint8))

    @classmethod
    def of(cls, reduction: ColumnReduction) -> ReductionLayer:
        """The layer of a reduction, in float64."""
        layer = cls()
        kept = len(reduction.columns)
        layer.columns = torch.from_numpy(reduction.columns.astype(np.int64))
        layer.means = torch.from_numpy(np.nan_to_num(reduction.means))
        layer.scale = torch.from_numpy(reduction.scale.copy())
        directions = np.empty((kept, 0)) if reduction.directions is None else reduction.directions.copy()
        layer.directions = torch.from_numpy(directions)
        layer.utf8_names = torch.tensor(
            list("\0".join(reduction.names).encode("utf-8", "surrogatepass")), dtype=torch.uint8
        )
        return layer

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that go in, in their order, (d,)."""
        text = bytes(self.utf8_names.tolist()).decode("utf-8", "surrogatepass")
        return tuple(text.split("\0")) if self.in_features else ()

    @property
    def in_features(self) -> int:
        """Columns that go in, d."""
        return len(self.means)

    @property
    def out_features(self) -> int:
        """Numbers that come out: k, or m with a projection."""
        return self.directions.shape[1] or len(self.columns)

    def forward(self, rows: Tensor) -> Tensor:
        """Reduce rows.

        Args:
            rows: (..., d), NaN where missing. Without projection NaN stays; in a projection it counts as the mean.

        Returns:
            (..., k) or (..., m), of the type of ``rows``. The projection is computed in the type of the buffers, which
            is float64 unless you change it.

        Raises:
            ConfigurationError: Another number of columns, or an empty layer.
        """
        if not rows.ndim or rows.shape[-1] != self.in_features or not self.in_features:
            raise ConfigurationError(self._refusal(rows))
        chosen = rows[..., self.columns]
        if not self.directions.shape[1]:
            return chosen
        kind = rows.dtype if rows.is_floating_point() else torch.get_default_dtype()
        centred = (chosen.to(self.means.dtype) - self.means[self.columns]) / self.scale
        return (centred.where(~centred.isnan(), torch.zeros_like(centred)) @ self.directions).to(kind)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        if not self.in_features:
            return "empty"
        how = ", projected" if self.directions.shape[1] else ""
        return f"in_features={self.in_features}, out_features={self.out_features}{how}"

    def _apply(self, fn: Any, recurse: bool = True) -> ReductionLayer:
        """Half precision leaves the buffers as they are: a mean of 1,000 beside a deviation of 1 would be lost."""
        before = [(name, getattr(self, name)) for name in BUFFERS]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before:
            if getattr(self, name).dtype in HALF:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def _refusal(self, rows: Tensor) -> str:
        if not self.in_features:
            return "A ReductionLayer without a state was called; load a checkpoint, or make it with as_module()."
        return (
            f"Rows of {self.in_features} columns are needed, as the reducer was fitted on, but an input of shape "
            f"{tuple(rows.shape)} was given; pass shape (..., {self.in_features})."
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """An empty layer first takes the sizes and types of what it is about to load."""
        if not self.in_features and all(isinstance(state_dict.get(prefix + name), Tensor) for name in BUFFERS):
            for name in BUFFERS:
                mine, given = getattr(self, name), state_dict[prefix + name]
                setattr(self, name, torch.empty_like(given, device=mine.device))
        super()._load_from_state_dict(state_dict, prefix, *others)
