"""The published dimensions: closed forms, the relations between them, and what needs the whole spectrum."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.seen import DIM, of_a_network, rotated, seen_through, whole
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.linalg.vectors import generator, rademacher
from lightning_sloppy.measures.dimensions import (
    degrees_of_freedom,
    stable_rank,
)
from lightning_sloppy.measures.sloppiness import effective_rank, entropy_rank, participation_ratio
from lightning_sloppy.measures.subspace import fraction_inside, overlap, random_fraction, sharpness
from lightning_sloppy.records import Status

EXAMPLE = torch.tensor([4.0, 1.0, 0.0]).double()


def test_numbers_by_hand() -> None:
    spectrum = whole(EXAMPLE)
    assert degrees_of_freedom(spectrum, 1.0).value == pytest.approx(0.8 + 0.5)
    assert degrees_of_freedom(spectrum, 1.0, 2).value == pytest.approx(0.64 + 0.25)
    assert participation_ratio(spectrum).value == pytest.approx(25 / 17)
    assert entropy_rank(spectrum).value == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    assert effective_rank(spectrum).value == pytest.approx(1.25)
    assert stable_rank(spectrum).value == pytest.approx(17 / 16)
    with pytest.raises(ConfigurationError, match="order 1 or 2"):
        degrees_of_freedom(spectrum, 1.0, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30), st.integers(0, 10), st.floats(1e-4, 1e3))
def test_the_relations_hold_for_every_spectrum(values: list[float], zeros: int, z: float) -> None:
    spectrum = whole(torch.tensor([*values, *[0.0] * zeros]).double())
    spectrum = replace(spectrum, floor=1e-9)
    first, second = degrees_of_freedom(spectrum, z).value, degrees_of_freedom(spectrum, z, 2).value
    assert second <= first + 1e-9
    assert degrees_of_freedom(spectrum, 2 * z).value < first
    assert degrees_of_freedom(spectrum, 1e-12).value == pytest.approx(len(values), rel=1e-4)
    order = [effective_rank(spectrum), participation_ratio(spectrum), entropy_rank(spectrum)]
    numbers = [estimate.value for estimate in order] + [len(values)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(numbers))
    assert stable_rank(spectrum).value <= effective_rank(spectrum).value * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 60])
def test_from_probe_vectors_the_truth_is_within_both_errors(steps: int) -> None:
    values = of_a_network(negative=False)
    seen = seen_through(rotated(values), rademacher(DIM, 40, generator(0)).double(), positive=True, steps=steps)
    seen = replace(seen, largest=20.0)
    truth = whole(values)
    for estimate, exact in (
        (degrees_of_freedom(seen, 1e-2, 2), degrees_of_freedom(truth, 1e-2, 2)),
        (stable_rank(seen), stable_rank(truth)),
    ):
        assert abs(estimate.value - exact.value) <= 4 * estimate.standard_error + estimate.truncation_error


def test_top_pairs_alone_give_nothing() -> None:
    pairs = replace(whole(EXAMPLE), truncated=True, trace=None)
    for estimate in (
        degrees_of_freedom(pairs, 1.0, 2),
        stable_rank(pairs),
    ):
        assert estimate.status is Status.UNAVAILABLE


def orthonormal(dim: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, k, dtype=torch.float64, generator=generator(seed))).Q


def test_spaces_beside_themselves_and_their_complement() -> None:
    whole_space = orthonormal(12, 12, 0)
    top, rest = whole_space[:, :4], whole_space[:, 4:]
    assert overlap(top, top).value == pytest.approx(1)
    assert overlap(top, rest).value == pytest.approx(0, abs=1e-12)
    assert overlap(top, whole_space[:, :2]).value == pytest.approx(1)
    vector = torch.randn(12, dtype=torch.float64)
    everything = fraction_inside(whole_space, vector)
    parts = fraction_inside(top, vector), fraction_inside(rest, vector)
    assert everything is not None
    assert everything.value == pytest.approx(1)
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0].value + parts[1].value == pytest.approx(1)
    assert fraction_inside(top, torch.zeros(12).double()) is None


def test_random_directions_have_the_baseline() -> None:
    dim, k, tries = 60, 6, 400
    space = orthonormal(dim, k, 0)
    baseline = random_fraction(dim, k)
    found = [
        fraction_inside(space, torch.randn(dim, dtype=torch.float64, generator=generator(s))) for s in range(tries)
    ]
    shares = torch.tensor([estimate.value for estimate in found if estimate is not None])
    assert abs(float(shares.mean()) - baseline.value) < 4 * baseline.standard_error / tries**0.5
    assert float(shares.std()) == pytest.approx(baseline.standard_error, rel=0.15)
    overlaps = torch.tensor([overlap(space, orthonormal(dim, k, 1 + s)).value for s in range(tries)])
    assert abs(float(overlaps.mean()) - k / dim) < 4 * float(overlaps.std()) / tries**0.5


def test_sharpness_is_the_product() -> None:
    assert sharpness(0.1, 20.0).value == pytest.approx(2.0)
