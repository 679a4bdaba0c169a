"""KL, draws and log-ratios of the low-rank posterior against dense Gaussians and printed anchors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_sloppy.bounds.gaussian import (
    LowRankGaussian,
    draw_pair,
    kl_parts,
    log_density_ratio,
    root_covariance_times,
)
from lightning_sloppy.bounds.mixture import PRIOR_GRID, mixture_log_ratio
from lightning_sloppy.bounds.posterior import family_kl, low_rank_posterior, posterior_family
from lightning_sloppy.errors import ConfigurationError

EPSILON, TAU = 20.0, 4.0 * 999
SHIFT = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.05, -0.1], dtype=torch.float64)
NOISE = torch.tensor([0.5, -1.0, 0.25, 2.0, -0.5, 1.0], dtype=torch.float64)
ORIGIN = torch.zeros(6, dtype=torch.float64)


def anchor(residual_precision: float) -> LowRankGaussian:
    vectors = torch.tensor([[1.0] * 6, [1.0, -1.0] * 3], dtype=torch.float64).T / math.sqrt(6)
    values = torch.tensor([3.0, 0.5], dtype=torch.float64)
    return LowRankGaussian(SHIFT, vectors, TAU * values + EPSILON, residual_precision)


def random_posterior(seed: int, p: int, k: int) -> tuple[LowRankGaussian, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    vectors = torch.linalg.qr(normal(p, k)).Q
    return LowRankGaussian(normal(p), vectors, 30 * normal(k).exp(), float(20 * normal(1).exp())), normal(p)


def dense_precision(posterior: LowRankGaussian) -> Tensor:
    along = posterior.vectors @ torch.diag(posterior.precisions) @ posterior.vectors.T
    outside = torch.eye(posterior.dim, dtype=torch.float64) - posterior.vectors @ posterior.vectors.T
    return along + posterior.residual_precision * outside


def dense_pair(
    posterior: LowRankGaussian, origin: Tensor, epsilon: float
) -> tuple[torch.distributions.Distribution, ...]:
    posterior_ = torch.distributions.MultivariateNormal(posterior.mean, precision_matrix=dense_precision(posterior))
    eye = torch.eye(posterior.dim, dtype=torch.float64)
    return posterior_, torch.distributions.MultivariateNormal(origin, precision_matrix=epsilon * eye)


@pytest.mark.parametrize(("residual", "expected"), [(EPSILON, 6.036651193095), (35.0, 6.298739911823)])
def test_kl_anchors(residual: float, expected: float) -> None:
    displacement, covariance = kl_parts(anchor(residual), ORIGIN, EPSILON)
    assert displacement == pytest.approx(1.525, abs=1e-12)
    assert displacement + covariance == pytest.approx(expected, abs=1e-11)


def test_log_ratio_anchors() -> None:
    posterior = anchor(EPSILON)
    step = root_covariance_times(posterior, NOISE)
    plus, minus = (
        log_density_ratio(posterior, ORIGIN, (EPSILON,), posterior.mean + sign * step).item() for sign in (1, -1)
    )
    assert plus == pytest.approx(7.8910366188, abs=1e-9)
    assert (plus + minus) / 2 == pytest.approx(6.3570116562, abs=1e-9)


@pytest.mark.parametrize(("p", "k"), [(1, 0), (1, 1), (4, 0), (5, 2), (7, 7), (12, 5)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kl_and_log_ratio_against_dense_gaussians(p: int, k: int, seed: int) -> None:
    posterior, origin = random_posterior(seed, p, k)
    weights = posterior.mean + root_covariance_times(posterior, torch.linspace(-2, 2, p, dtype=torch.float64))
    ratios = log_density_ratio(posterior, origin, (0.3, 15.0, 400.0), weights)
    for epsilon, ratio in zip((0.3, 15.0, 400.0), ratios, strict=True):
        dense_posterior, dense_prior = dense_pair(posterior, origin, epsilon)
        expected = torch.distributions.kl_divergence(dense_posterior, dense_prior).item()
        assert sum(kl_parts(posterior, origin, epsilon)) == pytest.approx(expected, rel=1e-10)
        log_ratio = (dense_posterior.log_prob(weights) - dense_prior.log_prob(weights)).item()
        assert ratio.item() == pytest.approx(log_ratio, rel=1e-9, abs=1e-9)


def test_the_root_is_the_symmetric_root_of_the_covariance() -> None:
    posterior, _ = random_posterior(3, 8, 3)
    root = torch.stack([root_covariance_times(posterior, unit) for unit in torch.eye(8, dtype=torch.float64)])
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, torch.linalg.inv(dense_precision(posterior)))


def test_kl_is_zero_if_and_only_if_the_posterior_is_the_prior() -> None:
    vectors = anchor(EPSILON).vectors
    prior = LowRankGaussian(ORIGIN, vectors, torch.full((2,), EPSILON, dtype=torch.float64), EPSILON)
    assert kl_parts(prior, ORIGIN, EPSILON) == (0.0, 0.0)
    moved = LowRankGaussian(ORIGIN + 1e-6, vectors, prior.precisions, EPSILON)
    sharper = LowRankGaussian(ORIGIN, vectors, prior.precisions * 1.001, EPSILON)
    wider = LowRankGaussian(ORIGIN, vectors, prior.precisions, EPSILON * 0.999)
    assert all(sum(kl_parts(other, ORIGIN, EPSILON)) > 0.0 for other in (moved, sharper, wider))


def test_mean_log_ratio_over_draws_is_the_kl() -> None:
    posterior, origin = anchor(35.0), ORIGIN
    generator = torch.Generator().manual_seed(0)
    draws = 2000
    means = torch.empty(draws, dtype=torch.float64)
    for index in range(draws):
        pair = draw_pair(posterior, generator, dtype=torch.float64)
        means[index] = sum(log_density_ratio(posterior, origin, (EPSILON,), drawn).item() for drawn in pair) / 2
    error = float(means.std()) / math.sqrt(draws)
    assert error < 0.05
    assert float(means.mean()) == pytest.approx(6.298739911823, abs=4 * error)


def test_a_pair_is_antithetic_and_rounded_to_what_is_evaluated() -> None:
    posterior, origin = random_posterior(5, 40, 3)
    plus, minus = draw_pair(posterior, torch.Generator().manual_seed(1))
    again, _ = draw_pair(posterior, torch.Generator().manual_seed(1))
    assert plus.dtype == torch.float32
    assert torch.equal(plus, again)
    torch.testing.assert_close((plus.double() + minus.double()) / 2, posterior.mean, atol=1e-6, rtol=0)
    rounded = log_density_ratio(posterior, origin, (20.0,), plus)
    assert torch.equal(rounded, log_density_ratio(posterior, origin, (20.0,), plus.double()))


def test_mixture_never_costs_more_than_its_best_member() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 50.0, 1e5):
        costs = scale * torch.rand(100, generator=generator, dtype=torch.float64)
        found = mixture_log_ratio(costs)
        assert float(costs.min()) <= found + 1e-9
        assert found <= float(costs.min()) + math.log(100) + 1e-9
        assert found <= float(costs.mean()) + 1e-9  # Jensen


def test_mixture_against_the_densities() -> None:
    posterior, origin = random_posterior(7, 3, 1)
    weights, epsilons = posterior.mean + 0.1, (1.0, 10.0, 100.0)
    dense_posterior = dense_pair(posterior, origin, 1.0)[0]
    priors = torch.stack([dense_pair(posterior, origin, epsilon)[1].log_prob(weights) for epsilon in epsilons])
    expected = dense_posterior.log_prob(weights) - priors.exp().mean().log()
    found = mixture_log_ratio(log_density_ratio(posterior, origin, epsilons, weights))
    assert found == pytest.approx(expected.item(), rel=1e-10)


def test_the_prior_grid_is_what_it_is() -> None:
    assert len(PRIOR_GRID) == 100
    assert PRIOR_GRID[0] == pytest.approx(1e-2)
    assert PRIOR_GRID[-1] == pytest.approx(1e6)
    steps = [math.log(after / before) for before, after in itertools.pairwise(PRIOR_GRID)]
    assert steps == pytest.approx([math.log(1e8) / 99] * 99)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("trace", [None, 9.0, 1.0])
def test_family_against_the_dense_formula(trace: float | None, shrink: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    p, k, tau, epsilon, scale = 9, 3, 50.0, 12.0, 0.7
    weights, origin = torch.randn(2, p, generator=generator)
    values = torch.tensor([4.0, 0.5, -0.2])
    # Neither orthogonal nor of unit length to float32 only: the family repairs it.
    vectors = torch.linalg.qr(torch.randn(p, k, generator=generator)).Q * 1.0001
    family = posterior_family(weights, origin, eigenvalues=values, eigenvectors=vectors, trace=trace)
    posterior = low_rank_posterior(family, epsilon=epsilon, tau=tau, mean_scale=scale, shrink=shrink)

    rest = 0.0 if trace is None else max(trace - 4.3, 0.0) / (p - k)
    torch.testing.assert_close(posterior.precisions, tau * values.double().clamp(min=0) + epsilon)
    assert posterior.residual_precision == pytest.approx(tau * rest + epsilon, rel=1e-6)
    torch.testing.assert_close(posterior.vectors.T @ posterior.vectors, torch.eye(k, dtype=torch.float64))

    displacement = scale * (weights.double() - origin.double())
    if shrink:
        curvature = dense_precision(posterior) - epsilon * torch.eye(p, dtype=torch.float64)
        displacement = curvature @ torch.linalg.solve(dense_precision(posterior), displacement)
    torch.testing.assert_close(posterior.mean, origin.double() + displacement)

    free = family_kl(family, (3.0, epsilon), tau=tau, mean_scale=scale, shrink=shrink)
    assert free[1].item() == pytest.approx(sum(kl_parts(posterior, origin, epsilon)), rel=1e-9)


def test_an_isotropic_family_needs_no_eigenpairs() -> None:
    family = posterior_family(torch.ones(4), torch.zeros(4), eigenvalues=torch.zeros(0), eigenvectors=torch.zeros(4, 0))
    posterior = low_rank_posterior(family, epsilon=2.0, tau=10.0)
    assert kl_parts(posterior, torch.zeros(4), 2.0) == (4.0, 0.0)


def test_bad_ingredients_are_refused() -> None:
    one, vectors = torch.ones(3), torch.eye(3)[:, :1]
    with pytest.raises(ConfigurationError, match="flatten"):
        posterior_family(one, torch.ones(2), eigenvalues=one[:1], eigenvectors=vectors)
    with pytest.raises(ConfigurationError, match="NaN"):
        posterior_family(one * math.nan, one, eigenvalues=one[:1], eigenvectors=vectors)
    with pytest.raises(ConfigurationError, match="NaN"):
        posterior_family(one, one, eigenvalues=one[:1], eigenvectors=vectors, trace=math.inf)
    family = posterior_family(one, one, eigenvalues=one[:1], eigenvectors=vectors)
    with pytest.raises(ConfigurationError, match="epsilon > 0"):
        low_rank_posterior(family, epsilon=0.0, tau=1.0)
