"""input_spectrum of data with missing values, against pandas and numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_sloppy import sloppiness
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.gaussian_em import gaussian_em
from lightning_sloppy.inputs.moment_blocks import MomentBlocks
from lightning_sloppy.inputs.shifted_pairs import ShiftedPairs, joined_pairs
from lightning_sloppy.inputs.spectrum import input_spectrum, moments_spectrum
from lightning_sloppy.measures.sloppiness import participation_ratio

KINDS = ("correlation", "covariance", "second_moment")


def table(n: int = 300, d: int = 12, *, rate: float = 0.15, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    """Correlated columns of several scales with holes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    rows = rng.standard_normal((n, d)) * np.logspace(0, -1.5, d) @ axes.T * np.logspace(0, 1, d) + mean
    rows[rng.random(rows.shape) < rate] = np.nan
    return rows


def pairwise(rows: np.ndarray, kind: str) -> np.ndarray:
    """The matrix of this kind by pandas and numpy."""
    correlation = pd.DataFrame(rows).corr(min_periods=30).fillna(0.0).to_numpy().copy()
    np.fill_diagonal(correlation, 1.0)
    if kind == "correlation":
        return correlation
    deviation, mean = np.nanstd(rows, axis=0), np.nanmean(rows, axis=0)
    found = correlation * deviation[:, None] * deviation
    return found + np.outer(mean, mean) if kind == "second_moment" else found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_pairs_match_pandas(kind: Any, mean: float) -> None:
    rows = table(mean=mean)
    signed = np.linalg.eigvalsh(pairwise(rows, kind))[::-1]
    found = input_spectrum(rows, kind, missing="pairwise")
    tolerance = (1e-9 if kind != "second_moment" else 1e-12) * signed[0]
    np.testing.assert_allclose(found.eigenvalues.numpy(), np.maximum(signed, 0), rtol=0, atol=tolerance)
    assert found.detail["missing"] == "pairwise"
    assert found.detail["missing_rate"] == pytest.approx(np.isnan(rows).mean())
    assert found.detail["overlap_limit"] == 30, "a quarter of 300 rows is more"
    seen = (~np.isnan(rows)).astype(float)
    assert found.detail["smallest_overlap"] == int((seen.T @ seen).min())
    if kind == "correlation":
        assert signed[-1] < 0, "the case is to need the repair"
        assert found.detail["negative_eigenvalues"] == int((signed < 0).sum())
        assert found.detail["smallest_eigenvalue"] == pytest.approx(signed[-1], abs=1e-9)


def test_decades_stop_at_the_noise_of_the_pairs_and_sums_do_not() -> None:
    rows = table(n=200, d=24, rate=0.3)
    signed = np.linalg.eigvalsh(pairwise(rows, "correlation"))[::-1]
    found = input_spectrum(rows, missing="pairwise")
    known = signed[signed > -signed[-1]]
    kept = np.maximum(signed, 0)
    assert len(known) < (signed > 0).sum(), "some eigenvalues are to lie between zero and the noise"
    shape = sloppiness(found)
    assert shape.resolved == len(known)
    assert shape.decades == pytest.approx(np.log10(known[0] / known[-1]))
    assert shape.at_least
    assert shape.floor == pytest.approx(-signed[-1])
    assert participation_ratio(found).value == pytest.approx(kept.sum() ** 2 / np.square(kept).sum())
    complete = sloppiness(input_spectrum(table(rate=0.0)))
    assert not complete.at_least
    assert complete.resolved == 12
    assert complete.floor < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_complete_data_are_the_same_bits_whatever_is_done_about_missing_values(kind: Any) -> None:
    rows = table(rate=0.0)
    plain = input_spectrum(rows, kind)
    for missing in ("pairwise", "em"):
        found = input_spectrum(rows, kind, missing=missing)
        assert torch.equal(found.eigenvalues, plain.eigenvalues)
        assert found.detail == plain.detail
        assert found.noise_floor == 0


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_batches_in_any_order_of_holes(size: int) -> None:
    """Complete batches first, a column without a value at first, and one batch of holes alone."""
    rows = table(mean=1e5)
    rows[:70] = table(rate=0.0, mean=1e5)[:70]
    rows[:130, 3] = np.nan
    rows[140:148] = np.nan
    whole = input_spectrum(rows, missing="pairwise")
    signed = np.linalg.eigvalsh(pairwise(rows, "correlation"))[::-1]
    np.testing.assert_allclose(whole.eigenvalues.numpy(), np.maximum(signed, 0), rtol=0, atol=1e-8)
    batches = [torch.from_numpy(rows[start : start + size]) for start in range(0, 300, size)]
    found = input_spectrum(batches, missing="pairwise")
    torch.testing.assert_close(found.eigenvalues, whole.eigenvalues, rtol=0, atol=1e-9)
    # A constant batch is no missing value, and float32 holes are holes as well.
    assert input_spectrum(torch.from_numpy(rows).float(), missing="pairwise").detail["missing"] == "pairwise"


def test_sums_with_other_shifts_are_joined() -> None:
    rows = table(mean=1e6)
    rows[150:] += 40.0
    rows[:150, 5] = np.nan
    parts = [ShiftedPairs.empty(12) for _ in range(3)]
    for part, some in zip(parts, (rows[:150], rows[150:151], rows[151:]), strict=True):
        part.add(some)
    whole = ShiftedPairs.empty(12)
    whole.add(rows)
    joined = joined_pairs(parts)
    right = whole.moved(joined.shift)
    for found, expected in zip(joined.moments.full(), right.full(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(joined.moments.products, right.products, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(joined.mean, np.nanmean(rows, axis=0), rtol=1e-14)


def test_blocks_of_any_kind_have_the_moments_of_their_union() -> None:
    rows = table()
    rows[:100] = np.nan_to_num(rows[:100])  # the first blocks are complete
    blocks = MomentBlocks("pairwise")
    cuts = [block * 300 // 8 for block in range(9)]
    blocks.add(torch.from_numpy(rows), range(8), cuts)
    gathered = blocks.gathered(8)
    whole = gathered.whole()
    direct = input_spectrum(rows, missing="pairwise")
    torch.testing.assert_close(moments_spectrum(whole).eigenvalues, direct.eigenvalues, rtol=0, atol=1e-12)
    first = gathered.first_half(whole)
    signed = np.linalg.eigvalsh(pd.DataFrame(rows[:150]).corr(min_periods=15).to_numpy())[::-1]
    half = moments_spectrum(first).eigenvalues.numpy()
    np.testing.assert_allclose(half, np.maximum(signed, 0), rtol=0, atol=1e-10)
    for one, other in gathered.halves(whole):
        assert (one.num_samples + other.num_samples, abs(one.num_samples - 150) < 5) == (300, True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gaussian_model_is_that_of_all_rows(kind: Any) -> None:
    rows = table(n=200, d=6)
    fit = gaussian_em(rows)
    matrix = {
        "correlation": fit.correlation,
        "covariance": fit.covariance,
        "second_moment": fit.covariance + np.outer(fit.mean, fit.mean),
    }[kind]
    batches = [torch.from_numpy(part) for part in np.array_split(rows, 7)]
    found = input_spectrum(batches, kind, missing="em")
    np.testing.assert_allclose(found.eigenvalues.numpy(), np.linalg.eigvalsh(matrix)[::-1], rtol=1e-8)
    assert found.detail["missing"] == "em"
    assert found.detail["iterations"] == fit.iterations
    assert found.halves is None


def test_columns_that_are_hardly_observed_or_constant_are_left_out() -> None:
    rows = table(n=1000)
    rows[45:, 2] = np.nan  # observed in 4.5 % of the rows
    rows[:, 4] = np.where(np.isnan(rows[:, 4]), np.nan, 0.1)
    rows[:, 7] = np.nan
    found = input_spectrum(rows, missing="pairwise")
    assert (found.dim, found.detail["constant_columns"], found.detail["set_aside_columns"]) == (9, 1, 2)
    kept = np.delete(rows, [2, 4, 7], axis=1)
    right = input_spectrum(kept, missing="pairwise").eigenvalues
    torch.testing.assert_close(found.eigenvalues, right, rtol=0, atol=1e-12)
    second = input_spectrum(rows, "second_moment", missing="pairwise")
    assert second.dim == 10, "a constant column has a second moment"
    assert second.trace.value == pytest.approx(float(np.nanmean(np.delete(rows, [2, 7], axis=1) ** 2, axis=0).sum()))


@pytest.mark.parametrize(
    ("rows", "missing", "words"),
    [
        (table(), "error", "NaN or infinite"),
        (table(), "mean", "missing='mean' is unknown; choose one of error, pairwise, em"),
        (np.where(np.isnan(table()), np.inf, table()), "pairwise", "are infinite"),
        (np.full((40, 3), np.nan), "pairwise", "3 are NaN in too many of the 40 samples"),
        (np.array([[1.0, np.nan]]), "pairwise", "at least two samples"),
        (np.where(np.isnan(table()), np.nan, 1e200 * table()), "pairwise", "overflow"),
        (np.full((2, 4097), np.nan), "pairwise", "up to 4,096"),
    ],
)
def test_what_is_refused(rows: np.ndarray, missing: Any, words: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(ConfigurationError, match=words):
        input_spectrum(rows, missing=missing)


def test_frames_are_read_as_numbers_or_refused_by_the_name_of_a_column() -> None:
    rows = np.round(table(rate=0.0) * 10)
    frame = pd.DataFrame(rows, columns=[f"sensor {i}" for i in range(12)]).astype({"sensor 3": "int64"})
    frame["on"] = frame["sensor 3"] > 0
    right = input_spectrum(np.column_stack([rows, rows[:, 3] > 0]))
    torch.testing.assert_close(input_spectrum(frame).eigenvalues, right.eigenvalues, rtol=0, atol=1e-12)
    frame.loc[4, "sensor 1"] = None
    frame["whole"] = pd.array([None, *range(299)], dtype="Int64")
    with pytest.raises(ConfigurationError, match=r"2 of .* numbers are NaN"):
        input_spectrum(frame)
    assert input_spectrum(frame, missing="pairwise").dim == 14
    for column in (["a"] * 300, pd.date_range("2020", periods=300)):
        frame["lot"] = column
        with pytest.raises(ConfigurationError, match="'lot' of the pandas frame holds no numbers; leave it out"):
            input_spectrum(frame)
