"""The inequalities to the digits of the reference, in their order, and with the coverage they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sloppy.bounds import (
    block_risk_upper,
    catoni_bound,
    chernoff_bound,
    closed_form_bound,
    gibbs_risk_upper,
    hold_out_bound,
    kl_inverse,
    kl_inverse_lower,
    lambda_bound,
    maurer_seeger_bound,
    mcallester_bound,
    monte_carlo_bound,
    pair_bound,
    prequential_bound,
    quadratic_bound,
    split_kl_bound,
)
from lightning_sloppy.errors import ConfigurationError

ROWS = [
    # q, K, n, delta, kl inverse with xi(n): 120 digits, rounded
    (0.1, 0.0, 1000, 0.05, 0.1382341336),
    (0.0, 0.0, 1000, 0.05, 0.0066698208),
    (0.028, 5144.0, 55000, 0.025, 0.1606446540),
    (0.02, 100.0, 30000, 0.025, 0.0343431476),
    (0.0879, 26160.27734375, 55000, 0.025, 0.5460136956),
    (0.2, 1190.0, 25000, 0.025, 0.3403001020),
    (0.01, 0.0, 60000, 0.05, 0.0117929818),
]
rates, complexities = st.floats(0.0, 1.0), st.floats(0.0, 1e5)
samples, deltas = st.integers(2, 100_000), st.floats(1e-6, 0.5)
BOUNDS = (maurer_seeger_bound, mcallester_bound, quadratic_bound, lambda_bound, closed_form_bound, catoni_bound)


@pytest.mark.parametrize(("risk", "complexity", "n", "delta", "expected"), ROWS)
def test_the_event_inverted(risk: float, complexity: float, n: int, delta: float, expected: float) -> None:
    assert maurer_seeger_bound(risk, complexity, n=n, delta=delta) == pytest.approx(expected, abs=6e-11)
    assert pair_bound(risk, complexity, n=n, delta_pac=delta).value == pytest.approx(expected, abs=6e-11)


@settings(max_examples=200, deadline=None)
@given(rates, complexities, samples, deltas)
def test_the_order_of_the_bounds(risk: float, complexity: float, n: int, delta: float) -> None:
    """Consequences of one event are never below it; the trade-off at its best is the quadratic bound."""
    found = {bound: bound(risk, complexity, n=n, delta=delta) for bound in BOUNDS}
    least = found[maurer_seeger_bound] - 1e-12
    for bound in (mcallester_bound, quadratic_bound, lambda_bound, closed_form_bound):
        assert least <= found[bound] <= 1.0
    assert found[closed_form_bound] <= found[mcallester_bound] + 1e-12
    assert found[lambda_bound] == pytest.approx(found[quadratic_bound], rel=1e-9)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.tuples(rates, rates), st.tuples(complexities, complexities), st.tuples(samples, samples), deltas)
def test_more_risk_more_complexity_or_fewer_samples_are_never_better(risks, nats, counts, delta: float) -> None:
    for bound in BOUNDS:
        best = bound(min(risks), min(nats), n=max(counts), delta=delta)
        assert best <= bound(max(risks), max(nats), n=min(counts), delta=delta) + 1e-12


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.9), st.floats(0.0, 100.0), samples, st.floats(0.05, 1.9))
def test_no_trade_off_beats_the_best(risk: float, complexity: float, n: int, trade_off: float) -> None:
    best = lambda_bound(risk, complexity, n=n, delta=0.05)
    assert best <= lambda_bound(risk, complexity, n=n, delta=0.05, trade_off=trade_off) + 1e-12


def test_catoni_at_its_best_is_the_inverse() -> None:
    """``inf_b catoni_b(q, c) = kl_inverse(q, c)``, attained at the difference of the logits."""
    c = math.log(1 / 0.05) / 1000
    limit = kl_inverse(0.1, c)
    best = math.log(limit / (1 - limit)) - math.log(0.1 / 0.9)
    assert catoni_bound(0.1, 0.0, n=1000, delta=0.05, grid=[best]) == pytest.approx(limit, abs=1e-12)
    assert catoni_bound(0.1, 0.0, n=1000, delta=0.05, grid=[best]) == pytest.approx(0.12481, abs=5e-6)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert catoni_bound(0.1, 0.0, n=1000, delta=0.05, grid=[factor * best]) > limit


def test_the_split_gains_where_most_losses_are_the_middle() -> None:
    split = split_kl_bound(0.004, 0.003, 100.0, n=30_000, delta=0.05, low=-1.0, middle=0.0, high=1.0)
    whole = 2 * maurer_seeger_bound(0.5005, 100.0, n=30_000, delta=0.05) - 1
    # The published form has 2 sqrt(n) for xi(n): 0.01165.
    c = (100 + math.log(4 * math.sqrt(30_000) / 0.05)) / 30_000
    published = kl_inverse(0.004, c) - kl_inverse_lower(0.003, c)
    assert published == pytest.approx(0.01165, abs=5e-6)
    assert published - 5e-5 < split < published
    assert whole > 0.08
    # Of losses at the ends alone it is the plain inverse, but for the second event.
    ends = split_kl_bound(0.1, 0.9, 5.0, n=1000, delta=0.1, low=-1.0, middle=0.0, high=1.0)
    c = 5.0 / 1000
    assert ends > kl_inverse(0.1, c) - 0.9


@pytest.mark.parametrize(
    ("mean", "n", "delta", "chernoff"),
    [(0.0, 10_000, 0.05, 0.0002995284), (0.0127, 10_000, 0.05, 0.0156384541), (0.012, 5000, 0.025, 0.0166740447)],
)
def test_hold_out_limits(mean: float, n: int, delta: float, chernoff: float) -> None:
    assert chernoff_bound(mean, n, delta) == pytest.approx(chernoff, abs=1e-10)
    assert hold_out_bound(round(mean * n), n, delta) <= chernoff_bound(mean, n, delta) + 1e-12


def test_the_slack_of_drawing() -> None:
    """Upper limit minus mean at delta 0.01: the table of the literature, to its digits."""
    for draws, slack in ((100, 0.0819), (1000, 0.0193), (10_000, 0.0055)):
        assert gibbs_risk_upper(0.03, draws=draws, delta=0.01) - 0.03 == pytest.approx(slack, abs=6e-5)
    assert block_risk_upper([3.0] * 10, [100] * 10, delta=0.01) == gibbs_risk_upper(0.03, draws=10, delta=0.01)
    # Unequal blocks count as fewer: n / max(sizes) = 1.5 instead of 2.
    assert block_risk_upper([0, 0], [100, 50], delta=0.01) == pytest.approx(1 - 0.01 ** (1 / 1.5))


def misses(limit_of, risks: np.ndarray, true: float, delta: float) -> float:
    return float(np.mean([limit_of(row) < true for row in risks]))


def test_coverage_of_unequal_blocks_and_a_control_that_must_fail() -> None:
    """Blocks of 1, 5 and 10 examples, risks of drawn networks 0 or 1: the worst case of the inequality."""
    rng = np.random.default_rng(0)
    sizes = [10, 5, 1] * 4
    chances = rng.uniform(0.05, 0.35, len(sizes))
    true = float(np.dot(sizes, chances) / sum(sizes))
    runs = (rng.random((4000, len(sizes))) < chances) * np.array(sizes)
    honest = misses(lambda row: block_risk_upper(list(row), sizes, delta=0.1), runs, true, 0.1)
    assert honest <= 0.1
    # As if every example had a network of its own.
    careless = misses(lambda row: kl_inverse(row.sum() / sum(sizes), math.log(10) / sum(sizes)), runs, true, 0.1)
    assert careless > 0.1


def test_coverage_of_the_prequential_bound_for_all_times_at_once() -> None:
    """Iterates that get better as they see more; the bound is looked at after every example."""
    rng = np.random.default_rng(1)
    failures = control = 0
    for _ in range(300):
        risks = 0.5 / np.sqrt(1 + np.arange(400) / 5)
        seen = (rng.random(400) < risks).cumsum()
        counts = np.arange(1, 401)
        means, truth = seen / counts, risks.cumsum() / counts
        looked = counts[9::10]
        failures += any(
            prequential_bound(float(means[count - 1]), examples=int(count), delta=0.1) < truth[count - 1]
            for count in looked
        )
        control += any(means[count - 1] < truth[count - 1] for count in looked)
    assert failures <= 0.1 * 300
    assert control > 0.5 * 300


def test_bad_numbers_have_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="none is negative"):
        maurer_seeger_bound(0.1, -1.0, n=10, delta=0.05)
    with pytest.raises(ConfigurationError, match="strictly between 0 and 1"):
        mcallester_bound(0.1, 1.0, n=10, delta=0.0)
    with pytest.raises(ConfigurationError, match="at least one sample"):
        quadratic_bound(0.1, 1.0, n=0, delta=0.05)
    with pytest.raises(ConfigurationError, match="trade_off=2"):
        lambda_bound(0.1, 1.0, n=10, delta=0.05, trade_off=2.0)
    with pytest.raises(ConfigurationError, match="at least one positive number"):
        catoni_bound(0.1, 1.0, n=10, delta=0.05, grid=[])
    with pytest.raises(ConfigurationError, match="strictly inside"):
        split_kl_bound(0.1, 0.1, 1.0, n=10, delta=0.05, low=0.0, middle=0.0, high=1.0)
    with pytest.raises(ConfigurationError, match="belong to no loss"):
        split_kl_bound(0.7, 0.4, 1.0, n=10, delta=0.05, low=-1.0, middle=0.0, high=1.0)
    with pytest.raises(ConfigurationError, match="strictly between 0 and 1"):
        split_kl_bound(0.1, 0.1, 1.0, n=10, delta=1.5, low=-1.0, middle=0.0, high=1.0)
    with pytest.raises(ConfigurationError, match="one at least"):
        gibbs_risk_upper(0.1, draws=0, delta=0.05)
    with pytest.raises(ConfigurationError, match="one for each"):
        block_risk_upper([1.0], [1, 2], delta=0.05)
    with pytest.raises(ConfigurationError, match="examples not 0"):
        prequential_bound(0.1, examples=0, delta=0.05)
    with pytest.raises(ConfigurationError, match="mean loss must be a probability"):
        prequential_bound(1.1, examples=3, delta=0.05)
    assert maurer_seeger_bound(0.1, math.nan, n=10, delta=0.05) == 1.0
    assert monte_carlo_bound(0.1, math.inf, n=10, draws=5, delta_pac=0.05, delta_risk=0.05) == 1.0


@pytest.mark.parametrize("b", [0.4, 2.0])
@pytest.mark.parametrize("count", [1, 4, 30])
def test_a_choice_among_a_grid_is_paid_for(b: float, count: int) -> None:
    """Of J equal values the choice gains nothing, and its ln J nats are in the closed form."""
    for nats, found in (
        (0.0, prequential_bound(0.1, examples=200, delta=0.05, grid=[b] * count)),
        (3.0, catoni_bound(0.1, 3.0, n=200, delta=0.05, grid=[b] * count)),
    ):
        spent = (nats + math.log(count) - math.log(0.05)) / 200
        assert found == pytest.approx((1 - math.exp(-b * 0.1 - spent)) / (1 - math.exp(-b)), rel=1e-12)


def test_the_grids_that_stand_written_down_are_paid_for() -> None:
    values = [0.05 * 2.0**power for power in range(10)]
    spent = math.log(len(values) / 0.05) / 300
    right = min((1 - math.exp(-b * 0.2 - spent)) / (1 - math.exp(-b)) for b in values)
    assert prequential_bound(0.2, examples=300, delta=0.05) == pytest.approx(right, rel=1e-12)
