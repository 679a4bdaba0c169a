"""Containers of tensors come back as they were, with the tensors replaced."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import torch

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
