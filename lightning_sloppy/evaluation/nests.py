"""Tensors inside containers: dicts and other mappings, dataclasses, named tuples, tuples and lists.

The pytrees of torch know neither dataclasses nor mappings that are no dict, in which many tokenisers and collate
functions give their batches.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from torch import Tensor

Nest = TypeVar("Nest")


def map_tensors(function: Callable[[Tensor], Any], nest: Nest) -> Nest:
    """The same containers with every tensor replaced; all other leaves stay.

    >>> import torch
    >>> map_tensors(lambda leaf: leaf + 1, {"x": torch.zeros(2), "name": "a"})
    {'x': tensor([1., 1.]), 'name': 'a'}
    """
    return _mapped(function, nest)  # type: ignore[no-any-return]


def tensors_of(nest: Any) -> list[Tensor]:
    """All tensors of a nest, in the order in which :func:`map_tensors` meets them."""
    found: list[Tensor] = []
    map_tensors(lambda leaf: found.append(leaf) or leaf, nest)  # type: ignore[func-returns-value]
    return found


def with_tensors(nest: Nest, tensors: list[Tensor]) -> Nest:
    """The same containers with these tensors in the places of :func:`tensors_of`."""
    fresh = iter(tensors)
    return map_tensors(lambda _: next(fresh), nest)


def _mapped(function: Callable[[Tensor], Any], nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        return _mapped_mapping(function, nest)
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(_mapped(function, part) for part in nest))
    if type(nest) in (list, tuple):
        return type(nest)(_mapped(function, part) for part in nest)
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        changed = copy.copy(nest)
        for item in dataclasses.fields(nest):
            if hasattr(nest, item.name):
                # Not replace(): that would run __post_init__ again. Frozen classes refuse plain assignment.
                object.__setattr__(changed, item.name, _mapped(function, getattr(nest, item.name)))
        return changed
    return nest


def _mapped_mapping(function: Callable[[Tensor], Any], nest: Mapping[Any, Any]) -> Any:
    parts = {key: _mapped(function, value) for key, value in nest.items()}
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
