"""Which columns stay, how others are given back, the directions: beside numpy, pandas, scikit-learn and inspect."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from lightning_sloppy import ConfigurationError, SpectralReducer, inspect
from lightning_sloppy.reduction import column_reduction as core
from lightning_sloppy.reduction.column_reduction import column_reduction, directions_of


def sensors(rows: int = 400, gaps: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Factors, copies of them with noise, a constant, an empty column and one hardly observed."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((rows, 5)) * [1, 2, 3, 50, 0.1] + [0, 1e3, -5, 20, 1]
    named = {f"f{i}": factors[:, i] for i in range(5)}
    for i in range(4):
        named[f"copy {i}"] = (-2.5 + i) * factors[:, i] + 7 + 0.1 * factors[:, i].std() * rng.standard_normal(rows)
    named["constant"] = np.full(rows, 3.25)
    found = pd.DataFrame(named)[["copy 1", "f0", "constant", "copy 0", "f1", "f2", "copy 3", "f3", "f4", "copy 2"]]
    if gaps:
        found = found.mask(rng.random(found.shape) < gaps)
        found["empty"] = np.nan
        both = rng.standard_normal(rows)  # equal, but in 12 rows alone that both have
        found["early"] = np.where(np.arange(rows) < rows // 2 + 6, both, np.nan)
        found["late"] = np.where(np.arange(rows) >= rows // 2 - 6, both, np.nan)
        found["rare"] = np.where(np.arange(rows) < 12, np.arange(rows), np.nan)
    return found


@pytest.mark.parametrize("gaps", [0.0, 0.3])
@pytest.mark.parametrize("threshold", [0.95, 0.5, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_it_drops_what_inspect_names_on_the_same_rows(gaps, threshold, seed) -> None:
    frame = sensors(gaps=gaps, seed=seed)
    report = inspect(frame, threshold=threshold, intervals=False)
    reducer = SpectralReducer(threshold=threshold).fit(frame)
    by_reason = {
        reason: {name for name, dropped in reducer.dropped_.items() if dropped.reason == reason}
        for reason in ("duplicate", "constant")
    }
    assert by_reason["duplicate"] == set(report.drop)
    assert by_reason["constant"] == set(report.constant) == {"constant"}
    rest = {name: d.reason for name, d in reducer.dropped_.items() if d.reason not in by_reason}
    assert rest == report.set_aside
    assert [*reducer.kept_] == [name for name in frame.columns if name not in reducer.dropped_]
    named = {name: (stays, r) for group in report.groups for name, stays, r in group.drop}
    found = {n: (d.representative, d.correlation) for n, d in reducer.dropped_.items() if d.reason == "duplicate"}
    assert found == named
    if threshold == 0.95:
        assert len(named) == 4
        assert not gaps or {"early", "late"} <= set(reducer.kept_)


def test_a_table_that_is_read_in_chunks_drops_the_same(monkeypatch) -> None:
    from lightning_sloppy.inputs import encoded_table, table_in_memory

    frame = sensors(rows=600, gaps=0.1)
    whole = SpectralReducer(project="n90").fit(frame)
    monkeypatch.setattr(encoded_table, "IN_MEMORY", 500)
    monkeypatch.setattr(table_in_memory, "CHUNK_CELLS", 700)
    monkeypatch.setattr(core, "CHUNK_CELLS", 700)
    parts = SpectralReducer(project="n90").fit(frame)
    assert parts.kept_ == whole.kept_
    pd.testing.assert_frame_equal(parts.transform(frame), whole.transform(frame), atol=1e-9)
    np.testing.assert_allclose(parts.inverse_error_, whole.inverse_error_, atol=1e-9)


def test_the_line_of_a_duplicate_is_that_of_least_squares_over_common_rows() -> None:
    frame = sensors(gaps=0.2)
    reducer = SpectralReducer().fit(frame)
    back = reducer.inverse_transform(reducer.transform(frame))
    for name, dropped in reducer.dropped_.items():
        if dropped.reason != "duplicate":
            continue
        x, y = frame[dropped.representative], frame[name]
        both = x.notna() & y.notna()
        slope, intercept = np.polyfit(x[both], y[both], 1)
        np.testing.assert_allclose(back[name][x.notna()], (intercept + slope * x)[x.notna()], rtol=1e-9)
        assert back[name][x.isna()].isna().all()
        off = (y - intercept - slope * x)[both]
        place = list(frame.columns).index(name)
        expected = np.sqrt(np.mean(off**2) / np.mean((y[both] - y.mean()) ** 2))
        assert reducer.inverse_error_[place] == pytest.approx(expected, rel=1e-9)
    for name in reducer.kept_:
        pd.testing.assert_series_equal(back[name], frame[name])
    assert (back["constant"] == 3.25).all()
    assert back["empty"].isna().all()
    assert np.isnan(reducer.inverse_error_[list(frame.columns).index("empty")])
    assert (back["rare"] == frame["rare"].mean()).all()
    assert reducer.inverse_error_[list(frame.columns).index("rare")] == pytest.approx(1.0)


@pytest.mark.parametrize("standardize", [True, False])
def test_the_projection_is_that_of_principal_components(standardize) -> None:
    values = sensors().to_numpy()
    reducer = SpectralReducer(threshold=None, project=4, standardize=standardize).fit(values)
    kept = values[:, [not (values[:, i] == values[0, i]).all() for i in range(values.shape[1])]]
    scale = kept.std(0) if standardize else np.ones(kept.shape[1])
    peer = PCA(4, svd_solver="full").fit(kept / scale)
    expected = peer.transform(kept / scale)
    found = reducer.transform(values)
    np.testing.assert_allclose(found, expected * np.sign((found * expected).sum(0)), atol=1e-8 * np.abs(expected).max())
    assert reducer.reduction_.energy == pytest.approx(peer.explained_variance_ratio_.sum(), rel=1e-9)
    back = reducer.inverse_transform(found)
    np.testing.assert_allclose(
        back[:, values.std(0) > 0], peer.inverse_transform(expected) * scale, rtol=1e-7, atol=1e-6
    )
    off = np.sqrt(np.mean((back - values) ** 2, 0)) / np.where(values.std(0) > 0, values.std(0), 1)
    np.testing.assert_allclose(reducer.inverse_error_, off, atol=1e-9)
    largest = reducer.reduction_.directions[np.abs(reducer.reduction_.directions).argmax(0), range(4)]
    assert (largest > 0).all()


def test_all_directions_lose_nothing() -> None:
    values = sensors().to_numpy()
    kept = len(SpectralReducer(threshold=None).fit(values).kept_)
    reducer = SpectralReducer(threshold=None, project=kept).fit(values)
    np.testing.assert_allclose(reducer.inverse_transform(reducer.transform(values)), values, rtol=1e-9, atol=1e-9)
    assert reducer.inverse_error_.max() < 1e-6


def test_a_missing_value_counts_as_the_mean_of_its_column_in_a_projection() -> None:
    frame = sensors(gaps=0.2)
    reducer = SpectralReducer(project="n95").fit(frame)
    filled = frame.fillna(frame.mean())
    filled["empty"] = 0.0
    np.testing.assert_allclose(reducer.transform(frame), reducer.transform(filled), rtol=1e-12, atol=1e-12)
    assert not np.isnan(reducer.transform(frame)).any().any()
    plain = SpectralReducer().fit(frame)
    pd.testing.assert_frame_equal(plain.transform(frame), frame[list(plain.kept_)])


def test_the_number_of_directions_is_the_one_asked_for() -> None:
    values = sensors().to_numpy()
    eigenvalues = SpectralReducer(project=1).fit(values).reduction_.eigenvalues
    kept = SpectralReducer().fit(values).transform(values)
    expected = np.linalg.eigvalsh(np.corrcoef(kept.T))[::-1]
    np.testing.assert_allclose(eigenvalues, expected, rtol=1e-10)
    shares = expected.cumsum() / expected.sum()
    for name, fraction in (("n90", 0.9), ("n95", 0.95), ("n99", 0.99), (0.5, 0.5)):
        assert SpectralReducer(project=name).fit(values).reduction_.outputs == 1 + (shares < fraction).sum()
    ratio = expected.sum() ** 2 / (expected**2).sum()
    assert SpectralReducer(project="participation_ratio").fit(values).reduction_.outputs == np.ceil(ratio)
    assert SpectralReducer(project=np.int64(2)).fit(values).reduction_.outputs == 2
    assert SpectralReducer(project=np.float32(0.5)).fit(values).reduction_.outputs == 1 + (shares < 0.5).sum()


@pytest.mark.parametrize("project", ["n80", "PR", 0, -1, 0.0, 1.0, 1.5, True, "5"])
def test_other_settings_are_refused(project) -> None:
    with pytest.raises(ConfigurationError, match=r"is no number of directions; pass 'n90'"):
        SpectralReducer(project=project).fit(np.eye(5))


def test_more_directions_than_columns_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"project=9 directions were asked for, but only 5 columns stay"):
        SpectralReducer(project=9).fit(sensors())
    assert directions_of(5) is not None


def test_huge_and_tiny_units_overflow_nowhere() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((100, 3)) * [1e200, 1e-200, 1]
    values = np.column_stack([values, values[:, 0] * 2, values[:, 1] * 2])
    found = column_reduction(list("abcde"), values, threshold=0.95, count=directions_of(3))
    assert set(found.dropped) == {"d", "e"}
    assert found.errors.max() < 1e-6
    np.testing.assert_allclose(found.restored(found.reduced(values)), values, rtol=1e-9)


def test_a_large_mean_costs_no_digits() -> None:
    rng = np.random.default_rng(0)
    small = rng.standard_normal((300, 2))
    values = np.column_stack([small, 3 * small[:, 0] + 0.01 * small[:, 1]]) + 1e7
    reducer = SpectralReducer().fit(values)
    assert len(reducer.kept_) == 2
    back = reducer.inverse_transform(reducer.transform(values))
    np.testing.assert_allclose(back - 1e7, values - 1e7, atol=0.05)
    assert reducer.inverse_error_.max() == pytest.approx(0.0033, abs=5e-4)
