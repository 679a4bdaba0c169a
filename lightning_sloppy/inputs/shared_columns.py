"""Columns that carry the same information, from moments alone: their groups, and the moments without the repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_groups import ColumnGroup, column_groups
from lightning_sloppy.inputs.incomplete import IncompleteMoments, Mask
from lightning_sloppy.inputs.moment_blocks import AnyMoments
from lightning_sloppy.inputs.moments import Moments
from lightning_sloppy.inputs.pairwise import Floats, fewest_linked

MOST_GROUPED = 2_048
"""Columns up to which groups are sought: their correlation is formed once more, and compared entry by entry."""


def constant_columns(moments: AnyMoments) -> Mask:
    """Columns with one value, (d,)."""
    if isinstance(moments, IncompleteMoments):
        return moments.constant
    return np.asarray((moments.scatter.diagonal() <= 0).cpu().numpy())


def groups_of(moments: AnyMoments, names: Sequence[str]) -> list[ColumnGroup]:
    """Groups of columns with absolute correlations above .95; see :func:`column_groups`.

    None above 2,048 columns, and none in fewer than 6 rows, where columns are alike by chance.

    Args:
        moments: Of all rows.
        names: Of all columns, (d,).
    """
    if len(names) > MOST_GROUPED or moments.num_samples < fewest_linked(moments.num_samples):
        return []
    if isinstance(moments, IncompleteMoments):
        used, correlation = moments.used, moments.correlation
        if moments.overlap is not None:  # what is said of two columns needs more rows than their part in a spectrum
            correlation = np.where(moments.overlap < fewest_linked(moments.num_samples), 0.0, correlation)
    else:
        used = ~constant_columns(moments)
        scatter = moments.scatter.cpu().numpy()[np.ix_(used, used)]
        scale = 1.0 / np.sqrt(scatter.diagonal())
        correlation = scatter * scale[:, None] * scale
    kept: Floats = np.asarray(correlation)
    own = [name for name, use in zip(names, used, strict=True) if use]
    return column_groups(kept, own, np.full(len(own), float(moments.num_samples))) if own else []


def without_columns(moments: AnyMoments, dropped: Mask) -> AnyMoments:
    """The moments of the other columns.

    Args:
        moments: Of all rows.
        dropped: Columns to leave out, (d,).

    Raises:
        ConfigurationError: When none is left.
    """
    if dropped.all():
        raise ConfigurationError("All columns were to be left out; keep one at least.")
    if isinstance(moments, IncompleteMoments):
        inside = ~dropped[moments.used]
        return replace(
            moments,
            mean=moments.mean[~dropped],
            variance=moments.variance[~dropped],
            correlation=moments.correlation[np.ix_(inside, inside)],
            overlap=None if moments.overlap is None else moments.overlap[np.ix_(inside, inside)],
            used=moments.used[~dropped],
            constant=moments.constant[~dropped],
        )
    index = torch.from_numpy(np.flatnonzero(~dropped)).to(moments.scatter.device)
    return Moments(moments.num_samples, moments.mean.reshape(-1)[index], moments.scatter[index][:, index])
