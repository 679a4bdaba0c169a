"""Bins of samples by where their energy lies, with edges that are fixed before any validation sample is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.rows import refuse_non_finite
from lightning_sloppy.metrics.principal_directions import (
    PrincipalDirections,
    principal_directions,
    squared_distance,
    tail_share,
)

EDGE_FRACTION = 0.2
"""Fraction of the training rows that give the edges."""

ROWS_FOR_A_BIN = 10
"""Training rows that each bin needs, so that every bin has at least about two rows behind its edges."""

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class EnergyBins:
    """Principal directions of the training inputs, and the edges of bins of the two measures.

    Attributes:
        directions: Of four fifths of the training inputs.
        edges: Inner edges of the K bins of each measure, ascending, (2, K - 1): quantiles over the other fifth.
    """

    directions: PrincipalDirections
    edges: Tensor

    @property
    def count(self) -> int:
        """Number of bins K."""
        return self.edges.shape[1] + 1

    def to(self, device: torch.device) -> EnergyBins:
        """The same on a device."""
        if self.edges.device == device:
            return self
        return EnergyBins(self.directions.to(device), self.edges.to(device))

    def state(self) -> dict[str, Any]:
        """Plain numbers and tensors, for a checkpoint."""
        return {"directions": self.directions.state(), "edges": self.edges.cpu()}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> EnergyBins:
        """The bins of a checkpoint."""
        return cls(PrincipalDirections.of_state(state["directions"]), state["edges"])

    def placed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each row by each measure, (2, n), K for rows that cannot be placed; and the standardised rows.

        A row belongs to the lowest bin whose upper edge is not below its value.
        """
        standardised = self.directions.standardised(rows)
        values = measured(self.directions, standardised)
        places = torch.searchsorted(self.edges, values.nan_to_num(nan=math.inf), right=False)
        return places.where(values.isfinite(), torch.full_like(places, self.count)), standardised


def measured(directions: PrincipalDirections, standardised: Tensor) -> Tensor:
    """Tail share and squared Mahalanobis distance of standardised rows, (2, n)."""
    energies = directions.energies(standardised)
    return torch.stack([tail_share(energies, directions.leading), squared_distance(energies, directions.variances)])


def gives_edges(indices: Tensor) -> Tensor:
    """Which training rows give the edges, by their place: about a fifth, as if at random.

    A hash of the place decides (the mixer of C. Wellons, "lowbias32"), so that the rows are the same for any batches,
    follow no period of the data, and no random number is drawn.

    Args:
        indices: Places among all training rows, (n,), integers.
    """
    mixed = indices.long() & _WORD
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _WORD
    return (mixed ^ (mixed >> 16)).double() < EDGE_FRACTION * (_WORD + 1)


class EnergyBinsReader:
    """Gathers training inputs chunk by chunk into :class:`EnergyBins`.

    Rows that were in the moments lie closer to them than fresh rows do, the more so the more columns there are. So the
    edges come from rows that were left out of the moments: a validation sample of the same distribution then falls
    into each bin equally often.

    Args:
        bins: Number of bins K of each measure.
        device: Where moments are summed.

    Raises:
        ConfigurationError: For fewer than two bins.
    """

    def __init__(self, bins: int, device: torch.device | None = None) -> None:
        if not isinstance(bins, int) or not 2 <= bins <= 100:
            raise ConfigurationError(f"bins={bins!r} is out of range; pass 2 to 100 quantile bins.")
        self.bins = bins
        self.moments = InputMoments(sync_on_compute=False).to(device or "cpu")
        self.held_out: list[Tensor] = []

    def add(self, rows: Tensor, indices: Tensor) -> None:
        """Add rows (n, d) with their places among all training rows, (n,).

        Raises:
            ConfigurationError: For rows that are not finite, or another number of columns than before.
        """
        refuse_non_finite(rows)
        chosen = gives_edges(indices).to(rows.device)
        self.moments.update(rows[~chosen])
        self.held_out.append(rows[chosen].double().cpu())

    def finish(self, over_ranks: Callable[[Any], list[Any]] | None = None) -> EnergyBins:
        """The bins from all rows that were added.

        Args:
            over_ranks: Gathers an object from all processes; None for one process. All of them must call this.

        Raises:
            ConfigurationError: For fewer than 10 rows for each bin, or columns that are all constant.
        """
        own = (self.moments.packed.cpu(), self.held_out)
        parts = [own] if over_ranks is None else over_ranks(own)
        moments = InputMoments(sync_on_compute=False)
        for packed, _ in parts:
            moments.merge_state({"packed": packed})
        rows = [each for _, held_out in parts for each in held_out]
        known = 0 if moments.num_features is None else int(moments.packed[-1, -1])
        total = known + sum(map(len, rows))
        if total < ROWS_FOR_A_BIN * self.bins:
            raise ConfigurationError(
                f"{self.bins} bins need at least {ROWS_FOR_A_BIN * self.bins} training rows for their edges, but "
                f"{total} were given; pass more rows, or a smaller bins=."
            )
        directions = principal_directions(moments.compute())
        values = measured(directions, directions.standardised(torch.cat(rows)))
        return EnergyBins(directions, quantile_edges(values, self.bins))


def quantile_edges(values: Tensor, bins: int) -> Tensor:
    """Inner edges of K bins with equal numbers of values each, (m, K - 1), for values (m, n).

    The j-th edge lies between the ranks next to ``j (n + 1) / K``, so that a fresh value is below it with probability
    ``j / K``. Measures without values have edges of NaN.
    """
    count = values.shape[1]
    ordered = values.sort(dim=1).values
    places = torch.arange(1, bins, dtype=torch.float64) * (count + 1) / bins - 1
    places = places.clamp(0, count - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=count - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], (places - below).expand(len(values), -1))
