"""Tensors inside containers: mappings, dataclasses, tuples, lists, packed sequences, and objects that can be moved.

The pytrees of torch know neither dataclasses, nor mappings that are no dict, nor objects with tensors in their
attributes, in which many tokenisers, collate functions and graph libraries give their batches.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Nest = TypeVar("Nest")


def map_tensors(function: Callable[[Tensor], Any], nest: Nest) -> Nest:
    """The same containers with every tensor replaced; all other leaves stay.

    >>> import torch
    >>> map_tensors(lambda leaf: leaf + 1, {"x": torch.zeros(2), "name": "a"})
    {'x': tensor([1., 1.]), 'name': 'a'}
    """
    return _Mapper(function).mapped(nest)  # type: ignore[no-any-return]


def tensors_of(nest: Any) -> list[Tensor]:
    """All tensors of a nest, in the order in which :func:`map_tensors` meets them."""
    found: list[Tensor] = []
    map_tensors(lambda leaf: found.append(leaf) or leaf, nest)  # type: ignore[func-returns-value]
    return found


def with_tensors(nest: Nest, tensors: list[Tensor]) -> Nest:
    """The same containers with these tensors in the places of :func:`tensors_of`."""
    fresh = iter(tensors)
    return map_tensors(lambda _: next(fresh), nest)


def leaves_of(nest: Any) -> list[Tensor | PackedSequence]:
    """All tensors of a nest, a packed sequence as one leaf, in the order in which :func:`map_leaves` meets them."""
    found: list[Tensor | PackedSequence] = []
    map_leaves(lambda leaf: found.append(leaf) or leaf, nest)  # type: ignore[func-returns-value]
    return found


def map_leaves(function: Callable[[Any], Any], nest: Nest) -> Nest:
    """Like :func:`map_tensors`, but a packed sequence is given to the function whole."""
    return _Mapper(function, packed=False).mapped(nest)  # type: ignore[no-any-return]


def is_object(nest: Any) -> bool:
    """Whether it is a batch object as graph libraries give them: attributes with tensors, and ``.to`` to move them."""
    if isinstance(nest, (Tensor, nn.Module, type)) or not callable(getattr(nest, "to", None)):
        return False
    return callable(getattr(nest, "apply", None)) or hasattr(nest, "__dict__")


class _Mapper:
    """One walk through a nest.

    Args:
        function: Gives what takes the place of a leaf.
        packed: Whether a packed sequence is taken apart.
    """

    def __init__(self, function: Callable[[Any], Any], *, packed: bool = True) -> None:
        self._function = function
        self._packed = packed
        self._inside: list[int] = []

    def mapped(self, nest: Any) -> Any:
        """The same containers with other leaves."""
        if isinstance(nest, Tensor):
            return self._function(nest)
        if isinstance(nest, PackedSequence):
            return self._sequence(nest) if self._packed else self._function(nest)
        if isinstance(nest, Mapping):
            return self._mapping(nest)
        if isinstance(nest, tuple) and hasattr(nest, "_fields"):
            return type(nest)(*(self.mapped(part) for part in nest))
        if type(nest) in (list, tuple):
            return type(nest)(self.mapped(part) for part in nest)
        if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
            changed = copy.copy(nest)
            for item in dataclasses.fields(nest):
                if hasattr(nest, item.name):
                    # Not replace(): that would run __post_init__ again. Frozen classes refuse plain assignment.
                    object.__setattr__(changed, item.name, self.mapped(getattr(nest, item.name)))
            return changed
        return self._object(nest) if is_object(nest) else nest

    def _sequence(self, nest: PackedSequence) -> PackedSequence:
        """The batch sizes stay on the CPU, where torch wants them; the orders of the samples go where the data go."""
        data = self._function(nest.data)
        orders = [nest.sorted_indices, nest.unsorted_indices]
        if isinstance(data, Tensor):
            orders = [None if order is None else order.to(data.device) for order in orders]
        return PackedSequence(data, nest.batch_sizes, *orders)

    def _object(self, nest: Any) -> Any:
        if id(nest) in self._inside:  # an object that refers back to the one that holds it
            return nest
        changed = copy.copy(nest)
        apply = getattr(changed, "apply", None)
        if callable(apply):
            # The batches of torch_geometric reach their tensors in this way, also those in the stores behind them.
            return apply(lambda part: self.mapped(part) if isinstance(part, (Tensor, PackedSequence)) else part)
        self._inside.append(id(nest))
        for name, part in vars(nest).items():
            object.__setattr__(changed, name, self.mapped(part))
        self._inside.pop()
        return changed

    def _mapping(self, nest: Mapping[Any, Any]) -> Any:
        parts = {key: self.mapped(value) for key, value in nest.items()}
        if type(nest) is dict:
            return parts
        if isinstance(nest, MutableMapping):
            changed = copy.copy(nest)
            inner = getattr(changed, "data", None)
            if isinstance(inner, dict):
                # A shallow copy of a UserDict made by hand may share the dict inside.
                changed.data = dict(inner)  # type: ignore[attr-defined]
            for key, value in parts.items():
                changed[key] = value
            return changed
        return parts
