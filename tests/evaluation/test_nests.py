"""Containers of tensors come back as they were, with the tensors replaced."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pack_sequence

from lightning_sloppy.evaluation.nests import map_tensors, tensors_of, with_tensors

Point = namedtuple("Point", ["x", "name"])


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    inner: dict[str, torch.Tensor]
    made: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made.append(1)


def test_every_container_keeps_its_type() -> None:
    one = torch.ones(2)
    nests = [
        one,
        [one, (one, "a", None)],
        {"a": one, "b": {"c": one}},
        OrderedDict(a=one),
        UserDict(a=one),
        Point(one, "p"),
        Frozen(one, {"a": one}),
    ]
    for nest in nests:
        doubled = map_tensors(lambda t: t * 2, nest)
        assert type(doubled) is type(nest)
        assert all(bool((t == 2).all()) for t in tensors_of(doubled))
        assert len(tensors_of(doubled)) == len(tensors_of(nest)) > 0
        assert all(bool((t == 1).all()) for t in tensors_of(nest)), "the original is untouched"
        again = with_tensors(doubled, tensors_of(nest))
        assert all(a is b for a, b in zip(tensors_of(again), tensors_of(nest), strict=True))


def test_a_dataclass_is_not_built_anew() -> None:
    nest = Frozen(torch.ones(1), {})
    map_tensors(lambda t: t, nest)
    assert nest.made == [1]


class Inner:
    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.owner = x, None

    def to(self, *args: object) -> Inner:
        return Inner(self.x.to(*args))


def test_objects_that_can_be_moved_are_containers() -> None:
    """Also inside one another, and where one refers back to the other."""
    outer = Inner([torch.ones(2), {"y": torch.ones(3)}])
    outer.inner, outer.inner.owner = Inner(torch.ones(1)), outer
    moved = map_tensors(lambda leaf: leaf + 1, outer)
    assert moved is not outer
    assert moved.x[1]["y"].tolist() == [2.0, 2.0, 2.0]
    assert moved.inner.x.tolist() == [2.0]
    assert outer.inner.x.tolist() == [1.0]
    assert len(tensors_of(outer)) == 3


def test_packed_sequences_keep_their_batch_sizes() -> None:
    packed = pack_sequence([torch.ones(1), torch.ones(3)], enforce_sorted=False)
    changed = map_tensors(lambda leaf: leaf * 2, packed)
    assert changed.data.tolist() == [2.0] * 4
    assert torch.equal(changed.batch_sizes, packed.batch_sizes)
    assert len(tensors_of({"a": packed})) == 1
