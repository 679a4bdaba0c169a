"""InputMoments against numpy in float64: any batches, any ranks, any mean, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs import moments as module
from lightning_sloppy.inputs.moments import InputMoments, join_moments


def gaussian(n: int, d: int, *, seed: int = 0, mean: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, d, generator=rng, dtype=torch.float64) @ torch.randn(
        d, d, generator=rng, dtype=torch.float64
    )
    return mixed + mean


def reference(inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows = inputs.reshape(len(inputs), -1).numpy().astype(np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean)


def gathered(inputs: Tensor, size: int) -> InputMoments:
    metric = InputMoments()
    for batch in inputs.split(size):
        metric.update(batch)
    return metric


def assert_moments(metric: InputMoments, inputs: Tensor, rtol: float = 1e-10) -> None:
    mean, scatter = reference(inputs)
    found = metric.compute()
    assert found.num_samples == len(inputs)
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(found.scatter.numpy(), scatter, rtol=rtol, atol=rtol * np.abs(scatter).max())


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("mean", [0.0, 3.0, 1e6])
def test_batches_of_any_size_match_numpy(size: int, mean: float) -> None:
    inputs = gaussian(203, 5, mean=mean)
    assert_moments(gathered(inputs, size), inputs)


def test_mean_of_a_million_costs_no_digits() -> None:
    centred = torch.round(gaussian(300, 3) * 2**20) / 2**20  # exact after adding 1e6
    _, scatter = reference(centred)
    found = gathered(centred + 1e6, 7).compute().scatter.numpy()
    np.testing.assert_allclose(found, scatter, rtol=1e-13, atol=1e-13 * scatter.max())


def test_chunks_inside_one_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = gaussian(101, 4, mean=1e6)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 4 * 10)
    monkeypatch.setattr(module, "CHUNK_ROWS", 10)
    assert_moments(gathered(inputs, 101), inputs)


def test_wide_inputs_are_summed_by_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = gaussian(101, 4, mean=1e6)
    monkeypatch.setattr(module, "SYMMETRIC", 3)
    assert_moments(gathered(inputs, 30), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_images_of_every_number_type_are_summed_in_float64(dtype: torch.dtype) -> None:
    images = torch.randint(0, 200, (50, 1, 3, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
    metric = gathered(images, 20)
    assert metric.num_features == 9
    assert metric.compute().scatter.dtype == torch.float64
    assert_moments(metric, images.to(torch.float64))


def test_arrays_that_torch_dislikes_are_read() -> None:
    rows = gaussian(20, 3).numpy()
    odd = rows[::-1].astype(">f8")
    odd.flags.writeable = False
    metric = InputMoments()
    metric.update(odd)
    assert_moments(metric, torch.from_numpy(rows))


def test_a_constant_column_has_a_scatter_of_exactly_zero() -> None:
    inputs = gaussian(1000, 3, mean=0.1)
    inputs[:, 1] = 0.1
    one, other = gathered(inputs[:333], 10), gathered(inputs[333:], 71)
    one.merge_state(other)
    scatter = one.compute().scatter
    assert scatter[1].tolist() == [0.0, 0.0, 0.0]
    assert float(scatter[0, 0]) > 0


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_two_simulated_ranks_with_their_own_shifts(mean: float) -> None:
    inputs = gaussian(211, 4, mean=mean)
    inputs[100:] += 5.0
    ranks = [gathered(inputs[:100], 7), gathered(inputs[100:], 100)]
    states = [rank.packed.clone() for rank in ranks]
    for rank in ranks:
        rank.sync(dist_sync_fn=lambda state, group=None: list(states), distributed_available=lambda: True)
    assert torch.equal(ranks[0].packed, ranks[1].packed)
    joined = InputMoments()
    joined.merge_state({"packed": ranks[0].packed})
    assert_moments(joined, inputs)
    for rank, part in zip(ranks, (inputs[:100], inputs[100:]), strict=True):
        rank.unsync()
        assert_moments(rank, part)


def test_joining_is_associative_up_to_rounding() -> None:
    inputs = gaussian(90, 3, mean=100.0)
    a, b, c = (gathered(part, 30).packed for part in inputs.split(30))
    left = join_moments(torch.stack([join_moments(torch.stack([a, b])), c]))
    right = join_moments(torch.stack([a, join_moments(torch.stack([b, c]))]))
    torch.testing.assert_close(left[:-1, :-1], right[:-1, :-1], rtol=1e-12, atol=1e-10)


TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.spectrum import moments_spectrum
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
inputs = torch.arange(24, dtype=torch.float64).reshape(8, 3).square() + 1e6
shared, alone, local = InputMoments(), InputMoments(), InputMoments(sync_on_compute=False)
shared.update(inputs[:3] if rank == 0 else inputs[3:])
alone.update(inputs if rank == 0 else inputs[:0])  # the other rank has no samples
local.update(inputs[rank:])
whole = (inputs - inputs.mean(0)).T @ (inputs - inputs.mean(0))
for metric in (shared, alone):
    found = metric.compute()
    assert found.num_samples == 8, found
    torch.testing.assert_close(found.scatter, whole, rtol=1e-10, atol=1e-10)
assert local.compute().num_samples == 8 - rank
assert moments_spectrum(shared, "covariance").num_samples == 8
dist.destroy_process_group()
os._exit(0)  # threads of torch that still run at exit may abort the process
"""


@pytest.mark.slow
def test_two_real_ranks_one_of_them_without_samples(tmp_path: Path) -> None:
    root = str(Path(module.__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "store")],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors


def test_merging_with_an_empty_metric_and_with_a_state() -> None:
    inputs = gaussian(30, 3)
    metric = InputMoments()
    metric.merge_state(InputMoments())
    assert metric.num_features is None
    metric.merge_state(gathered(inputs[:10], 10))
    metric.merge_state(gathered(inputs[10:], 10).metric_state)
    metric.merge_state(InputMoments())
    assert_moments(metric, inputs)
    with pytest.raises(ConfigurationError, match="3 and 4 features"):
        metric.merge_state(gathered(gaussian(5, 4), 5))


def test_reset_pickle_and_deepcopy() -> None:
    inputs = gaussian(40, 3)
    metric = gathered(inputs[:20], 20)
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        twin.update(inputs[20:])
        assert_moments(twin, inputs)
    assert_moments(metric, inputs[:20])
    metric.reset()
    assert metric.num_features is None
    metric.update(inputs[:, :2])
    assert_moments(metric, inputs[:, :2])


def test_forward_keeps_the_sums() -> None:
    inputs = gaussian(40, 3)
    metric = gathered(inputs[:20], 20)
    assert metric(inputs[20:]).num_samples == 20
    assert_moments(metric, inputs)


def test_half_precision_of_a_module_does_not_reach_the_sums() -> None:
    inputs = gaussian(40, 3)
    metric = gathered(inputs, 20).half()
    assert_moments(metric, inputs)


def test_no_samples() -> None:
    metric = InputMoments()
    metric.update(torch.zeros(0, 3))
    assert metric.num_features is None
    with pytest.raises(ConfigurationError, match="before any sample"):
        metric.compute()


def test_missing_values_are_named_and_leave_the_moments_alone() -> None:
    inputs = gaussian(40, 9)
    metric = gathered(inputs, 40)
    broken = inputs.clone()
    broken[3, 2:8] = float("nan")
    broken[4, 2] = float("-inf")
    with pytest.raises(
        ConfigurationError, match=r"7 of 360 numbers .* 6 of 9 columns \(the first: 2, 3, 4, 5, 6, \.\.\.\)"
    ):
        metric.update(broken)
    assert_moments(metric, inputs)


def test_a_sum_that_overflows_its_type_is_no_missing_value() -> None:
    inputs = torch.full((4, 2), 6e4, dtype=torch.float16)
    inputs[0] = 0
    assert not torch.isfinite(inputs.sum(dim=0)).all()
    assert_moments(gathered(inputs, 4), inputs.double())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), "token ids"),
        (torch.zeros(4, 3, dtype=torch.bool), "token ids"),
        (torch.zeros(4, 3, dtype=torch.complex64), "cast them"),
        (np.zeros((4, 3), dtype=np.int32), "token ids"),
        (np.array([["a", "b"]]), "cannot be read as numbers"),
        (torch.tensor(1.0), "samples dimension"),
        (torch.zeros(4, 0), "no features"),
        ([[1.0, 2.0]], "a list was given"),
        (torch.zeros(1, 1).expand(2, 8193), "select or pool features"),
        (torch.zeros(1, 1).expand(1_000_000, 1_000_000), "select or pool features"),
    ],
)
def test_what_is_refused(inputs: object, message: str) -> None:
    metric = InputMoments()
    with pytest.raises(ConfigurationError, match=message):
        metric.update(inputs)  # type: ignore[arg-type]
    assert metric.num_features is None


def test_inputs_of_another_shape_are_refused() -> None:
    metric = gathered(gaussian(5, 3), 5)
    with pytest.raises(ConfigurationError, match="hold 3 features, but this batch has 4"):
        metric.update(torch.zeros(2, 2, 2))
