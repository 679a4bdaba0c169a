"""The arrays of a report that are saved beside its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_sloppy.inputs.encoded_table import EncodedTable
from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments

SAVED_BYTES = 16 * 1024**2
"""Memory for the moments of parts of the rows, as they are. Comparing takes others, of values that are cut off."""

MOST_PARTS = 64


def kept_parts(table: EncodedTable) -> list[PairwiseMoments]:
    """Moments of parts of the rows in their order, few enough to be saved."""
    d = len(table.names)
    matrices = 4 if table.moments.count is not None else 1
    most = int(max(2, min(MOST_PARTS, SAVED_BYTES // (8 * matrices * d * d), table.rows // 2)))
    if not table.sampled:
        return [PairwiseMoments.of(part) for part in np.array_split(table.values, most)]
    joined = []
    for part in np.array_split(np.arange(len(table.parts)), min(most, len(table.parts))):
        total = table.parts[part[0]]
        for index in part[1:]:
            total = total + table.parts[index]
        joined.append(total)
    return joined


def arrays_of(
    names: Sequence[str], means: Floats, deviations: Floats, correlation: Floats, parts: Sequence[PairwiseMoments]
) -> dict[str, Any]:
    """The arrays by name.

    ``names``, ``means``, ``deviations`` and ``correlation`` of the columns used; of each of B parts of the rows, in
    their order, ``part_rows`` (B,), ``part_count``, ``part_sums``, ``part_squares`` and ``part_products`` (B, d, d) as
    :class:`~lightning_sloppy.inputs.pairwise.PairwiseMoments` has them, of ``(value - means) / deviations``. Of
    complete data ``part_count`` and ``part_squares`` are left out and ``part_sums`` is (B, d).
    """
    found: dict[str, Any] = {
        "names": np.array(names),
        "means": means,
        "deviations": deviations,
        "correlation": correlation,
        "part_rows": np.array([part.rows for part in parts]),
        "part_products": np.stack([part.products for part in parts]),
    }
    if all(part.count is None for part in parts):
        return found | {"part_sums": np.stack([part.sums for part in parts])}
    full = [part.full() for part in parts]
    return found | {
        name: np.stack([np.asarray(matrices[index]) for matrices in full])
        for index, name in enumerate(("part_count", "part_sums", "part_squares"))
    }
