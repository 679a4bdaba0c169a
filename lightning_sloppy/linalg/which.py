"""Selection of eigenvalues by magnitude or by the ends of the spectrum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Which = Literal["magnitude", "largest", "smallest", "both"]


def urgency(values: Tensor, which: Which) -> Tensor:
    """Priority of each value: the k highest are selected. For both ends it is the distance from the middle.

    >>> urgency(torch.tensor([-3.0, 1.0]), "smallest").tolist()
    [3.0, -1.0]
    """
    if which == "magnitude":
        return values.abs()
    if which == "both":
        return (values - (values.max() + values.min()) / 2).abs()
    return values if which == "largest" else -values


def chosen(values: Tensor, k: int, which: Which) -> Tensor:
    """Indices of the k selected values, ordered by descending signed value.

    >>> chosen(torch.tensor([-5.0, 1.0, 2.0, 4.0]), 3, "both").tolist()
    [3, 2, 0]
    """
    picked = [urgency(values, side).argsort(descending=True, stable=True)[:count] for side, count in sides(which, k)]
    indices: Tensor = torch.unique(torch.cat(picked)) if len(values) < k else torch.cat(picked)
    return indices[values[indices].argsort(descending=True, stable=True)]


def sides(which: Which, k: int) -> list[tuple[Which, int]]:
    """The ends of a spectrum from which k pairs are taken: for "both" the larger half from the top."""
    if which != "both":
        return [(which, k)]
    ends: list[tuple[Which, int]] = [("largest", (k + 1) // 2), ("smallest", k // 2)]
    return [(side, count) for side, count in ends if count > 0]
