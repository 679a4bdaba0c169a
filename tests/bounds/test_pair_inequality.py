"""The pair bound: its inequality by exact enumeration, its coverage with controls that must fail, its budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from lightning_sloppy.bounds.pair_inequality import (
    HOLD_OUT_FRACTION,
    PAC_BAYES_FRACTION,
    RISK_FRACTION,
    pair_bound,
    scheduled_delta,
)
from lightning_sloppy.bounds.relative_entropy import binary_kl, log_xi, scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.families import LowRankGaussian
from lightning_sloppy.posteriors.gaussian import draw_pair, log_density_ratio


@pytest.mark.parametrize(("rate", "slack"), [(0.0, 0.0005), (0.03, 0.0055), (0.1, 0.0094)])
def test_the_subsample_is_paid_for(rate: float, slack: float) -> None:
    bound = pair_bound(rate, 50.0, n=60000, delta_pac=0.03, delta_risk=0.01, subsample=10000)
    assert bound.risk_upper - rate == pytest.approx(slack, abs=6e-5)
    exact = pair_bound(rate, 50.0, n=60000, delta_pac=0.03)
    assert exact.risk_upper == rate
    assert bound.value > exact.value


def test_a_negative_right_side_is_clamped_and_said() -> None:
    bound = pair_bound(0.2, -1000.0, n=100, delta_pac=0.05)
    assert (bound.value, bound.budget, bound.clamped) == (0.2, 0.0, True)
    assert not pair_bound(0.2, 0.0, n=100, delta_pac=0.05).clamped


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.0, 0.9),
    st.floats(0.0, 0.1),
    st.floats(0.0, 500.0),
    st.floats(0.0, 100.0),
    st.integers(50, 10_000),
    st.floats(1.0, 10.0),
)
def test_monotone(rate: float, more: float, ratio: float, nats: float, n: int, factor: float) -> None:
    value = pair_bound(rate, ratio, n=n, delta_pac=0.03).value
    assert rate <= value <= 1.0
    worse = [
        pair_bound(rate + more, ratio, n=n, delta_pac=0.03),
        pair_bound(rate, ratio + nats, n=n, delta_pac=0.03),
        pair_bound(rate, ratio, n=max(int(n / factor), 1), delta_pac=0.03),
        pair_bound(rate, ratio, n=n, delta_pac=0.03 / factor),
    ]
    assert all(other.value >= value - 1e-14 for other in worse)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0, 20.0])
def test_the_disintegrated_inequality_by_exact_enumeration(beta: float) -> None:
    # Three hypotheses on four points, all 4^6 samples of six: the expectation is xi(6) whatever the posterior.
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    losses = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    true = losses @ probabilities
    total = pair_failures = 0.0
    for sample in itertools.product(range(4), repeat=6):
        chance = probabilities[list(sample)].prod()
        empirical = losses[:, list(sample)].mean(axis=1)
        posterior = np.exp(-6 * beta * empirical)
        posterior /= posterior.sum()
        ratio = np.log(3 * posterior)
        excess = [6 * binary_kl(q, p) for q, p in zip(empirical, true, strict=True)]
        total += chance * sum(posterior * np.exp(np.array(excess) - ratio))
        for i, j in itertools.product(range(3), repeat=2):
            bound = pair_bound((empirical[i] + empirical[j]) / 2, (ratio[i] + ratio[j]) / 2, n=6, delta_pac=0.3)
            failed = (true[i] + true[j]) / 2 > bound.value
            pair_failures += chance * posterior[i] * posterior[j] * failed
    assert total == pytest.approx(3.7746913580, abs=1e-9)
    assert total == pytest.approx(math.exp(log_xi(6)), rel=1e-12)
    assert 0.0 < pair_failures < 0.3


def test_delta_is_never_overspent() -> None:
    assert PAC_BAYES_FRACTION + RISK_FRACTION + HOLD_OUT_FRACTION <= 1.0
    spent = sum(scheduled_delta(0.05, t) for t in range(1, 20_001))
    assert 0.0499 < spent <= 0.05


@pytest.mark.parametrize(("delta", "evaluation"), [(0.0, 1), (1.0, 1), (math.nan, 1), (0.05, 0)])
def test_bad_schedules_are_refused(delta: float, evaluation: int) -> None:
    with pytest.raises(ConfigurationError):
        scheduled_delta(delta, evaluation)


def test_bad_bounds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="delta_pac"):
        pair_bound(0.1, 1.0, n=10, delta_pac=0.0)
    with pytest.raises(ConfigurationError, match="delta_risk"):
        pair_bound(0.1, 1.0, n=10, delta_pac=0.1, subsample=5)
    with pytest.raises(ConfigurationError, match="at least"):
        pair_bound(0.1, 1.0, n=10, delta_pac=0.1, delta_risk=0.1, subsample=0)


SCALES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)


def linear_sets(*, charge: float = 1.0, repeats: int = 1, sets: int = 300) -> tuple[int, float]:
    """Failures and mean of the pair bound over many training sets on which the truth is known.

    Linear classifiers on Gaussian inputs, labels flipped with probability 0.3: the true error of a weight
    vector is an angle. The posterior is N(rho u, I) around the ridge direction u, rho chosen by the bound on
    the set itself, which is allowed. What is not: ``charge`` scales the log-ratio (0 is a prior moved onto
    the posterior), ``repeats`` counts each example many times.
    """
    n, d, noise, delta = 100, 50, 0.3, 0.05
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    teacher, origin, nothing = np.eye(d)[0], torch.zeros(d, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    failures, bounds = 0, []
    for _ in range(sets):
        inputs = rng.standard_normal((n, d))
        labels = np.sign(inputs @ teacher) * np.where(rng.random(n) < noise, -1.0, 1.0)
        direction = np.linalg.solve(inputs.T @ inputs + np.eye(d), inputs.T @ labels)
        direction /= np.linalg.norm(direction)
        margins = labels * (inputs @ direction) / np.linalg.norm(inputs, axis=1)
        pilot = {
            rho: pair_bound(
                float(ndtr(-rho * margins).mean()), charge * rho**2 / 2, n=repeats * n, delta_pac=delta
            ).value
            for rho in SCALES
        }
        rho = min(pilot, key=lambda scale: pilot[scale])
        posterior = LowRankGaussian(torch.from_numpy(rho * direction), torch.zeros(d, 0).double(), nothing, 1.0)
        pair = draw_pair(posterior, generator, dtype=torch.float64)
        ratio = sum(float(log_density_ratio(posterior, origin, (1.0,), drawn)) for drawn in pair) / 2
        networks = np.stack([drawn.numpy() for drawn in pair])
        rate = float(np.mean(labels * (networks @ inputs.T) <= 0))
        angles = np.arccos(networks @ teacher / np.linalg.norm(networks, axis=1)) / math.pi
        bounds.append(pair_bound(rate, charge * ratio, n=repeats * n, delta_pac=delta).value)
        failures += noise + (1 - 2 * noise) * float(angles.mean()) > bounds[-1]
    return failures, float(np.mean(bounds))


def test_coverage() -> None:
    failures, mean_bound = linear_sets()
    assert failures <= 0.05 * 300
    # Not only safe but tight: the value agrees with an independent computation of the same study.
    assert mean_bound == pytest.approx(0.632, abs=0.005)


@pytest.mark.parametrize("cheat", [{"charge": 0.0}, {"repeats": 20}], ids=["prior moved", "examples repeated"])
def test_coverage_catches_who_cheats(cheat: dict[str, float]) -> None:
    failures, _ = linear_sets(**cheat)
    assert failures >= 0.99 * 300


def test_the_risk_step_covers_and_is_not_idle() -> None:
    # 40 examples for each of two networks of different error; the failure rate stays below delta, but above 0.
    rng, sets, delta = np.random.default_rng(1), 4000, 0.05
    rates = (rng.binomial(40, 0.1, sets) + rng.binomial(40, 0.3, sets)) / 80
    limits = np.array([scalar_kl_inverse(rate, math.log(1 / delta) / 80) for rate in rates])
    failures = int((limits < 0.2).sum())
    assert 0 < failures <= delta * sets
