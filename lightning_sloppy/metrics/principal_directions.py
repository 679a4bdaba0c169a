"""Principal directions of standardised rows, and where the energy of other rows lies in them. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.moments import Moments

FLOOR = 1e-6
"""Smallest variance of a direction in a distance, where the mean over all directions is 1. A direction in which the
training rows vary by less than a thousandth of a column's deviation may hold rounding errors only."""

HELD = 0.95
"""Fraction of the trace that the directions before the tail hold."""

NOTHING = 1e-10
"""Fraction of the trace that counts as rounding errors of single precision."""

_TENSORS = ("mean", "deviation", "variances", "vectors")


@dataclass(frozen=True)
class PrincipalDirections:
    """Eigenvectors of the correlation matrix of n rows, with what standardises other rows in the same way.

    Attributes:
        num_rows: n.
        mean: Column means, (d,), float64.
        deviation: Column deviations (divided by n), (d,); 0 where a column is constant.
        variances: Eigenvalues of the correlation matrix of the r columns that vary, descending, (r,). Their mean is 1.
        vectors: Eigenvectors in columns, (r, r).
        leading: How many directions together hold ``HELD`` of the trace; the others are the tail.
    """

    num_rows: int
    mean: Tensor
    deviation: Tensor
    variances: Tensor
    vectors: Tensor
    leading: int

    @property
    def num_columns(self) -> int:
        """Number of columns d."""
        return len(self.mean)

    @property
    def tail(self) -> int:
        """Number of directions in the tail."""
        return len(self.variances) - self.leading

    def to(self, device: torch.device) -> PrincipalDirections:
        """The same on a device."""
        if self.mean.device == device:
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def state(self) -> dict[str, Any]:
        """Plain numbers and tensors, for a checkpoint."""
        tensors = {name: getattr(self, name).cpu() for name in _TENSORS}
        return {"num_rows": self.num_rows, "leading": self.leading, **tensors}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> PrincipalDirections:
        """The directions of a checkpoint."""
        return cls(**state)

    def standardised(self, rows: Tensor) -> Tensor:
        """Rows (n, d) minus the mean, divided by the deviation, (n, d), float64; 0 in constant columns."""
        return self.scaled(rows.double() - self.mean)

    def scaled(self, differences: Tensor) -> Tensor:
        """Differences of rows (n, d) divided by the deviation; 0 in constant columns."""
        varies = self.deviation > 0
        return torch.where(varies, differences.double() / self.deviation.where(varies, self.deviation + 1.0), 0.0)

    def energies(self, standardised: Tensor) -> Tensor:
        """Squared coordinates of standardised rows in the principal directions, (n, r).

        The directions are orthonormal, so the sum over them is the squared length of the standardised row.
        """
        return (standardised[:, self.deviation > 0] @ self.vectors).square()


def principal_directions(moments: Moments, *, what: str = "inputs") -> PrincipalDirections:
    """Principal directions of the rows behind some moments.

    With S the scatter, ``R = D S D`` with ``D = diag(S)^(-1/2)`` over the columns that vary, and ``R = U diag(v) U^T``.

    Args:
        moments: Of n rows.
        what: What the rows are, for errors.

    Raises:
        ConfigurationError: For fewer than two rows, numbers whose squares overflow, or columns that are all constant.
    """
    if moments.num_samples < 2:
        raise ConfigurationError(
            f"Principal directions of the {what} need at least two training rows, but {moments.num_samples} was given; "
            "pass more."
        )
    mean = moments.mean.reshape(-1)  # torchmetrics takes the dimensions from a single number
    scatter = moments.scatter.reshape(len(mean), len(mean))
    spread = scatter.diagonal()
    if not bool(torch.isfinite(spread.sum())):
        raise ConfigurationError(f"Squares of the {what} overflow; scale the columns, for instance by their deviation.")
    varies = spread > 0
    if not bool(varies.any()):
        raise ConfigurationError(
            f"All {len(spread)} columns of the training {what} are constant over {moments.num_samples} rows, so they "
            f"have no directions; pass {what} that vary."
        )
    kept = scatter[varies][:, varies]
    scale = kept.diagonal().rsqrt()
    correlation = kept * scale[:, None] * scale
    correlation.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(correlation)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    return PrincipalDirections(
        moments.num_samples,
        mean,
        (spread / moments.num_samples).sqrt(),
        values,
        vectors,
        leading_directions(values),
    )


def leading_directions(values: Tensor, held: float = HELD) -> int:
    """The smallest number of eigenvalues, in descending order, whose sum is at least a fraction of the trace.

    All of them where the others would hold nothing but rounding errors.

    >>> leading_directions(torch.tensor([3.0, 0.9, 0.05, 0.05])), leading_directions(torch.tensor([3.0, 1.0, 1e-15]))
    (2, 3)
    """
    sums = values.double().cumsum(0)
    found = min(int((sums < held * sums[-1] * (1 - 1e-12)).sum()) + 1, len(values))
    return found if float(values[found:].sum()) > NOTHING * float(sums[-1]) else len(values)


def tail_share(energies: Tensor, leading: int) -> Tensor:
    """Share of the energy of each row in the directions after the first ``leading`` ones, (n,), between 0 and 1.

    NaN if there is no such direction. A row without any energy has the share 0.
    """
    if leading >= energies.shape[1]:
        return torch.full_like(energies[:, 0], torch.nan)
    total = energies.sum(1)
    return energies[:, leading:].sum(1) / total.where(total != 0, torch.ones_like(total))


def squared_distance(energies: Tensor, variances: Tensor, floor: float = FLOOR) -> Tensor:
    """Squared Mahalanobis distance of each row, (n,): ``sum_i energy_i / max(v_i, floor)``.

    Over the n rows that gave the variances its mean is the number of directions with a variance above the floor, plus
    ``v_i / floor`` for each of the others.
    """
    return (energies / variances.clamp_min(floor)).sum(1)
