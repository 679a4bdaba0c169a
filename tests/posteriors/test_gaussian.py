"""KL, draws and log-ratios of the low-rank posterior against dense Gaussians and printed anchors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.factored import diagonal_posterior
from lightning_sloppy.posteriors.families import DiagonalGaussian, JoinedGaussian, KroneckerGaussian, LowRankGaussian
from lightning_sloppy.posteriors.gaussian import (
    PRIOR_GRID,
    Gaussian,
    draw_pair,
    kl_parts,
    log_density_ratio,
    mixture_log_ratio,
)
from lightning_sloppy.posteriors.posterior import (
    family_kl,
    low_rank_posterior,
    posterior_dimension,
    posterior_family,
)
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian, isotropic, scaled

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


def random_family(name: str, seed: int) -> tuple[Gaussian, Tensor]:
    """A posterior over 12 weights and an origin."""
    generator = torch.Generator().manual_seed(seed)
    normal: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    origin = normal(12)
    diagonal = DiagonalGaussian(normal(12), 20 * normal(12).exp())
    kronecker = KroneckerGaussian(
        normal(12), torch.linalg.qr(normal(3, 3)).Q, torch.linalg.qr(normal(4, 4)).Q, 20 * normal(3, 4).exp()
    )
    low_rank, _ = random_posterior(seed, 12, 3)
    joined = JoinedGaussian(
        (
            KroneckerGaussian(
                normal(6), torch.linalg.qr(normal(2, 2)).Q, torch.linalg.qr(normal(3, 3)).Q, 20 * normal(2, 3).exp()
            ),
            DiagonalGaussian(normal(2), 20 * normal(2).exp()),
            random_posterior(seed + 1, 4, 1)[0],
        )
    )
    stretched = ScaledGaussian(
        normal(12), 0.3 * normal(12).exp(), torch.linalg.qr(normal(12, 3)).Q, 4 * normal(3).exp()
    )
    families = {
        "low rank": low_rank,
        "diagonal": diagonal,
        "kronecker": kronecker,
        "joined": joined,
        "scaled": stretched,
        "low rank as scaled": scaled(low_rank),
    }
    return families[name], origin


FAMILIES = ("low rank", "diagonal", "kronecker", "joined", "scaled", "low rank as scaled")


def dense_precision(posterior: Gaussian) -> Tensor:
    """From the form alone: ``e_i^T Lambda e_j`` by polarisation."""
    units = torch.eye(posterior.dim, dtype=torch.float64)
    forms = [[posterior.precision_form(one + other) for other in units] for one in units]
    alone = torch.tensor([posterior.precision_form(unit) for unit in units], dtype=torch.float64)
    return (torch.tensor(forms, dtype=torch.float64) - alone[:, None] - alone) / 2


def dense_pair(posterior: Gaussian, origin: Tensor, epsilon: float) -> tuple[torch.distributions.Distribution, ...]:
    posterior_ = torch.distributions.MultivariateNormal(posterior.mean, precision_matrix=dense_precision(posterior))
    eye = torch.eye(posterior.dim, dtype=torch.float64)
    return posterior_, torch.distributions.MultivariateNormal(origin, precision_matrix=epsilon * eye)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_family_against_dense_gaussians(name: str, seed: int) -> None:
    """One matrix behind the form, the determinant, the root and the KL."""
    posterior, origin = random_family(name, seed)
    precision = dense_precision(posterior)
    assert posterior.log_det_precision() == pytest.approx(torch.logdet(precision).item(), rel=1e-10)
    units = torch.eye(12, dtype=torch.float64)
    root = torch.stack([posterior.root_covariance_times(unit) for unit in units], dim=1)
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(precision))
    drawn = posterior.mean + posterior.root_covariance_times(torch.linspace(-2, 2, 12, dtype=torch.float64))
    for epsilon in (0.3, 15.0, 400.0):
        dense_posterior, dense_prior = dense_pair(posterior, origin, epsilon)
        expected = torch.distributions.kl_divergence(dense_posterior, dense_prior).item()
        assert sum(kl_parts(posterior, origin, epsilon)) == pytest.approx(expected, rel=1e-9)
        log_ratio = (dense_posterior.log_prob(drawn) - dense_prior.log_prob(drawn)).item()
        found = log_density_ratio(posterior, origin, (epsilon,), drawn).item()
        assert found == pytest.approx(log_ratio, rel=1e-9, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_log_ratio_of_drawn_pairs_is_the_kl_of_every_family(name: str) -> None:
    posterior, origin = random_family(name, 4)
    generator = torch.Generator().manual_seed(0)
    ratios = torch.tensor(
        [
            sum(
                log_density_ratio(posterior, origin, (20.0,), drawn).item()
                for drawn in draw_pair(posterior, generator, dtype=torch.float64)
            )
            / 2
            for _ in range(500)
        ],
        dtype=torch.float64,
    )
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert float(ratios.mean()) == pytest.approx(sum(kl_parts(posterior, origin, 20.0)), abs=4 * error)


def test_a_diagonal_of_one_precision_is_isotropic_and_costs_nothing_at_the_prior() -> None:
    precisions = torch.full((6,), EPSILON, dtype=torch.float64)
    assert DiagonalGaussian(ORIGIN, precisions).covariance_cost(EPSILON) == 0.0
    isotropic = LowRankGaussian(ORIGIN, torch.zeros(6, 0).double(), precisions[:0], 35.0)
    assert DiagonalGaussian(ORIGIN, precisions / EPSILON * 35.0).covariance_cost(EPSILON) == pytest.approx(
        isotropic.covariance_cost(EPSILON), rel=1e-14
    )


def test_a_scaled_low_rank_gaussian_is_the_same() -> None:
    posterior, origin = random_posterior(3, 9, 2)
    same = scaled(posterior)
    assert same.rank == 2
    assert sum(kl_parts(same, origin, 7.0)) == pytest.approx(sum(kl_parts(posterior, origin, 7.0)), rel=1e-12)
    assert isotropic(ORIGIN, EPSILON**-0.5).covariance_cost(EPSILON) == pytest.approx(0.0, abs=1e-12)


def test_a_kronecker_anchor() -> None:
    """Rotations by 0.3 and 0.7; element variances q, prior precision 20: the KL by hand."""

    def turned(size: int, angle: float) -> Tensor:
        basis = torch.eye(size, dtype=torch.float64)
        basis[:2, :2] = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        return basis

    variances = torch.tensor([[0.01, 0.02, 0.05], [0.03, 0.05, 0.04]], dtype=torch.float64)
    mean = torch.tensor([0.1, 0.2, -0.1, 0.0, 0.3, 0.05], dtype=torch.float64)
    posterior = KroneckerGaussian(mean, turned(2, 0.3), turned(3, 0.7), 1 / variances)
    expected = 0.5 * sum(20 * v - 1 - math.log(20 * v) for v in variances.flatten().tolist())
    assert posterior.covariance_cost(20.0) == pytest.approx(expected, rel=1e-12)
    assert kl_parts(posterior, ORIGIN, 20.0)[0] == pytest.approx(10 * float(mean.square().sum()), rel=1e-12)


def test_families_that_make_no_sense() -> None:
    ones = torch.ones(6, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="as many positive precisions"):
        DiagonalGaussian(ORIGIN, ones[:5])
    with pytest.raises(ConfigurationError, match="with the least 0"):
        DiagonalGaussian(ORIGIN, ones * 0)
    eye = torch.eye(2, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="bases of 2 and 3 needs 6 weights"):
        KroneckerGaussian(ORIGIN[:5], *eye, ones.view(2, 3))
    with pytest.raises(ConfigurationError, match="basis of the inputs is orthonormal only to"):
        KroneckerGaussian(ORIGIN, eye[0], eye[1] * 1.001, ones.view(2, 3))
    with pytest.raises(ConfigurationError, match="they must be positive"):
        KroneckerGaussian(ORIGIN, *eye, -ones.view(2, 3))
    with pytest.raises(ConfigurationError, match=r"vectors \(p, k\) and factors \(k,\)"):
        ScaledGaussian(ORIGIN, ones, ones[:, None], ones)
    with pytest.raises(ConfigurationError, match="not positive numbers"):
        ScaledGaussian(ORIGIN, -ones, ones[:, None] / 6**0.5, ones[:1])
    with pytest.raises(ConfigurationError, match="vectors of a posterior are orthonormal only to"):
        ScaledGaussian(ORIGIN, ones, ones[:, None], ones[:1])
    with pytest.raises(ConfigurationError, match="at least one part"):
        JoinedGaussian(())


@pytest.mark.parametrize(("residual", "expected"), [(EPSILON, 6.036651193095), (35.0, 6.298739911823)])
def test_kl_anchors(residual: float, expected: float) -> None:
    displacement, covariance = kl_parts(anchor(residual), ORIGIN, EPSILON)
    assert displacement == pytest.approx(1.525, abs=1e-12)
    assert displacement + covariance == pytest.approx(expected, abs=1e-11)


def test_log_ratio_anchors() -> None:
    posterior = anchor(EPSILON)
    step = posterior.root_covariance_times(NOISE)
    plus, minus = (
        log_density_ratio(posterior, ORIGIN, (EPSILON,), posterior.mean + sign * step).item() for sign in (1, -1)
    )
    assert plus == pytest.approx(7.8910366188, abs=1e-9)
    assert (plus + minus) / 2 == pytest.approx(6.3570116562, abs=1e-9)


@pytest.mark.parametrize(("p", "k"), [(1, 0), (1, 1), (4, 0), (5, 2), (7, 7), (12, 5)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kl_and_log_ratio_against_dense_gaussians(p: int, k: int, seed: int) -> None:
    posterior, origin = random_posterior(seed, p, k)
    weights = posterior.mean + posterior.root_covariance_times(torch.linspace(-2, 2, p, dtype=torch.float64))
    ratios = log_density_ratio(posterior, origin, (0.3, 15.0, 400.0), weights)
    for epsilon, ratio in zip((0.3, 15.0, 400.0), ratios, strict=True):
        dense_posterior, dense_prior = dense_pair(posterior, origin, epsilon)
        expected = torch.distributions.kl_divergence(dense_posterior, dense_prior).item()
        assert sum(kl_parts(posterior, origin, epsilon)) == pytest.approx(expected, rel=1e-10)
        log_ratio = (dense_posterior.log_prob(weights) - dense_prior.log_prob(weights)).item()
        assert ratio.item() == pytest.approx(log_ratio, rel=1e-9, abs=1e-9)


def test_the_root_is_the_symmetric_root_of_the_covariance() -> None:
    posterior, _ = random_posterior(3, 8, 3)
    root = torch.stack([posterior.root_covariance_times(unit) for unit in torch.eye(8, dtype=torch.float64)])
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


@pytest.mark.parametrize("shrink", [False, True])
def test_a_diagonal_posterior_is_what_its_formula_says(shrink: bool) -> None:
    weights, curvature = SHIFT.float(), torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 3.0])
    found = diagonal_posterior(
        weights, ORIGIN.float() + 1, curvature, epsilon=2.0, tau=4.0, mean_scale=0.5, shrink=shrink
    )
    stiff = 4.0 * curvature.double().clamp(min=0)
    torch.testing.assert_close(found.precisions, stiff + 2.0)
    kept = 0.5 * (stiff / (stiff + 2.0) if shrink else torch.ones(6).double())
    torch.testing.assert_close(found.mean, 1 + kept * (weights.double() - 1))


def test_the_dimension_of_a_posterior_from_its_dense_spectrum() -> None:
    values = torch.tensor([3.0, 0.5, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    family = posterior_family(
        SHIFT,
        ORIGIN,
        eigenvalues=values[:2],
        eigenvectors=torch.eye(6, dtype=torch.float64)[:, :2],
        trace=float(values.sum()),
    )
    expected = float((TAU * values / (TAU * values + EPSILON)).sum())
    assert posterior_dimension(family, epsilon=EPSILON, tau=TAU) == pytest.approx(expected, rel=1e-12)


def test_diagonal_posteriors_that_make_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="weights, prior mean and curvature"):
        diagonal_posterior(SHIFT, ORIGIN, SHIFT[:3], epsilon=1.0, tau=1.0)
    with pytest.raises(ConfigurationError, match="epsilon > 0"):
        diagonal_posterior(SHIFT, ORIGIN, SHIFT, epsilon=0.0, tau=1.0)
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        diagonal_posterior(SHIFT, ORIGIN, SHIFT * math.nan, epsilon=1.0, tau=1.0)
