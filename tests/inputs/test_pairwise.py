"""Pairwise-complete moments against numpy and pandas in float64, and the repair of what they give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import linalg

from lightning_sloppy.inputs.nearest_matrix import repaired
from lightning_sloppy.inputs.pairwise import PairwiseMoments, shift_and_scale, smallest_overlap

RNG = np.random.default_rng(0)


def with_gaps(rows: np.ndarray, part: float) -> np.ndarray:
    found = rows.copy()
    found[RNG.random(rows.shape) < part] = np.nan
    return found


MIXED = RNG.standard_normal((200, 6)) @ RNG.standard_normal((6, 6))


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_correlation_is_that_of_pandas(part: float) -> None:
    rows = with_gaps(MIXED, part)
    found, undefined = PairwiseMoments.of(rows).correlation()
    np.testing.assert_allclose(found, pd.DataFrame(rows).corr(), rtol=0, atol=1e-13)
    assert not undefined.any()


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_blocks_add_up_to_the_whole(part: float) -> None:
    rows = with_gaps(MIXED, part)
    rows[:50] = MIXED[:50]  # the first block is complete, the others are not
    total = PairwiseMoments.of(rows[:50])
    for start in range(50, 200, 37):
        total = total + PairwiseMoments.of(rows[start : min(start + 37, 200)])
    whole = PairwiseMoments.of(rows)
    assert total.rows == 200
    for found, expected in zip(total.full(), whole.full(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(total.correlation()[0], whole.correlation()[0], rtol=0, atol=1e-13)


def test_columns_of_large_mean_lose_no_digits() -> None:
    rows = MIXED + 1e6
    rows[3, 2] = np.nan
    shift, scale = shift_and_scale(rows)
    np.testing.assert_allclose(shift, np.nanmean(rows, axis=0), rtol=1e-15)
    np.testing.assert_allclose(scale, np.nanstd(rows - 1e6, axis=0), rtol=1e-9)
    found, _ = PairwiseMoments.of((rows - shift) / scale).correlation()
    small = MIXED.copy()
    small[3, 2] = np.nan
    np.testing.assert_allclose(found, pd.DataFrame(small).corr(), rtol=0, atol=1e-9)


def test_pairs_with_few_common_rows_or_without_variation_are_not_defined() -> None:
    rows = MIXED[:, :4].copy()
    rows[:, 0][29:] = np.nan  # 29 rows
    rows[:, 1] = np.nan
    rows[::4, 1] = 1.0  # varies only where column 2 is missing
    rows[::4, 2] = MIXED[::4, 2]
    rows[1, 1], rows[1, 2] = 5.0, np.nan
    moments = PairwiseMoments.of(rows)
    found, undefined = moments.correlation()
    assert undefined[0, 3]
    assert undefined[1, 2]
    assert not undefined[2, 3]
    assert found[0, 3] == found[1, 2] == 0
    assert (found.diagonal() == 1).all()
    assert not moments.correlation(fewest_common=29)[1][0, 3]
    assert smallest_overlap(moments) == 9


def test_counts_means_and_variances_of_columns() -> None:
    rows = with_gaps(MIXED, 0.2)
    count, mean, variance = PairwiseMoments.of(rows).of_columns()
    np.testing.assert_array_equal(count, (~np.isnan(rows)).sum(0))
    np.testing.assert_allclose(mean, np.nanmean(rows, axis=0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(variance, np.nanvar(rows, axis=0), rtol=1e-12)


def test_repair_is_the_nearest_matrix_without_negative_eigenvalues() -> None:
    matrix = np.corrcoef(MIXED[:9].T)
    matrix[0, 1] = matrix[1, 0] = 1.0
    matrix[0, 2] = matrix[2, 0] = -matrix[1, 2]
    values, vectors = linalg.eigh(matrix)
    assert values[0] < -1e-3
    found = repaired(matrix)
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(nearest)[::-1], rtol=0, atol=1e-12)
    assert found.negative_eigenvalues == int((values < -1e-12).sum())
    assert found.smallest_eigenvalue == pytest.approx(values[0], abs=1e-13)
    assert found.negative_sum == pytest.approx(values[values < 0].sum(), abs=1e-12)
    assert found.floor == pytest.approx(-values[0], abs=1e-13)
    np.testing.assert_allclose(found.correlation.diagonal(), 1.0, rtol=0, atol=1e-15)
    assert np.linalg.eigvalsh(found.correlation)[0] > -1e-12
    assert found.largest_change == pytest.approx(np.abs(found.correlation - matrix).max(), abs=1e-14)


def test_nothing_is_repaired_where_nothing_is_negative() -> None:
    matrix = np.corrcoef(MIXED.T)
    found = repaired(matrix, rows=200)
    assert found.correlation is matrix
    assert found.negative_eigenvalues == found.largest_change == 0
    assert found.floor == found.rounding == pytest.approx(2 * 2.22e-16 * 200**0.5 * found.eigenvalues[0], rel=1e-2)
