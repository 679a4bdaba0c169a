"""Autocorrelation, noise edge, halves of the rows, calibrated eigenvalues, and rows that dominate."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.covariance import ledoit_wolf, oas

from lightning_sloppy import MissingExtraError
from lightning_sloppy.inputs.calibration import ITERATIONS, calibrated_eigenvalues
from lightning_sloppy.inputs.half_samples import block_length, half_eigenvalues, halves_of
from lightning_sloppy.inputs.noise_edge import effective_rows, lag_one, median_lag_one, noise_edge, shrunk_correlation
from lightning_sloppy.inputs.pairwise import PairwiseMoments
from lightning_sloppy.inputs.row_influence import clipped_correlation, dominating_rows, rank_correlation, row_shares


def series(n: int, d: int, phi: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    for row in range(1, n):
        rows[row] = phi * rows[row - 1] + np.sqrt(1 - phi**2) * rows[row]
    return rows


def standard(rows: np.ndarray) -> np.ndarray:
    return (rows - np.nanmean(rows, axis=0)) / np.nanstd(rows, axis=0)


def nothing() -> None:
    pass


def test_lag_one_is_that_of_pandas() -> None:
    rows = series(300, 4, 0.5)
    rows[np.random.default_rng(1).random(rows.shape) < 0.2] = np.nan
    expected = [pd.Series(column).autocorr(1) for column in rows.T]
    np.testing.assert_allclose(lag_one(rows), expected, rtol=0, atol=1e-12)
    assert median_lag_one(rows) == pytest.approx(np.median(expected))
    assert median_lag_one(-(np.arange(40.0) % 2)[:, None]) == 0  # alternating: below 0 counts as 0


def test_noise_edge_is_where_independent_columns_end() -> None:
    rows = np.random.default_rng(0).standard_normal((2_000, 500))
    largest = np.linalg.eigvalsh(np.corrcoef(rows.T))[-1]
    assert largest == pytest.approx(noise_edge(2_000, 500), rel=0.02)
    assert effective_rows(1_000, 0.0) == 1_000
    assert effective_rows(1_000, 0.6) == pytest.approx(250)


@pytest.mark.parametrize(("how", "peer"), [("ledoit_wolf", ledoit_wolf), ("oas", oas)])
def test_shrinkage_is_that_of_scikit_learn(how, peer) -> None:
    rows = standard(np.random.default_rng(0).standard_normal((40, 10)))
    matrix, amount = peer(rows)
    found, shrunk = shrunk_correlation(rows, how)
    assert shrunk == amount > 0
    np.testing.assert_allclose(found, matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix))), atol=1e-14)


def test_shrinkage_without_scikit_learn_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"shrinkage= needs scikit-learn.*'lightning-sloppy\[data\]'"):
        shrunk_correlation(np.eye(3), "oas")


def test_block_length_grows_with_autocorrelation() -> None:
    assert [block_length(10_000, r) for r in (0.0, 0.09, 0.1, 0.5, 0.9)] == [1, 1, 10, 15, 95]
    assert block_length(200, 0.9) == 10  # at least twenty blocks are left


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "n"), [(0.0, 400), (0.6, 1_200), (0.0, 5_000)])
def test_halves_spread_like_fresh_samples(phi: float, n: int) -> None:
    """The deviation of the largest eigenvalue over halves is that over samples."""
    direction = np.ones(5) / np.sqrt(5)

    def sample(seed: int) -> np.ndarray:
        rows = series(n, 5, phi, seed)
        return standard(rows + 1.5 * (rows @ direction)[:, None] * direction)

    fresh = np.std([np.linalg.eigvalsh(np.corrcoef(sample(100 + seed).T))[-1] for seed in range(60)])
    guesses = []
    for seed in range(6):
        rows = sample(seed)
        drawn = halves_of(rows, median_lag_one(rows), seed)
        assert drawn is not None
        assert (drawn.block > 1) == (phi > 0)
        (values,) = half_eigenvalues(drawn, 60, [np.arange(5)], nothing)
        guesses.append(drawn.scale * values[:, 0].std(ddof=1))
    assert np.mean(guesses) == pytest.approx(fresh, rel=0.3)


def test_too_few_rows_have_no_halves() -> None:
    assert halves_of(np.random.default_rng(0).standard_normal((7, 2)), 0.0, 0) is None


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_calibration_takes_the_bias_of_sampling_back(part: float) -> None:
    rng = np.random.default_rng(0)
    d, n = 40, 120
    true = np.linalg.eigvalsh(np.corrcoef(rng.standard_normal((d, 8)) @ rng.standard_normal((8, 3_000)) + 2))[::-1]
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    matrix = (basis * (true + 0.3)) @ basis.T
    matrix /= np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    true = np.linalg.eigvalsh(matrix)[::-1]
    rows = rng.standard_normal((n, d)) @ np.linalg.cholesky(matrix).T
    missing = rng.random(rows.shape) < part
    rows[missing] = np.nan
    observed = PairwiseMoments.of(rows).correlation()[0]
    told = []
    found, drawn = calibrated_eigenvalues(observed, n, missing if part else None, 0.0, 0, lambda: told.append(1))
    sample = np.maximum(np.linalg.eigvalsh(observed)[::-1], 0)
    assert len(told) == ITERATIONS
    assert found.sum() == pytest.approx(d)
    half = slice(d // 2, None)  # the small ones: the largest are ruled by the luck of the sample
    assert np.abs(found[half] - true[half]).sum() < 0.5 * np.abs(sample[half] - true[half]).sum()
    np.testing.assert_allclose(drawn.mean(0)[:5], sample[:5], rtol=0.1)  # such samples look like the data
    root = np.linalg.cholesky(matrix).T
    fresh = []
    for _ in range(40):
        other = rng.standard_normal((n, d)) @ root
        other[missing if part else []] = np.nan
        fresh.append(np.linalg.eigvalsh(PairwiseMoments.of(other).correlation()[0])[-1])
    # and differ from one another as fresh ones do
    assert 0.6 < np.log(drawn[:, 0]).std(ddof=1) / np.log(fresh).std(ddof=1) < 1.7


def test_calibration_keeps_exact_zeros_and_does_not_mind_the_order_of_columns() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 5))
    rows = np.column_stack([rows, rows[:, 0]])
    observed = np.corrcoef(rows.T)
    found, _ = calibrated_eigenvalues(observed, 200, None, 0.0, 0, nothing)
    assert found[-1] < 1e-6
    order = rng.permutation(6)
    again, _ = calibrated_eigenvalues(observed[np.ix_(order, order)], 200, None, 0.0, 0, nothing)
    np.testing.assert_allclose(again, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e3, 1e9])
def test_rows_that_rule_the_matrix_are_named(factor: float) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 12))
    clean = standard(rows)
    assert dominating_rows(clean, PairwiseMoments.of(clean)) == []
    rows[41] *= factor
    rows[[7, 160]] = rows[41] / 10  # they hide behind the first
    bad = standard(rows)
    ruled = 144 / np.square(np.corrcoef(rows.T)).sum()
    assert ruled < 1.01
    assert set(dominating_rows(bad, PairwiseMoments.of(bad))) == {41, 7, 160}
    shares = row_shares(bad, PairwiseMoments.of(bad))
    assert shares.argmax() == 41
    assert shares.sum() == pytest.approx(1)


def test_ranks_and_clipped_values_do_not_mind_such_a_row() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 6))
    rows[np.random.default_rng(1).random(rows.shape) < 0.1] = np.nan
    ranks = rank_correlation(rows)
    for i in range(6):
        for j in range(i):
            both = ~np.isnan(rows[:, i]) & ~np.isnan(rows[:, j])
            # Ranks are taken over the whole column, Spearman's over the common rows.
            assert ranks[i, j] == pytest.approx(stats.spearmanr(rows[both, i], rows[both, j])[0], abs=0.02)
    complete = np.random.default_rng(2).standard_normal((300, 6))
    np.testing.assert_allclose(rank_correlation(complete), stats.spearmanr(complete)[0], rtol=0, atol=1e-12)
    complete[0] *= 1e3
    found = clipped_correlation(standard(complete))
    assert np.abs(np.corrcoef(complete.T) - np.eye(6)).max() > 0.9
    assert 36 / np.square(rank_correlation(complete)).sum() > 5.5
    cut = np.clip(standard(complete), -5, 5)
    np.testing.assert_allclose(found, np.corrcoef(cut.T), rtol=0, atol=1e-12)
