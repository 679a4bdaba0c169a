"""Optimised posteriors: the gradient is the bound's, and what is learnt is certified by what it never saw."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from support.softmax import CLASSES, FEATURES, TRAIN, Problem, softmax_problem
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import log_xi, scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.descent import Descent
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID, kl_parts
from lightning_sloppy.posteriors.learning import learn_posterior
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.posterior_certificate import certify_posterior
from lightning_sloppy.posteriors.scaled_gaussian import ScaledGaussian, isotropic

N = 1000
STILL = LearningPlan(mean_rate=0.0, spread_rate=0.0)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return softmax_problem(random_labels=False)


def learnt(problem: Problem, *, plan: LearningPlan | None = None, seed: int = 0, **options: object):
    names = [name for name in ("spread", "epochs") if name in options]
    given = {"epochs": 30, **{name: options.pop(name) for name in names}}
    plan = plan or LearningPlan(seconds=60, batch_size=100, mean_rate=0.02, spread_rate=0.05, **given)
    return learn_posterior(
        isotropic(problem.weights, 0.5),
        torch.zeros_like(problem.weights),
        problem.surrogate,
        n=TRAIN,
        examples=torch.arange(TRAIN),
        delta=0.03,
        plan=plan,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def certified(problem: Problem, posterior: ScaledGaussian, seed: int = 1):
    return certify_posterior(
        posterior,
        torch.zeros_like(problem.weights),
        problem.risk,
        n=TRAIN,
        delta=0.05,
        generator=torch.Generator().manual_seed(seed),
    )


def start(k: int) -> ScaledGaussian:
    generator = torch.Generator().manual_seed(k)
    normal = torch.randn(6, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(6, k, generator=generator, dtype=torch.float64)).Q
    return ScaledGaussian(normal, 0.1 * normal.roll(1).exp(), vectors, torch.linspace(0.5, 4, k).double())


def squares(weights: Tensor, indices: Tensor) -> tuple[float, int, Tensor]:
    return float(weights.square().sum()), 2, 2 * weights


def objective(
    mean: Tensor, relative: Tensor, scale: Tensor, log_factors: Tensor, vectors: Tensor, noise: Tensor, tau: float
) -> Tensor:
    """``tau * loss + K`` from the dense covariance, for autograd."""
    deviations = (relative + scale).exp()
    roots = torch.exp(-0.5 * log_factors) - 1
    weights = mean + deviations * (noise + vectors @ (roots * (vectors.T @ noise)))
    inner = torch.eye(6) + vectors @ torch.diag(torch.exp(-log_factors) - 1) @ vectors.T
    covariance = deviations[:, None] * inner * deviations
    epsilon = torch.exp(-2 * scale).squeeze()
    size = mean.square().sum() + covariance.trace()
    return tau * weights.square().sum() + 0.5 * (epsilon * size - 6 - 6 * epsilon.log() - torch.logdet(covariance))


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("spread", ["weights", "layers"])
def test_one_step_follows_the_gradient_of_risk_and_complexity(k: int, spread: str) -> None:
    plan = dataclasses.replace(STILL, spread=spread)
    descent = Descent(start(k), torch.zeros(6), plan, n=N, delta=0.03, sizes=[4, 2])
    leaves = [
        tensor.clone().requires_grad_()
        for tensor in (descent.mean, descent.relative, descent.scale, descent.log_factors)
    ]
    noise = torch.randn(6, generator=torch.Generator().manual_seed(5))
    descent.step(
        lambda w, _: (float(w.square().sum()), 2, 2 * w), None, torch.arange(10), 0.0, torch.Generator().manual_seed(5)
    )
    tau = N * (math.log(descent.estimate / (1 - descent.estimate)) - math.log(0.2 / 0.8)) * 0.2 / float(descent.loss)
    value = objective(*leaves, descent.vectors, noise, tau)
    mean, relative, scale, factors = torch.autograd.grad(value, leaves, allow_unused=True)
    torch.testing.assert_close(descent.mean.grad, mean, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(descent.scale.grad, scale, rtol=1e-4, atol=1e-3)
    if spread == "weights":
        torch.testing.assert_close(descent.relative.grad, relative, rtol=1e-4, atol=1e-3)
    else:
        by_layer = torch.stack([relative[:4].sum(), relative[4:].sum()])
        torch.testing.assert_close(descent.shifts.grad, by_layer, rtol=1e-4, atol=1e-3)
    if k:
        torch.testing.assert_close(descent.log_factors.grad, factors, rtol=1e-4, atol=1e-3)


def test_the_running_complexity_is_that_of_the_posterior() -> None:
    descent = Descent(start(2), torch.zeros(6), STILL, n=N, delta=0.03, sizes=[])
    descent.step(
        lambda w, _: (float(w.square().sum()), 2, 2 * w), None, torch.arange(10), 0.0, torch.Generator().manual_seed(5)
    )
    squared_distance, covariance = descent._sums
    epsilon = min(PRIOR_GRID, key=lambda e: abs(math.log(e / descent.epsilon)))
    assert descent.epsilon == pytest.approx(epsilon, rel=1e-6)
    parts = kl_parts(descent.posterior(), torch.zeros(6), epsilon)
    assert (epsilon / 2 * squared_distance, covariance) == pytest.approx(parts, rel=1e-5)


def test_the_precision_of_the_prior_ends_on_the_grid(problem: Problem) -> None:
    found = certified(problem, learnt(problem, epochs=3).posterior).pair
    assert found.epsilon in PRIOR_GRID


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["weights", "layers"])
def test_learning_lowers_the_certified_bound(problem: Problem, spread: str) -> None:
    before = certified(problem, isotropic(problem.weights, 0.5)).pair
    sizes = (6, FEATURES * CLASSES - 6)
    found = learnt(problem, spread=spread, sizes=sizes)
    after = certified(problem, found.posterior)
    assert after.pair.value < before.value - 0.01
    truth = sum(problem.true_error(network) for network in after.networks) / 2
    assert truth < after.pair.value
    assert problem.true_error(after.networks[0]) < after.single.value
    assert found.steps == 30 * (TRAIN // 100)
    assert found.estimates[-1] == pytest.approx(after.pair.value, abs=0.03)
    if spread == "layers":
        first, second = torch.split(found.posterior.deviations, sizes)
        assert len(set(first.tolist())) == len(set(second.tolist())) == 1
        assert first[0] != second[0]


def test_the_same_seed_learns_the_same(problem: Problem) -> None:
    one, other, another = (learnt(problem, epochs=2, seed=seed).posterior.mean for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, another)


def test_a_time_limit_ends_it_and_progress_is_told(problem: Problem) -> None:
    told: list[float] = []
    found = learnt(problem, plan=LearningPlan(seconds=0.2), on_step=told.append)
    assert len(told) == found.steps > 0
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert found.seconds >= 0.2
    assert found.method == "one draw for each batch"


def test_what_is_certified_is_what_the_parts_say(problem: Problem) -> None:
    final = certified(problem, learnt(problem, epochs=3).posterior)
    for certificate, draws in ((final.pair, 2), (final.single, 1)):
        assert certificate.valid
        assert certificate.n == certificate.risk_samples == TRAIN
        assert certificate.delta_pac == pytest.approx(0.6 * 0.05 * 6 / math.pi**2 / 2)
        networks = final.networks[:draws]
        rate = sum(problem.risk(network, torch.arange(TRAIN)) for network in networks) / TRAIN / draws
        assert certificate.empirical_risk == pytest.approx(rate)
        budget = (certificate.log_ratio + log_xi(TRAIN) - math.log(certificate.delta_pac)) / TRAIN
        assert certificate.value == pytest.approx(scalar_kl_inverse(rate, budget), abs=1e-12)
        assert certificate.weakest in ("risk", "displacement", "covariance", "sample")
        assert certificate.epsilon in PRIOR_GRID
    assert final.pair.certified_predictor == "pair_of_draws"
    assert final.single.certified_predictor == "single_draw"


def test_the_recorded_precision_is_the_best_of_the_grid(problem: Problem) -> None:
    posterior = learnt(problem, epochs=3).posterior
    found = certified(problem, posterior).pair
    costs = [sum(kl_parts(posterior, torch.zeros(FEATURES * CLASSES), epsilon)) for epsilon in PRIOR_GRID]
    assert found.kl_displacement + found.kl_covariance == pytest.approx(min(costs))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_labels_are_never_certified_below_chance(seed: int) -> None:
    problem = softmax_problem(random_labels=True)
    found = certified(problem, learnt(problem, seed=seed).posterior)
    assert found.pair.value > 1 - 1 / CLASSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "needs at least 2 examples"),
        ({"delta": 1.5}, "delta must lie strictly between 0 and 1, found 1.5"),
        ({"prior_mean": torch.full((FEATURES * CLASSES,), math.nan)}, "KL divergence of the posterior is not finite"),
    ],
)
def test_what_cannot_be_certified_is_said(problem: Problem, change: dict[str, object], message: str) -> None:
    given = {"prior_mean": torch.zeros_like(problem.weights), "n": TRAIN, "delta": 0.05, **change}
    prior_mean = given.pop("prior_mean")
    with pytest.raises(ConfigurationError, match=message):
        certify_posterior(
            isotropic(problem.weights, 0.3),
            prior_mean,
            problem.risk,
            generator=torch.Generator().manual_seed(0),
            **given,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "must be positive"),
        ({"epochs": 0}, "epochs=0"),
        ({"mean_rate": -1.0}, "rates must not be negative"),
        ({"spread": "blocks"}, "spread must be 'weights', 'layers' or 'kronecker'"),
    ],
)
def test_plans_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LearningPlan(**options)


def test_a_loss_that_is_not_finite_and_sizes_that_do_not_fit() -> None:
    common = {"n": N, "delta": 0.03, "plan": STILL, "generator": torch.Generator().manual_seed(0)}
    bad = {"surrogate": lambda w, _: (math.nan, 0, w), "examples": torch.arange(10)}
    with pytest.raises(ConfigurationError, match="not finite, so its posterior cannot be learnt"):
        learn_posterior(start(0), torch.zeros(6), **bad, **common)
    with pytest.raises(ConfigurationError, match="add up to 5, but there are 6 weights"):
        learn_posterior(start(0), torch.zeros(6), **bad, **common, sizes=[5])
    with pytest.raises(ConfigurationError, match="from 0 examples"):
        learn_posterior(start(0), torch.zeros(6), **{**bad, "examples": torch.arange(0)}, **common)


def test_an_end_of_the_grid_is_said(problem: Problem) -> None:
    narrow = certify_posterior(
        isotropic(problem.weights, 1e-4),
        problem.weights,
        problem.risk,
        n=TRAIN,
        delta=0.05,
        generator=torch.Generator().manual_seed(0),
    )
    assert narrow.pair.epsilon == PRIOR_GRID[-1]
    assert any("end of its grid" in remark for remark in narrow.pair.remarks)
    assert certified(problem, isotropic(problem.weights, 0.5)).pair.remarks == ()
