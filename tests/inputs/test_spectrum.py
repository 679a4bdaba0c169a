"""input_spectrum against numpy and scikit-learn in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.moments import InputMoments, Moments
from lightning_sloppy.inputs.spectrum import InputKind, input_spectrum, moments_spectrum
from lightning_sloppy.records import Estimate, Status

KINDS: tuple[InputKind, ...] = ("correlation", "covariance", "second_moment")
DIGITS = torch.from_numpy(load_digits().data)


def expected(inputs: np.ndarray, kind: str) -> np.ndarray:
    rows = inputs.reshape(len(inputs), -1).astype(np.float64)
    if kind == "correlation":
        matrix = np.corrcoef(rows[:, np.ptp(rows, axis=0) > 0], rowvar=False)
    elif kind == "covariance":
        matrix = np.cov(rows, rowvar=False, bias=True)
    else:
        matrix = rows.T @ rows / len(rows)
    return np.linalg.eigvalsh(np.atleast_2d(matrix))[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_digits_match_numpy(kind: InputKind) -> None:
    spectrum = input_spectrum(DIGITS.reshape(-1, 8, 8), kind)
    values = expected(DIGITS.numpy(), kind)
    np.testing.assert_allclose(spectrum.eigenvalues.numpy(), values, rtol=0, atol=1e-12 * values[0])
    assert spectrum.eigenvalues.dtype == torch.float64
    assert bool((spectrum.eigenvalues.diff() <= 0).all())
    assert spectrum.dim == len(values) == (61 if kind == "correlation" else 64)
    assert spectrum.detail == {"constant_columns": 3, "num_features": 64}
    assert spectrum.num_samples == 1797
    assert spectrum.matrix == kind
    assert spectrum.status is Status.EXACT
    assert spectrum.rank_bound == spectrum.dim
    assert not spectrum.truncated
    assert spectrum.trace is not None
    assert spectrum.trace.value == pytest.approx(values.sum(), rel=1e-12)
    assert spectrum.trace.total_error == 0
    assert spectrum.largest == float(spectrum.eigenvalues[0])
    assert spectrum.cost.seconds > 0
    assert spectrum.residuals.shape == spectrum.eigenvalues.shape


def test_covariance_matches_principal_components() -> None:
    values = PCA().fit(DIGITS.numpy()).explained_variance_ * (len(DIGITS) - 1) / len(DIGITS)
    found = input_spectrum(DIGITS, "covariance").eigenvalues.numpy()
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-12 * values[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_passing_the_same_inputs(kind: InputKind) -> None:
    inputs = DIGITS[:100, 2:6].float().contiguous()
    whole = input_spectrum(inputs, kind).eigenvalues
    loader = DataLoader(TensorDataset(inputs, torch.zeros(100)), batch_size=7)
    for given in (
        inputs.numpy(),
        inputs.reshape(100, 2, 2),
        list(inputs.split(1)),
        (batch for batch in inputs.split(33)),
        [(batch, None) for batch in inputs.split(50)],
        [[batch.numpy()] for batch in inputs.split(50)],
        loader,
    ):
        torch.testing.assert_close(input_spectrum(given, kind).eigenvalues, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "rank"), [("correlation", 9), ("covariance", 9), ("second_moment", 10)])
def test_fewer_samples_than_features(kind: InputKind, rank: int) -> None:
    inputs = torch.randn(10, 30, generator=torch.Generator().manual_seed(0)).double()
    spectrum = input_spectrum(inputs, kind)
    assert spectrum.rank_bound == rank
    assert spectrum.dim == 30
    np.testing.assert_allclose(spectrum.eigenvalues.numpy(), expected(inputs.numpy(), kind)[:10], atol=1e-12)
    assert int((spectrum.eigenvalues > spectrum.floor).sum()) == rank
    assert abs(spectrum.smallest) < spectrum.floor


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("correlation", 0.0), ("correlation", 1e6), ("covariance", 0.0), ("covariance", 1e6), ("second_moment", 0.0)],
)
def test_exactly_dependent_columns_fall_below_the_floor_and_nothing_else(kind: InputKind, mean: float) -> None:
    rng = torch.Generator().manual_seed(3)
    base = torch.randn(3000, 20, generator=rng, dtype=torch.float64) * 10 ** -torch.linspace(0, 4, 20).double()
    base = torch.round(base * 2**26) / 2**26 + mean  # sums and differences are then exact
    spectrum = input_spectrum(torch.cat([base, base[:, :10] - base[:, 10:]], dim=1), kind)
    assert spectrum.dim == 30
    assert int((spectrum.eigenvalues > spectrum.floor).sum()) == 20


def test_rounding_of_the_data_stays_visible() -> None:
    base = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) + 1000
    spectrum = input_spectrum(torch.cat([base, base.sum(dim=1, keepdim=True)], dim=1))
    assert 1e-10 < float(spectrum.eigenvalues[-1]) < 1e-8
    assert float(spectrum.eigenvalues[-1]) > 100 * spectrum.floor


def test_three_gaussian_features_with_a_mean_of_a_million() -> None:
    inputs = np.random.default_rng(0).multivariate_normal([1e6] * 3, [[4, 1, 0], [1, 2, 0.5], [0, 0.5, 1]], size=5000)
    for kind in KINDS[:2]:
        found = input_spectrum(iter(np.array_split(inputs, 50)), kind).eigenvalues.numpy()
        np.testing.assert_allclose(found, expected(inputs, kind), rtol=1e-10)


def test_correlation_does_not_see_the_scales_of_the_features() -> None:
    inputs = DIGITS[:, 2:6]
    scaled = inputs * torch.tensor([1e-100, 1.0, 1e30, 1e100], dtype=torch.float64)
    torch.testing.assert_close(input_spectrum(scaled).eigenvalues, input_spectrum(inputs).eigenvalues)


@pytest.mark.parametrize("kind", KINDS)
def test_isotropic_inputs_spread_by_marchenko_and_pastur_only(kind: InputKind) -> None:
    inputs = torch.randn(4000, 100, generator=torch.Generator().manual_seed(0))
    values = input_spectrum(inputs, kind).eigenvalues
    edge = math.sqrt(100 / 4000)
    assert math.log10(values[0] / values[-1]) == pytest.approx(2 * math.log10((1 + edge) / (1 - edge)), abs=0.02)


def test_one_pass_serves_all_kinds() -> None:
    metric = InputMoments()
    metric.update(DIGITS)
    moments = metric.compute()
    for kind in KINDS:
        assert torch.equal(moments_spectrum(moments, kind).eigenvalues, moments_spectrum(metric, kind).eigenvalues)


def test_a_single_feature() -> None:
    spectrum = input_spectrum(torch.tensor([1.0, 3.0]), "covariance")
    assert spectrum.eigenvalues.tolist() == [1.0]
    assert input_spectrum([torch.tensor([[1.0], [3.0]])]).trace == Estimate(1.0)


def test_constant_inputs_have_a_second_moment_only() -> None:
    inputs = torch.full((5, 2), 3.0)
    spectrum = input_spectrum(inputs, "second_moment")
    assert spectrum.eigenvalues.tolist() == pytest.approx([18.0, 0.0])
    assert spectrum.detail["constant_columns"] == 2
    for kind in KINDS[:2]:
        with pytest.raises(ConfigurationError, match="all 2 columns are constant over 5 samples"):
            input_spectrum(inputs, kind)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no inputs"),
        (torch.zeros(0, 3), "no inputs"),
        (torch.zeros(1, 3), "at least two samples"),
        (torch.tensor([[1.0, float("nan")], [2.0, 3.0]]), "1 of 4 numbers .*first: 1"),
        (torch.tensor([[1e200, 1.0], [-1e200, 2.0]], dtype=torch.float64), "overflow"),
        (torch.tensor([[1e-200, 1.0], [1e-200, 1.0]], dtype=torch.float64), "all 2 columns are constant"),
        (torch.ones(4, 3, dtype=torch.int64), "embedding"),
        (torch.zeros(2, 8193), "select or pool"),
        (TensorDataset(torch.zeros(4, 3)), "DataLoader"),
        ({"x": torch.zeros(4, 3)}, "a dict was given"),
        ("inputs.csv", "a str was given"),
        (3.0, "a float was given"),
        ([{"x": torch.zeros(4, 3)}], "one is a dict"),
        ([(torch.zeros(4, 3), torch.zeros(4), torch.zeros(4))], "one is a tuple"),
        ([torch.zeros(3), torch.ones(3)], r"shape \(3,\)"),
    ],
)
def test_what_is_refused(inputs: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        input_spectrum(inputs)  # type: ignore[arg-type]


def test_an_unknown_kind_is_refused_before_anything_is_read() -> None:
    inputs = iter([torch.zeros(2, 2)])
    with pytest.raises(ConfigurationError, match="'gram' was asked for; choose one of correlation, covariance"):
        input_spectrum(inputs, "gram")  # type: ignore[arg-type]
    assert len(list(inputs)) == 1
    with pytest.raises(ConfigurationError, match="choose one of"):
        moments_spectrum(InputMoments(), "gram")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "d", "side"), [(90_000, 3, 300.0), (400, 30, 30.0), (900, 30, 30.0), (1600, 30, 40.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_is_two_roundings_of_the_longer_sum(n: int, d: int, side: float, kind: InputKind) -> None:
    """Of d by the solver or of n by the sums, whichever is more: max(d, sqrt(n))."""
    moments = Moments(n, torch.zeros(d).double(), n * torch.diag(torch.linspace(1, 3, d).double()))
    found = moments_spectrum(moments, kind)
    assert found.floor == pytest.approx(2 * 2.0**-52 * side * float(found.eigenvalues[0]), rel=1e-9, abs=0)
