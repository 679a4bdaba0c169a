from __future__ import annotations

import math

import pytest
import torch
from support.instruments import DECLARED

from lightning_sloppy.linalg.operator import DenseOperator
from lightning_sloppy.linalg.quadrature import lanczos_density
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.records import Cost, Density, Measurement, Spectrum, Status
from lightning_sloppy.reporting.histograms import histograms, log10_histogram


def spectrum(values: list[float], *, floor: float = 1e-9, density: Density | None = None, truncated: bool = False):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    return Spectrum(
        eigenvalues, 100, 8, "hessian", floor, Status.CONVERGED, torch.zeros_like(eigenvalues), 1.0, 0.0,
        density=density, truncated=truncated,
    )  # fmt: skip


def density(nodes: list[list[float]], weights: list[list[float]]) -> Density:
    weight = torch.tensor(weights).double()
    return Density((), (), torch.tensor(nodes).double(), weight, False, weight.sum(1))  # as if every node had converged


def test_all_eigenvalues_of_one_sign_above_the_floor_are_counted_once():
    generator = torch.Generator().manual_seed(0)
    values = (10 ** (8 * torch.rand(500, generator=generator, dtype=torch.float64) - 6)).tolist()
    both = [*values, *(-v for v in values[:40]), 0.0, 1e-12, -1e-12]
    positive, negative = log10_histogram(spectrum(both)), log10_histogram(spectrum(both), negative=True)
    assert positive.num == sum(positive.bucket_counts) == 500
    assert negative.num == sum(negative.bucket_counts) == 40
    logs = torch.tensor(values).double().log10()
    assert positive.total == pytest.approx(float(logs.sum()))
    assert positive.sum_squares == pytest.approx(float((logs**2).sum()))


def test_edges_enclose_the_values_and_the_end_bins_are_not_empty():
    histogram = log10_histogram(spectrum([3.0, 0.02, 0.02, 4e-7]))
    assert histogram.bucket_counts[0] == 1.0
    assert histogram.bucket_counts[-1] == 1.0
    assert histogram.minimum <= math.log10(4e-7) < histogram.minimum + 0.25
    assert histogram.maximum - 0.25 <= math.log10(3.0) < histogram.maximum
    assert histogram.bucket_limits[-1] == histogram.maximum
    assert len(histogram.bucket_limits) == len(histogram.bucket_counts)
    assert all(b - a == 0.25 for a, b in zip(histogram.bucket_limits, histogram.bucket_limits[1:], strict=False))


def test_a_single_eigenvalue_gives_a_single_bin():
    histogram = log10_histogram(spectrum([1.0]))
    assert (histogram.minimum, histogram.maximum, histogram.bucket_counts) == (0.0, 0.25, (1.0,))


def test_missing_eigenvalues_are_replaced_by_quadrature_weights():
    seen = density([[10.0, 0.1, -2.0, 0.0], [10.0, 0.1, 0.0, 0.0]], [[1.0, 3.5, 2.0, 93.5], [2.0, 4.0, 94.0, 0.0]])
    histogram = log10_histogram(spectrum([10.0], density=seen, truncated=True))
    assert histogram.num == pytest.approx(0.5 * (1.0 + 3.5 + 2.0 + 4.0))
    assert histogram.bucket_counts[-1] == pytest.approx(1.5)
    assert log10_histogram(spectrum([10.0], density=seen, truncated=True), negative=True).num == pytest.approx(1.0)
    assert log10_histogram(spectrum([10.0], density=seen, truncated=False)).num == 1.0


@pytest.mark.parametrize("values", [[], [0.0], [1e-12], [math.nan, math.inf]])
def test_nothing_to_count_is_no_histogram(values):
    assert log10_histogram(spectrum(values)) is None


def test_tags_follow_the_instrument_and_the_sign():
    def drawn(group: str, status: Status = Status.CONVERGED) -> set[str]:
        event = Measurement(0, 0, group, spectrum([1.0, -1.0]), {}, Cost(), status)
        return set(histograms(event, DECLARED[group]))

    assert drawn("hessian") == {
        "sloppy_hessian/log10_eigenvalues",
        "sloppy_hessian/log10_eigenvalues_negative",
    }
    assert drawn("fisher") == {"sloppy_fisher/log10_eigenvalues"}
    assert not drawn("hessian", Status.NON_FINITE)
    assert histograms(Measurement(0, 0, "bound", None, {}, Cost(), Status.CONVERGED), DECLARED["bound"]) == {}


@pytest.mark.parametrize("steps", [8, 20, 39])
def test_zeros_seen_through_few_steps_are_not_drawn_as_small_eigenvalues(steps):
    rank, dim = 40, 600
    values = torch.zeros(dim, dtype=torch.float64)
    values[:rank] = torch.logspace(1, -3, rank, dtype=torch.float64)
    seen = lanczos_density(
        DenseOperator(torch.diag(values)), rademacher(dim, 4, generator(0)).double(), steps=steps, rng=generator(1),
        positive_semidefinite=True,
    )  # fmt: skip
    drawn = log10_histogram(spectrum([10.0], density=seen, truncated=True))
    assert 1 < drawn.num <= rank + 1e-6
    assert drawn.maximum >= 1.0
