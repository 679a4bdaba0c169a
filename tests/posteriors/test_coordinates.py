"""Coordinates: there and back, slopes, and a KL that does not care; starts that fit a prior of several scales."""

from __future__ import annotations

import math

import pytest
import torch
from support.softmax import CLASSES, FEATURES, TRAIN, softmax_problem
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.coordinates import Coordinates, curvature_scales
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID, kl_parts, log_density_ratio
from lightning_sloppy.posteriors.initial_posterior import STIFFNESS_GRID, stiff_start
from lightning_sloppy.posteriors.posterior_certificate import certify_posterior
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian, isotropic

SIZES = (12, 4, 2)
P = sum(SIZES)


def orthonormal(rows: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rows, generator=torch.Generator().manual_seed(seed)).double()).Q


def normal(seed: int, size: int = P) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(params=[True, False], ids=["scaled", "isotropic"])
def coordinates(request) -> Coordinates:
    left, right = orthonormal(4, 0), orthonormal(3, 1)
    scales = normal(2).exp() if request.param else None
    return Coordinates(normal(3), SIZES, ((left, right), (left, None), None), scales)


def dense(coordinates: Coordinates) -> Tensor:
    """The matrix of u to w - w0."""
    columns = [coordinates.weights(unit) - coordinates.origin for unit in torch.eye(P).double()]
    return torch.stack(columns, dim=1)


def test_there_and_back_and_slopes(coordinates) -> None:
    point = normal(4)
    torch.testing.assert_close(coordinates.point(coordinates.weights(point)), point)
    first, bias, rest = torch.split(point if coordinates.scales is None else point * coordinates.scales, list(SIZES))
    left, right = coordinates.bases[0]
    expected = torch.cat([(left @ first.view(4, 3) @ right.T).flatten(), left @ bias, rest]) + coordinates.origin
    torch.testing.assert_close(coordinates.weights(point), expected)
    vectors = torch.linalg.qr(torch.randn(P, 2, generator=torch.Generator().manual_seed(8)).double()).Q
    moved = [coordinates.point(coordinates.origin + column) for column in vectors.T]
    torch.testing.assert_close(coordinates.directions(vectors), torch.stack(moved, dim=1))
    assert coordinates.directions(vectors[:, :0]).shape == (P, 0)
    leaf = point.clone().requires_grad_()
    weights = coordinates.weights(leaf)
    (slope,) = torch.autograd.grad((weights.sin() * normal(5)).sum(), leaf)
    torch.testing.assert_close(coordinates.slope(weights.detach().cos() * normal(5)), slope)


def test_the_kl_is_that_of_the_weights(coordinates) -> None:
    posterior = ScaledGaussian(normal(6), (0.3 * normal(7)).exp(), torch.zeros(P, 0).double(), torch.ones(0).double())
    epsilon, turn = 3.0, dense(coordinates)
    covariance = turn @ torch.diag(posterior.deviations**2) @ turn.T
    exact = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(coordinates.weights(posterior.mean), covariance),
        torch.distributions.MultivariateNormal(coordinates.origin, turn @ turn.T / epsilon),
    )
    assert sum(kl_parts(posterior, torch.zeros(P), epsilon)) == pytest.approx(float(exact), rel=1e-9)
    if coordinates.scales is None:
        torch.testing.assert_close(turn @ turn.T, torch.eye(P).double())


def test_a_less_precise_copy_shares_what_is_shared(coordinates) -> None:
    quick = coordinates.to(torch.device("cpu"), torch.float32)
    assert quick.bases[0][0] is quick.bases[1][0]
    assert quick.weights(normal(4).float()).dtype == torch.float32
    torch.testing.assert_close(
        quick.weights(normal(4).float()).double(), coordinates.weights(normal(4)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": (12, 4)}, "Coordinates of 18 weights were given 3 bases and sizes that add up to 16"),
        ({"bases": (None, None)}, "were given 2 bases"),
        ({"bases": ((orthonormal(5, 0), None), None, None)}, "for a tensor of 12 entries does not fit"),
        ({"bases": ((1.001 * orthonormal(4, 0), orthonormal(3, 1)), None, None)}, "is not orthonormal"),
        ({"bases": ((2.0 * orthonormal(4, 0).float(), orthonormal(3, 1).float()), None, None)}, "is not orthonormal"),
        ({"bases": ((math.nan * orthonormal(4, 0), orthonormal(3, 1)), None, None)}, "is not orthonormal"),
        ({"bases": ((orthonormal(4, 0), orthonormal(6, 1)), None, None)}, "does not fit"),
        ({"scales": torch.zeros(P)}, "must be 18 positive numbers"),
        ({"scales": torch.ones(3)}, "must be 18 positive numbers"),
    ],
)
def test_what_does_not_fit_is_said(given, message) -> None:
    fitting = {"origin": normal(3), "sizes": SIZES, "bases": (None, None, None)}
    with pytest.raises(ConfigurationError, match=message):
        Coordinates(**{**fitting, **given})


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_no_curvature_makes_no_prior(value) -> None:
    with pytest.raises(ConfigurationError, match="makes no prior"):
        curvature_scales(torch.full((4,), value))


@pytest.fixture(scope="module")
def problem():
    return softmax_problem(random_labels=False)


SOFTMAX = FEATURES * CLASSES


def test_a_certificate_in_coordinates_is_of_the_networks_that_were_judged(problem) -> None:
    basis = (orthonormal(FEATURES, 0), orthonormal(CLASSES, 1))
    coordinates = Coordinates(torch.zeros(SOFTMAX).double(), (SOFTMAX,), (basis,), normal(2, SOFTMAX).exp())
    seen = []

    def risk(point: Tensor, indices: Tensor) -> int:
        seen.append(coordinates.weights(point).float())
        return problem.risk(seen[-1], indices)

    posterior = isotropic(coordinates.point(problem.weights.double()), 0.3)
    zero = torch.zeros(SOFTMAX).double()
    final = certify_posterior(
        posterior,
        zero,
        risk,
        n=TRAIN,
        delta=0.05,
        generator=torch.Generator().manual_seed(3),
        coordinates=coordinates,
    )
    assert all(torch.equal(a, b) for a, b in zip(final.networks, seen, strict=True))
    rates = [problem.risk(network, torch.arange(TRAIN)) / TRAIN for network in final.networks]
    assert final.pair.empirical_risk == sum(rates) / 2
    ratios = [
        float(log_density_ratio(posterior, zero, (final.pair.epsilon,), coordinates.point(network.double()))[0])
        for network in final.networks
    ]
    # The mixture over the grid of priors costs at most ln 100 against its nearest one.
    assert sum(ratios) / 2 - 0.01 < final.pair.log_ratio < sum(ratios) / 2 + math.log(len(PRIOR_GRID)) + 0.01


def test_a_start_comes_from_the_grids_and_is_far_from_chance(problem) -> None:
    scales = curvature_scales(torch.logspace(-6, 0, SOFTMAX))
    coordinates = Coordinates(torch.zeros(SOFTMAX).double(), (SOFTMAX,), (None,), scales)
    point = coordinates.point(problem.weights.double())
    looks = []

    def risk(drawn: Tensor, indices: Tensor) -> int:
        looks.append(len(indices))
        return problem.risk(coordinates.weights(drawn.double()).float(), indices)

    start = stiff_start(
        point,
        scales,
        n=TRAIN,
        log_penalty=8.0,
        risk=risk,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float32,
    )
    assert sum(looks[:4]) == 1_000
    assert len(looks) < 4 * 150
    # The precisions are epsilon (1 + kappa s^6), both numbers from their grids.
    precisions = start.deviations**-2
    fits = [
        (epsilon, kappa)
        for epsilon in PRIOR_GRID
        for kappa in STIFFNESS_GRID
        if torch.allclose(precisions, epsilon * (1 + kappa * scales**6), rtol=1e-9)
    ]
    assert len(fits) == 1
    nats = min(sum(kl_parts(start, torch.zeros(SOFTMAX), epsilon)) for epsilon in PRIOR_GRID)
    draws = [start.mean + sign * start.deviations * normal(seed, SOFTMAX) for seed in range(20) for sign in (1, -1)]
    rate = (
        sum(problem.risk(coordinates.weights(one).float(), torch.arange(TRAIN)) for one in draws) / len(draws) / TRAIN
    )
    assert scalar_kl_inverse(rate, (nats + 8.0) / TRAIN) < 0.4 < 1 - 1 / CLASSES
