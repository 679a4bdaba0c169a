from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.plateau import PlateauDetector, Verdict
from lightning_sloppy.records import Estimate


def verdicts(detector: PlateauDetector, curves: list[list[float]], error: float = 0.0) -> list[Verdict]:
    """One curve for each scale; the error is relative."""
    return [detector.update([Estimate(v, error * abs(v)) for v in values]) for values in zip(*curves, strict=True)]


def rise_noise_flat(seed: int = 0) -> list[float]:
    """Twenty rising values, twenty noisy ones, then flat to a thousandth."""
    rng = torch.Generator().manual_seed(seed)
    rise = torch.linspace(10, 100, 20)
    noise = 100 * (1 + 0.1 * torch.randn(20, generator=rng))
    flat = 100 * (1 + 0.001 * torch.randn(20, generator=rng))
    return torch.cat([rise, noise, flat]).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_fires_on_the_flat_part_only(seed: int) -> None:
    seen = verdicts(PlateauDetector(), [rise_noise_flat(3 * seed + scale) for scale in range(3)])
    first = seen.index(Verdict.PLATEAU)
    # Value 40 is the first flat one, so that the window is full of them at 45.
    assert first == 45
    assert seen[:3] == [Verdict.WARMING_UP] * 3
    assert seen[3:8] == [Verdict.COLLECTING] * 5
    assert set(seen[8:first]) == {Verdict.CHANGING}
    assert set(seen[first:]) == {Verdict.PLATEAU}


def test_never_fires_before_the_window_is_full() -> None:
    seen = verdicts(PlateauDetector(patience=4, warmup=2), [[5.0] * 10])
    assert seen.index(Verdict.PLATEAU) == 2 + 4


def test_a_maximum_at_one_scale_is_no_plateau() -> None:
    """At z the curve turns slowly while it still rises at z/10 and falls at 10 z."""
    steps = range(30)
    turning = [100 - 0.02 * (t - 15) ** 2 for t in steps]
    rising, falling = [100 + 3.0 * t for t in steps], [100 - 1.5 * t for t in steps]
    assert Verdict.PLATEAU in verdicts(PlateauDetector(), [turning])
    assert Verdict.PLATEAU not in verdicts(PlateauDetector(), [rising, turning, falling])
    assert Verdict.PLATEAU not in verdicts(PlateauDetector(), [turning, turning, falling])


def test_a_slow_drift_is_told_from_flatness() -> None:
    drift = [100 * 1.006**t for t in range(30)]
    assert set(verdicts(PlateauDetector(), [drift])[8:]) == {Verdict.CHANGING}
    slower = [100 * 1.003**t for t in range(30)]
    assert set(verdicts(PlateauDetector(), [slower])[8:]) == {Verdict.PLATEAU}


def test_noise_above_the_tolerance_is_undetermined() -> None:
    flat = [100.0] * 20
    assert set(verdicts(PlateauDetector(rel_tol=0.02), [flat], error=0.011)[8:]) == {Verdict.UNDETERMINED}
    assert set(verdicts(PlateauDetector(rel_tol=0.02), [flat], error=0.009)[8:]) == {Verdict.PLATEAU}


def test_change_and_noise_add_up() -> None:
    wobbling = [100.0, 101.2] * 10
    assert set(verdicts(PlateauDetector(), [wobbling], error=0.0)[8:]) == {Verdict.PLATEAU}
    assert set(verdicts(PlateauDetector(), [wobbling], error=0.005)[8:]) == {Verdict.CHANGING}


def test_noise_at_one_scale_is_enough_to_doubt() -> None:
    detector = PlateauDetector(patience=2, warmup=0)
    for _ in range(3):
        verdict = detector.update([Estimate(10.0), Estimate(10.0, 1.0), Estimate(10.0)])
    assert verdict is Verdict.UNDETERMINED


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_no_plateau(value: float) -> None:
    assert Verdict.PLATEAU not in verdicts(PlateauDetector(patience=2, warmup=0), [[value] * 6])


def test_constant_zero_is_flat() -> None:
    assert verdicts(PlateauDetector(patience=1, warmup=0), [[0.0, 0.0]])[-1] is Verdict.PLATEAU
    assert verdicts(PlateauDetector(patience=1, warmup=0), [[-1.0, 1.0]])[-1] is Verdict.CHANGING


def test_state_is_plain_and_continues() -> None:
    curve = rise_noise_flat()
    whole = verdicts(PlateauDetector(), [curve, curve, curve])
    first = PlateauDetector()
    begun = verdicts(first, [curve[:43]] * 3)
    second = PlateauDetector(**json.loads(json.dumps(asdict(first))))
    assert begun + verdicts(second, [curve[43:]] * 3) == whole


def test_restart_forgets_the_window_and_no_more() -> None:
    detector = PlateauDetector(patience=2, warmup=1)
    verdicts(detector, [[5.0] * 4])
    detector.restart()
    assert verdicts(detector, [[5.0] * 3]) == [Verdict.COLLECTING, Verdict.COLLECTING, Verdict.PLATEAU]


@pytest.mark.parametrize("bad", [{"patience": 0}, {"warmup": -1}, {"rel_tol": 0.0}, {"rel_tol": 1.0}])
def test_out_of_range_says_the_defaults(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"the defaults are 5, 3 and 0\.02"):
        PlateauDetector(**bad)  # type: ignore[arg-type]
