"""The prior of every bound here: a mixture over a fixed grid of precisions.

A grid written down after looking at which epsilon worked is no grid: it stands here, before any data.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

PRIOR_GRID: Final[tuple[float, ...]] = tuple(10.0 ** (-2.0 + 8.0 * j / 99.0) for j in range(100))
"""Precisions epsilon_j of the prior: 100, log-spaced from 1e-2 to 1e6, of equal weight."""

LOG_GRID_COST: Final[float] = math.log(len(PRIOR_GRID))
"""What the mixture costs at most against its best member: ln 100 = 4.6 nats."""


def mixture_log_ratio(log_ratios: Tensor) -> float:
    """``ln dQ/dP (w)`` for the uniform mixture P of J priors: ``-logsumexp_j(-ln J - ln dQ/dP_j (w))``.

    It is at most ``min_j ln dQ/dP_j (w) + ln J``, so a mixture never costs more than a union over its members.
    The same formula with KLs in place of log-ratios bounds the KL to the mixture from above.

    Args:
        log_ratios: ``ln dQ/dP_j (w)`` for every member, shape (J,), float64.

    Returns:
        The log-ratio to the mixture, in nats.

    >>> round(mixture_log_ratio(torch.full((100,), 3.0, dtype=torch.float64)), 12)
    3.0
    """
    return float(math.log(log_ratios.numel()) - torch.logsumexp(-log_ratios.to(torch.float64), dim=0))
