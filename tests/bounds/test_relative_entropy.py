"""The inverted kl against 20-digit values, and the theorems it rests on."""

from __future__ import annotations

import csv
import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sloppy.bounds.relative_entropy import binary_kl, log_xi, scalar_kl_inverse, scalar_kl_inverse_lower
from lightning_sloppy.errors import ConfigurationError

with (Path(__file__).parent / "kl_inverse_table.csv").open() as table:
    ROWS = [tuple(row.values()) for row in csv.DictReader(table)]

rates = st.floats(0.0, 1.0)
budgets = st.floats(1e-9, 20.0)


def exact_kl(q: float, p: float) -> Decimal:
    """The relative entropy of two doubles, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        q_, p_ = Decimal(q), Decimal(p)
        first = q_ * (q_ / p_).ln() if q_ else Decimal(0)
        second = (1 - q_) * ((1 - q_) / (1 - p_)).ln() if q_ != 1 else Decimal(0)
        return first + second


@pytest.mark.parametrize(("q", "c", "upper", "lower"), ROWS)
def test_inverse_against_the_reference_table(q: str, c: str, upper: str, lower: str) -> None:
    found, found_lower = scalar_kl_inverse(float(q), float(c)), scalar_kl_inverse_lower(float(q), float(c))
    assert found == pytest.approx(float(upper), rel=2e-15)
    assert found_lower == pytest.approx(float(lower), abs=2e-15)
    # A budget of zero returns q itself, which as a double may stand on either side of its decimal.
    if float(c) > 0:
        assert Decimal(found) >= Decimal(upper)
        assert Decimal(found_lower) <= Decimal(lower)


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 38


@pytest.mark.parametrize(
    ("q", "c", "expected"),
    [
        (0.0, 0.01, 0.009950166251),
        (0.0, 0.2, 0.181269246922),
        (0.01, 0.001, 0.015123045604),
        (0.028, 0.1, 0.167000959478),
        (0.05, 0.05, 0.149062496341),
        (0.1, 0.5, 0.574817291013),
        (0.5, 0.02, 0.599008283552),
        (0.03, math.log(200) / 16500, 0.0345258271),
        (0.03, math.log(100) / 16500, 0.0342065228),
        (0.028, math.log(200) / 150000, 0.0294088907),
        (0.028, (5144 + math.log(2 * math.sqrt(55000) / 0.025)) / 55000, 0.1606532498),
    ],
)
def test_inverse_oracles(q: float, c: float, expected: float) -> None:
    assert scalar_kl_inverse(q, c) == pytest.approx(expected, abs=6e-11)


def test_the_published_isotropic_row() -> None:
    # Binary MNIST, 784-600-600-2: KL 26,160.277, grid place 37, n = 55,000, delta = 0.025.
    penalty = math.log(math.pi**2 * 37**2 * 55000 / (6 * 0.025))
    assert penalty == pytest.approx(22.323504046, abs=1e-9)
    square_root = math.sqrt((26160.27734375 + penalty) / (2 * 54999))
    assert square_root == pytest.approx(0.4878811042, abs=1e-10)
    assert scalar_kl_inverse(0.0878836364, 2 * square_root**2) == pytest.approx(0.5461234030, abs=1e-10)


@settings(max_examples=300, deadline=None)
@given(rates, budgets)
def test_never_below_the_root(q: float, c: float) -> None:
    upper = scalar_kl_inverse(q, c)
    assert q <= upper <= 1.0
    assert upper == 1.0 or exact_kl(q, upper) >= Decimal(c)


@settings(max_examples=200, deadline=None)
@given(rates, budgets)
def test_never_far_above_the_root(q: float, c: float) -> None:
    upper = scalar_kl_inverse(q, c)
    below = upper - 1e-14
    assert below <= q or below <= 0.0 or exact_kl(q, below) < Decimal(c)


@settings(max_examples=200, deadline=None)
@given(rates, rates, budgets, budgets)
def test_rises_with_the_rate_and_the_budget(q: float, other_q: float, c: float, other_c: float) -> None:
    # Up to the few last bits by which a result may be rounded upwards.
    assert scalar_kl_inverse(min(q, other_q), c) <= scalar_kl_inverse(max(q, other_q), c) + 1e-15
    assert scalar_kl_inverse(q, min(c, other_c)) <= scalar_kl_inverse(q, max(c, other_c)) + 1e-15


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1 - 1e-6))
def test_binary_kl_to_sixty_digits(q: float, p: float) -> None:
    assert binary_kl(q, p) == pytest.approx(float(exact_kl(q, p)), rel=1e-12)


@pytest.mark.parametrize(
    ("q", "p", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.5, 0.0, math.inf), (0.5, 1.0, math.inf), (1.0, 0.5, math.log(2))],
)
def test_binary_kl_at_the_edges(q: float, p: float, expected: float) -> None:
    assert binary_kl(q, p) == expected


def test_inverse_at_the_edges() -> None:
    assert scalar_kl_inverse(0.2, 0.0) == 0.2
    assert scalar_kl_inverse(0.2, -3.0) == 0.2
    assert scalar_kl_inverse(0.2, math.inf) == 1.0
    assert scalar_kl_inverse(0.2, math.nan) == 1.0
    assert scalar_kl_inverse(1.0, 0.1) == 1.0
    assert scalar_kl_inverse(0.1, 50.0) == 1.0
    assert scalar_kl_inverse(-1e-13, 0.1) == scalar_kl_inverse(0.0, 0.1)
    assert scalar_kl_inverse_lower(0.0, 1.0) == 0.0


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_what_is_no_rate_is_refused(q: float) -> None:
    with pytest.raises(ConfigurationError, match=r"q must be a probability .* found"):
        scalar_kl_inverse(q, 0.1)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (6, 3.7746913580),
        (100, 13.20996063),
        (1000, 40.30321293),
        (5000, 89.29083034),
        (30000, 217.747645),
        (50000, 280.916694),
        (55000, 294.595331),
        (60000, 307.665105),
    ],
)
def test_xi_table(n: int, expected: float) -> None:
    assert math.exp(log_xi(n)) == pytest.approx(expected, rel=3e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40, 399])
def test_xi_is_its_sum_and_lies_between_the_printed_forms(n: int) -> None:
    total = sum(math.comb(n, k) * (k / n) ** k * (1 - k / n) ** (n - k) for k in range(n + 1))
    assert math.exp(log_xi(n)) == pytest.approx(total, rel=1e-12)
    assert math.sqrt(n) <= total <= 2 * math.sqrt(n)


def test_xi_continues_smoothly_into_its_asymptotic_series() -> None:
    step = math.log(1_000_001 / 1_000_000) / 2
    assert log_xi(1_000_001) - log_xi(1_000_000) == pytest.approx(step, abs=1e-8)
    assert log_xi(10**9) == pytest.approx(math.log(math.pi * 1e9 / 2) / 2, abs=1e-4)


def test_xi_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one sample"):
        log_xi(0)
