from __future__ import annotations

import torch

from lightning_sloppy.linalg.vectors import generator, rademacher, unit_gaussian


def test_signs_repeat_with_their_seed_and_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (rademacher(500, 3, generator(seed)) for seed in (7, 7, 8))
    unit_gaussian(500, generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.dtype == torch.int8
    assert set(first.flatten().tolist()) == {-1, 1}


def test_signs_are_independent_with_mean_zero() -> None:
    signs = rademacher(6, 20_000, generator(0)).double()
    second_moment = signs.T @ signs / len(signs)
    # Five standard errors of a mean of 20,000 signs.
    torch.testing.assert_close(second_moment, torch.eye(6, dtype=torch.float64), atol=5 / 20_000**0.5, rtol=0)
    assert float(signs.mean(0).abs().max()) < 5 / 20_000**0.5


def test_gaussian_vector_has_unit_norm() -> None:
    assert abs(float(torch.linalg.vector_norm(unit_gaussian(1000, generator(1)))) - 1) < 1e-6
