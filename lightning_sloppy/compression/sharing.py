"""Which layer gets which rank: one budget is shared out by what each number saved costs the module's outputs.

Every layer has a choice of sizes, from rank 1 to leaving it alone, each with its effect on the outputs. On the lower
convex hull of these points the sum of the effects is least for a given sum of sizes if steps are taken in the order of
the effect saved for each number (Shoham and Gersho, IEEE Transactions on ASSP 36, 1988).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_sloppy.compression.low_rank import Directions
from lightning_sloppy.compression.matrix_layers import Layer

ROUNDING = 1e-13
"""Share of variance below which nothing is lost: no number is spent on rounding errors of float64."""

UNCHANGED = 0
"""The rank of a layer that is left alone."""


@dataclass(frozen=True)
class Choice:
    """One size of a layer.

    Attributes:
        rank: Its rank; ``UNCHANGED`` leaves it alone.
        size: Numbers that it stores.
        lost: Share of its centred output variance that is lost.
        effect: Mean squared change of the module's outputs with this choice alone, divided by their variance.
    """

    rank: int
    size: int
    lost: float
    effect: float = 0.0


@dataclass(frozen=True)
class Step:
    """A step of a layer to its next size: the effect saved for each number, the layer, and the size."""

    gain: float
    layer: str
    choice: Choice


class Shares:
    """The sizes of all layers that can be compressed.

    Args:
        found: Layers with their directions.
        effects: Of each rank of each layer; None takes the shares of variance lost.
    """

    def __init__(
        self, found: Sequence[tuple[Layer, Directions]], effects: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self._all = {
            layer.name: _choices(layer, directions, None if effects is None else effects[layer.name])
            for layer, directions in found
        }
        hulls = {name: _hull(choices) for name, choices in self._all.items()}
        self._first = {name: hull[0] for name, hull in hulls.items()}
        steps = [
            Step((before.effect - after.effect) / (after.size - before.size), name, after)
            for name, hull in hulls.items()
            for before, after in pairwise(hull)
        ]
        self._steps = sorted(steps, key=lambda step: -step.gain)  # stable: of one layer they stay in order
        self.smallest = sum(choice.size for choice in self._first.values())

    def within(self, budget: int) -> Mapping[str, Choice]:
        """The choice of each layer with at most this many numbers in all; the smallest ones if that is too few."""
        chosen = dict(self._first)
        left = budget - self.smallest
        closed: dict[str, None] = {}
        for step in self._steps:
            cost = step.choice.size - chosen[step.layer].size
            if step.layer in closed or cost > left:
                closed[step.layer] = None
                continue
            chosen[step.layer] = step.choice
            left -= cost
        for name in closed:  # what is left does not reach to the next point of a hull, but to ranks between two
            now = chosen[name]
            fitting = [each for each in self._all[name] if each.size - now.size <= left and each.effect < now.effect]
            if fitting:
                chosen[name] = min(fitting, key=lambda each: each.effect)
                left -= chosen[name].size - now.size
        return chosen


def keeping(share: float, found: Sequence[tuple[Layer, Directions]]) -> Mapping[str, Choice]:
    """The smallest size of each layer that keeps this share of its own variance; unchanged where none is smaller."""
    chosen = {}
    for layer, directions in found:
        rank = directions.rank_for(share)
        smaller = rank <= layer.largest_rank
        chosen[layer.name] = (
            Choice(rank, layer.size_at(rank), 1 - float(directions.kept[rank - 1]))
            if smaller
            else Choice(UNCHANGED, layer.parameters, 0.0)
        )
    return chosen


def _choices(layer: Layer, directions: Directions, effects: Sequence[float] | None) -> list[Choice]:
    lost = [share if share > ROUNDING else 0.0 for share in (1 - directions.kept).tolist()]
    effects = (
        lost if effects is None else [effect if share else 0.0 for effect, share in zip(effects, lost, strict=False)]
    )
    ranks = range(1, layer.largest_rank + 1)
    found = [Choice(rank, layer.size_at(rank), lost[rank - 1], effects[rank - 1]) for rank in ranks]
    return [*found, Choice(UNCHANGED, layer.parameters, 0.0)]


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of (size, effect), from the smallest size to the first without an effect."""
    hull: list[Choice] = []
    for choice in choices:
        if hull and choice.effect >= hull[-1].effect:
            continue  # larger for nothing
        while len(hull) > 1 and _above(hull[-2], hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _above(a: Choice, b: Choice, c: Choice) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b.effect - a.effect) * (c.size - a.size) >= (c.effect - a.effect) * (b.size - a.size)
