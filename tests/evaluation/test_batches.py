from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import as_pair, collected, private, sample_count, some_of, to_device
from lightning_sloppy.evaluation.nests import tensors_of

PAIR = (torch.ones(3, 2), torch.zeros(3))


def generated() -> Iterator[Any]:
    yield PAIR


@pytest.mark.parametrize("make", [generated, lambda: iter([PAIR]), lambda: zip([PAIR[0]], [PAIR[1]], strict=True)])
def test_what_can_be_read_once_only_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"read more than once.*pass a list or a DataLoader"):
        collected(make())


@pytest.mark.parametrize("batch", [torch.ones(3, 2), (torch.ones(3),), [1, 2, 3], {"x": torch.ones(3)}])
def test_a_batch_that_is_no_pair_goes_whole_to_module_and_loss(batch: Any) -> None:
    inputs, targets = as_pair(batch)
    assert inputs is batch
    assert targets is batch


@pytest.mark.parametrize("batches", [[], [(torch.ones(0, 2), torch.zeros(0))]])
def test_nothing_to_measure_on(batches: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"the batches are empty; pass at least one"):
        collected(batches)


def test_batches_without_samples_are_left_out() -> None:
    """The mean of no losses is NaN, and stays so under a weight of zero."""
    held = collected([PAIR, (torch.ones(0, 2), torch.zeros(0))])
    assert len(held) == 1
    assert held[0][0] is PAIR[0]


def test_loaders_and_lists_of_lists_are_pairs() -> None:
    loader = DataLoader(TensorDataset(torch.ones(5, 2), torch.zeros(5)), batch_size=3)
    assert [sample_count(batch) for batch in collected(loader)] == [3, 2]


def test_samples_are_counted_in_nests() -> None:
    assert sample_count(({"a": (1, torch.tensor(0.5)), "b": [torch.ones(4, 2)]}, None)) == 4
    with pytest.raises(ConfigurationError, match="no tensor with a first dimension"):
        sample_count((1.0, torch.tensor(2.0)))


def test_only_floating_point_is_cast() -> None:
    inputs, targets = to_device(
        ({"x": torch.ones(2, dtype=torch.float16), "note": "kept"}, torch.tensor([1, 2])),
        torch.device("cpu"),
        torch.float32,
    )
    assert inputs["x"].dtype == torch.float32
    assert inputs["note"] == "kept"
    assert targets.dtype == torch.int64


def test_private_inputs_may_be_overwritten() -> None:
    batch = ([torch.ones(2)], torch.ones(2))
    inputs, targets = private(batch)
    inputs[0].zero_()
    assert batch[0][0].tolist() == [1.0, 1.0]
    assert targets is batch[1]


def test_tensors_of_inference_mode_can_be_differentiated_with() -> None:
    with torch.inference_mode():
        batch = (torch.ones(2), torch.zeros(2))
    inputs, targets = private(batch)
    weight = torch.ones(2, requires_grad=True)
    torch.nn.functional.mse_loss(weight * inputs, targets).backward()
    assert weight.grad is not None


def test_some_samples_of_a_batch_are_evenly_spread() -> None:
    inputs, targets = {"x": torch.arange(9.0), "table": torch.ones(4, 2)}, torch.arange(9)
    few = some_of((inputs, targets), 3)
    assert few[0]["x"].tolist() == few[1].tolist() == [0, 4, 8]
    assert few[0]["table"] is inputs["table"]
    assert some_of(PAIR, 3) is PAIR
    whole = {"x": torch.arange(9.0)}
    few = some_of((whole, whole), 2)
    assert few[0] is few[1]
    assert few[0]["x"].tolist() == [0, 8]


def test_a_batch_is_a_nest_like_any_other() -> None:
    found = tensors_of([as_pair(PAIR)])
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in PAIR]
    again = pickle.loads(pickle.dumps(as_pair(PAIR, counted=3)))
    assert again.counted == 3
    assert torch.equal(again[0], PAIR[0])


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


@pytest.mark.parametrize("last", [torch.zeros(3), (torch.zeros(3), torch.ones(3))], ids=["tensor", "tuple"])
@pytest.mark.parametrize("more", [(), (torch.full((3,), 2.0),)], ids=["three parts", "four parts"])
def test_a_longer_tuple_is_given_back_as_it_came(last: Any, more: tuple[Any, ...]) -> None:
    batch = (torch.ones(3, 2), torch.ones(3, 2), *more, last)
    for pair in (as_pair(batch, module=Two()), pickle.loads(pickle.dumps(as_pair(batch, module=Two())))):
        again = pair.given
        assert len(again) == len(batch)
        assert [type(part) for part in again] == [type(part) for part in batch]
