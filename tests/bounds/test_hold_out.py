"""Hold-out bounds against printed values and against the binomial tail itself."""

from __future__ import annotations

import math

import pytest

from lightning_sloppy.bounds.hold_out import hold_out_bound, hold_out_certificate
from lightning_sloppy.errors import ConfigurationError


@pytest.mark.parametrize(
    ("n", "errors", "delta", "expected"),
    [
        (10000, 0, 0.05, 0.0002995284),
        (10000, 127, 0.05, 0.0147011636),
        (10000, 127, 0.0005, 0.0168180484),
        (10000, 900, 0.05, 0.0948461124),
        (5000, 60, 0.025, 0.0154197151),
        (30000, 588, 0.025, 0.0212326219),
        (100, 3, 0.01, 0.0969710453),
        (1000, 30, 0.01, 0.0450504292),
    ],
)
def test_clopper_pearson_rows(n: int, errors: int, delta: float, expected: float) -> None:
    assert hold_out_bound(errors, n, delta) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("errors", [0, 1, 7, 19])
def test_the_limit_is_where_so_few_mistakes_have_probability_delta(errors: int) -> None:
    rate = hold_out_bound(errors, 20, 0.03)
    tail = sum(math.comb(20, k) * rate**k * (1 - rate) ** (20 - k) for k in range(errors + 1))
    assert tail == pytest.approx(0.03, rel=1e-9)


def test_all_mistakes_bound_nothing() -> None:
    assert hold_out_bound(5, 5, 0.05) == 1.0


def test_certificate_spends_a_fifth_of_delta_by_schedule() -> None:
    spent = [hold_out_certificate(3, 100, delta=0.05, evaluation=t).delta_risk for t in (1, 2)]
    assert spent[0] == pytest.approx(0.01 * 6 / math.pi**2)
    assert spent[1] == pytest.approx(spent[0] / 4)
    certificate = hold_out_certificate(3, 100, delta=0.05, evaluation=2, conditions=("fresh",))
    assert certificate.value == hold_out_bound(3, 100, spent[1])
    assert (certificate.kind, certificate.certified_predictor) == ("hold_out", "fixed_network")
    assert (certificate.valid, certificate.n, certificate.conditions) == (True, 100, ("fresh",))
    assert certificate.empirical_risk == 0.03


@pytest.mark.parametrize(
    ("errors", "n", "delta"), [(-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0), (1, 5, 1.0)]
)
def test_bad_counts_are_refused(errors: int, n: int, delta: float) -> None:
    with pytest.raises(ConfigurationError):
        hold_out_bound(errors, n, delta)
