"""What is computed in slices equals what is computed at once, and a table without combinations is not searched."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_sloppy.inputs import encoded_table as encoding
from lightning_sloppy.inputs import noise_edge, pairwise, row_influence
from lightning_sloppy.inputs import table_source as table_source_module
from lightning_sloppy.inputs.encoded_table import encoded_table
from lightning_sloppy.inputs.pairwise import PairwiseMoments, shift_and_scale
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection import column_facts


@pytest.fixture(params=[0.0, 0.2], ids=["complete", "gaps"])
def rows(request) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((331, 7)) * 10.0 ** np.arange(-3, 4) + 1e4
    values[rng.random(values.shape) < request.param] = np.nan
    return values


def test_mean_and_deviation_in_slices(rows, monkeypatch) -> None:
    monkeypatch.setattr(pairwise, "rows_at_once", lambda values: 10)
    mean, deviation = shift_and_scale(rows)
    np.testing.assert_allclose(mean, np.nanmean(rows, axis=0), rtol=1e-14)
    np.testing.assert_allclose(deviation, np.nanstd(rows, axis=0), rtol=1e-9)


def test_autocorrelation_in_slices(rows, monkeypatch) -> None:
    whole = noise_edge.lag_one(rows)
    monkeypatch.setattr(noise_edge, "COPIED", 700)
    np.testing.assert_array_equal(noise_edge.lag_one(rows), whole)


def test_ranks_are_those_of_scipy(rows) -> None:
    expected = stats.spearmanr(rows, nan_policy="propagate").statistic
    found = row_influence.rank_correlation(rows)
    if not np.isnan(rows).any():
        np.testing.assert_allclose(found, expected, atol=1e-12)
    ranks = stats.rankdata(rows, axis=0, nan_policy="omit")
    np.testing.assert_allclose(found, PairwiseMoments.of(ranks - np.nanmean(ranks, 0)).correlation()[0], atol=1e-12)


def test_shares_of_rows_in_slices(rows, monkeypatch) -> None:
    moments = PairwiseMoments.of(rows)
    _, mean, variance = moments.of_columns()
    expected = np.nansum((rows - mean) ** 2 / variance, axis=1) / (~np.isnan(rows)).sum()
    monkeypatch.setattr(row_influence, "rows_at_once", lambda values: 10)
    np.testing.assert_allclose(row_influence.row_shares(rows, moments), expected, rtol=1e-12)


def test_the_heaviest_rows_of_all_blocks_are_kept() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1_000, 5)) * rng.pareto(1.5, (1_000, 1))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    heavy = np.arange(0), np.empty((0, 5))
    for start in range(0, 1_000, 97):
        heavy = encoding._heaviest(heavy, rows[start : start + 97], start)
    expected = np.argsort(-np.nansum(rows**2, axis=1))[: encoding.HEAVIEST]
    assert heavy[0].tolist() == expected.tolist()
    np.testing.assert_array_equal(heavy[1], rows[expected])


def test_combinations_are_sought_only_where_the_smallest_eigenvalue_allows_one(monkeypatch) -> None:
    searched = []
    monkeypatch.setattr(column_facts, "exact_dependencies", lambda *_: searched.append(1))
    rng = np.random.default_rng(0)
    free = rng.standard_normal((200, 4))
    for values, wanted in ((free, 0), (np.column_stack([free, free[:, 0] - 1e-5 * free[:, 1]]), 1)):
        table = encoded_table(table_source(values), (), (), lambda rows: None)
        smallest = np.linalg.eigvalsh(table.moments.correlation()[0])[0]
        column_facts.dependencies(table, smallest)
        assert len(searched) == wanted


def test_reading_parquet_holds_a_few_row_groups_and_not_the_file(tmp_path, monkeypatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = np.random.default_rng(0).standard_normal((400_000, 10))
    table = arrow.table({f"c{index}": values[:, index] for index in range(10)})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)  # 40 of 0.8 MB
    del table
    monkeypatch.setattr(table_source_module, "CHUNK_CELLS", 100_000)
    pool, rows, held = arrow.default_memory_pool(), 0, []
    before = pool.bytes_allocated()
    for chunk in table_source(tmp_path / "t.parquet").chunks():
        rows += len(chunk[0])
        held.append(pool.bytes_allocated() - before)
    assert rows == 400_000
    assert max(held) < 8e6
