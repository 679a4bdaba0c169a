"""What is done about missing values: the correlation over common rows or of the Gaussian model, and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lightning_sloppy.display import percent
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.encoded_table import EncodedTable
from lightning_sloppy.inputs.gaussian_em import MOST_ITERATIONS, gaussian_em
from lightning_sloppy.inputs.nearest_matrix import Repaired, repaired
from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments, smallest_overlap
from lightning_sloppy.inspection.data_report import MissingReport
from lightning_sloppy.inspection.spectrum_numbers import participation_ratio


def treated(
    table: EncodedTable,
    missing: str,
    pairwise: Floats,
    undefined: npt.NDArray[np.bool_],
    tell: Callable[[str, int, int], None],
) -> tuple[MissingReport, Floats, Repaired]:
    """The correlation of a table with what was done about missing values.

    Args:
        table: The table.
        missing: "pairwise", "em" or "error", as for ``inspect``.
        pairwise: Correlations over the rows that two columns have in common, (d, d).
        undefined: Pairs with too few, (d, d).
        tell: Told how far the Gaussian model is.

    Returns:
        What was done, the correlation (d, d), and the nearest one without negative eigenvalues.

    Raises:
        ConfigurationError: Values are missing, and "error" was asked for.
    """
    moments = table.moments
    rate = 0.0 if moments.count is None else 1.0 - float(moments.count.diagonal().mean()) / table.rows
    matrix = repaired(pairwise, rows=table.rows)
    if moments.count is None:
        return MissingReport("none", rate, smallest_overlap=table.rows), pairwise, matrix
    if missing == "error":
        gaps = [name for name, count in zip(table.names, moments.count.diagonal(), strict=True) if count < table.rows]
        raise ConfigurationError(
            f"{table.origin} misses {percent(rate, 2)} of its cells, in {len(gaps):,} columns (the first: "
            f"{', '.join(gaps[:5])}), and missing='error' was asked for; fill them, or pass 'pairwise' or 'em'."
        )
    found = MissingReport(
        "pairwise",
        rate,
        undefined_pairs=int(undefined.sum()) // 2,
        smallest_overlap=smallest_overlap(moments),
        filled_with_means=_with_means(moments),
        negative_eigenvalues=matrix.negative_eigenvalues,
        smallest_eigenvalue=matrix.smallest_eigenvalue,
    )
    if missing == "pairwise":
        return replace(found, repair=matrix.largest_change), pairwise, matrix
    steps = iter(range(1, MOST_ITERATIONS + 1))
    fit = gaussian_em(
        table.values, advance=lambda: tell("Gaussian model", next(steps, MOST_ITERATIONS), MOST_ITERATIONS)
    )
    found = replace(found, method="em", iterations=fit.iterations, converged=fit.converged)
    return found, fit.correlation, repaired(fit.correlation, rows=table.rows)


def ratio_of(correlation: Floats) -> float:
    """Its participation ratio, after negative eigenvalues are set to zero."""
    return participation_ratio(repaired(correlation).eigenvalues)


def _with_means(moments: PairwiseMoments) -> float:
    """The participation ratio with column means in place of missing values."""
    diagonal = np.sqrt(moments.products.diagonal())
    scale = np.where(diagonal > 0, diagonal, 1.0)
    filled: Floats = moments.products / scale[:, None] / scale
    np.fill_diagonal(filled, 1.0)
    return ratio_of(filled)
