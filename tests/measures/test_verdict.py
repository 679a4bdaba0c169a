"""Sloppy or not, beside a null: data and networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.nulls import NULLS, isotropic_spectrum, marchenko_pastur, shuffled
from lightning_sloppy.inputs.spectrum import input_spectrum, moments_spectrum
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.measures.relative_dimension import relative_dimension
from lightning_sloppy.measures.sloppiness import participation_ratio, sloppiness
from lightning_sloppy.measures.verdict import sloppiness_verdict, verdict_in_words


def judged(inputs: np.ndarray, kind: str):
    spectrum = input_spectrum(inputs, kind=kind)
    if kind == "correlation":
        moments = InputMoments()
        moments.update(shuffled(torch.as_tensor(inputs), generator(0)))
        null = moments_spectrum(moments, kind)
    else:
        null = isotropic_spectrum(spectrum, 0)
    return sloppiness_verdict(spectrum, null, NULLS[kind])


def rotated(n: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Gaussian samples with these population eigenvalues along random axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return rng.standard_normal((n, len(values))) * np.sqrt(values) @ axes.T


FLAT = np.ones(60)
EVEN = np.logspace(0, -4, 60)
FEW = np.concatenate([np.full(3, 100.0), np.full(57, 1.0)])


@pytest.mark.parametrize("kind", ["correlation", "covariance", "second_moment"])
@pytest.mark.parametrize(
    ("values", "n", "answer"),
    [(FLAT, 70, "no"), (FLAT, 600, "no"), (FLAT, 40, "no"), (EVEN, 600, "yes"), (EVEN, 70, "yes"), (FEW, 600, "no")],
    ids=["flat, hardly more samples", "flat", "flat, fewer samples", "even", "even, few samples", "three above noise"],
)
@pytest.mark.parametrize("seed", range(3))
def test_answers(kind: str, values: np.ndarray, n: int, answer: str, seed: int) -> None:
    found = judged(rotated(n, values, seed), kind).answer
    if values is FEW and kind == "correlation":  # unit variances make the noise of the columns unequal
        assert found != "yes"
    else:
        assert found == answer


def test_independent_columns_of_many_scales_have_a_sloppy_second_moment_and_no_sloppy_correlation() -> None:
    inputs = np.random.default_rng(0).standard_normal((2_000, 100)) * 10.0 ** np.linspace(0, -2, 100)
    assert judged(inputs, "correlation").answer == "no"
    assert judged(inputs, "second_moment").answer == "yes"


def test_digits_and_their_shuffled_columns() -> None:
    digits = load_digits().data
    verdict = judged(digits, "correlation")
    assert verdict.answer == "yes"
    assert verdict.dimension == pytest.approx(participation_ratio(input_spectrum(digits)).value)
    assert verdict.spread == pytest.approx(-sloppiness(input_spectrum(digits)).slope_times_rank)
    assert "shuffled columns" in verdict_in_words("The correlation matrix", verdict)
    assert judged(shuffled(torch.as_tensor(digits), generator(1)).numpy(), "correlation").answer == "no"


def test_few_features_are_undetermined() -> None:
    verdict = judged(rotated(500, np.logspace(0, -6, 6)), "covariance")
    assert verdict.answer == "undetermined"
    assert "fewer than 10" in verdict.reason


def test_near_the_borders_it_is_undetermined() -> None:
    verdict = judged(rotated(20_000, np.logspace(0, -1.4, 80)), "covariance")
    assert verdict.answer == "undetermined"


def test_of_networks_the_effective_dimension_counts() -> None:
    mean = np.concatenate([[1e4], np.ones(199)])  # one direction rules the participation ratio
    spectrum, null = (input_spectrum(rotated(4_000, values), kind="second_moment") for values in (mean, np.ones(200)))
    verdict = sloppiness_verdict(spectrum, null, "flat", by="effective dimension")
    assert verdict.null_dimension == pytest.approx(relative_dimension(null).value)
    assert verdict.answer == "no"


def test_shuffling_keeps_the_values_of_each_column() -> None:
    rows = torch.randn(50, 3, 2)
    found = shuffled(rows, generator(0))
    assert found.shape == (50, 6)
    torch.testing.assert_close(found.sort(dim=0).values, rows.reshape(50, 6).sort(dim=0).values)
    assert not torch.equal(found, rows.reshape(50, 6))


@pytest.mark.parametrize(("n", "d"), [(400, 100), (100, 300)])
@pytest.mark.parametrize("kind", ["covariance", "second_moment"])
def test_an_isotropic_null_is_that_of_samples(n: int, d: int, kind: str) -> None:
    inputs = rotated(n, np.logspace(1, -2, d))
    spectrum = input_spectrum(inputs, kind=kind)
    null = isotropic_spectrum(spectrum, 0)
    assert float(null.eigenvalues.sum()) == pytest.approx(float(spectrum.eigenvalues.sum()))
    direct = input_spectrum(np.random.default_rng(5).standard_normal((n, d)), kind=kind)
    assert participation_ratio(null).value == pytest.approx(participation_ratio(direct).value, rel=0.03)
    assert sloppiness(null).slope_times_rank == pytest.approx(sloppiness(direct).slope_times_rank, rel=0.2)
    assert sloppiness(null).resolved == sloppiness(direct).resolved


@pytest.mark.parametrize(("n", "d"), [(4_000, 800), (500, 1_000)])
def test_quantiles_of_marchenko_and_pastur(n: int, d: int) -> None:
    drawn = input_spectrum(np.random.default_rng(0).standard_normal((n, d)), kind="second_moment").eigenvalues
    limit = marchenko_pastur(n, d)
    assert float(limit.mean()) == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(limit[: len(drawn)].numpy(), drawn.numpy(), atol=0.06)
    assert not limit[min(n, d) :].any()


def test_above_2048_features_the_null_is_the_limit(monkeypatch) -> None:
    spectrum = input_spectrum(rotated(400, np.ones(100)), kind="covariance")
    drawn = isotropic_spectrum(spectrum, 0)
    monkeypatch.setattr("lightning_sloppy.inputs.nulls.MOST_DRAWN", 50)
    limit = isotropic_spectrum(spectrum, 0)
    assert participation_ratio(limit).value == pytest.approx(participation_ratio(drawn).value, rel=0.02)
    assert sloppiness_verdict(spectrum, limit, "").answer == "no"
