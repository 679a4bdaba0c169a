"""The Python side of a module's state: counters, lists, metric states, buffers that are bound anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Restore = Callable[[], None]

LARGEST = 1024**3
"""Tensors above this size are not copied: a data set that hangs on a module is no state of it."""


@contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Give every submodule its attributes back afterwards, and containers and tensors among them their contents.

    A forward or a training step that runs once more may count, append to lists, update a metric, or bind a buffer
    anew. Restored are the tables of all submodules (attributes, buffers, parameters, children) by identity; lists,
    dicts, sets and deques in them, nested ones too; and the values of tensors up to 1 GiB that are no parameters.
    Objects of other classes are left alone.
    """
    seen: set[int] = set()
    restores = [restore for child in module.modules() for restore in _captured_module(child, seen)]
    try:
        yield
    finally:
        for restore in restores:
            restore()


def _captured_module(module: nn.Module, seen: set[int]) -> Iterator[Restore]:
    table = vars(module)
    before = dict(table)
    yield lambda: _refill_mapping(table, list(before.items()))
    for value in before.values():
        yield from _captured(value, seen)


def _captured(value: Any, seen: set[int]) -> Iterator[Restore]:
    """What it takes to restore one value and everything inside it."""
    if id(value) in seen or isinstance(value, (nn.Module, nn.Parameter, str, bytes)):
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        if value.numel() * value.element_size() <= LARGEST:
            yield _tensor_restore(value)
        return
    items: list[Any]
    if isinstance(value, MutableMapping):
        pairs = list(value.items())
        items = [item for _, item in pairs]
        yield lambda: _refill_mapping(value, pairs)
    elif isinstance(value, (MutableSequence, deque)):
        items = list(value)
        yield lambda: _refill_sequence(value, items)
    elif isinstance(value, MutableSet):
        items = list(value)
        yield lambda: _refill_set(value, items)
    elif isinstance(value, tuple):
        items = list(value)
    else:
        return
    seen.add(id(value))
    for item in items:
        yield from _captured(item, seen)


def _tensor_restore(tensor: Tensor) -> Restore:
    kept = tensor.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            # NaN differs from itself: compare bitwise-equal tensors only to spare a write.
            if tensor.shape == kept.shape and not torch.equal(tensor, kept):
                tensor.copy_(kept)

    return restore


def _refill_mapping(held: MutableMapping[Any, Any], pairs: list[tuple[Any, Any]]) -> None:
    now = list(held.items())
    if len(now) == len(pairs) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, pairs, strict=True)):
        return
    held.clear()
    for key, value in pairs:  # not update(): a Counter would count the pairs
        held[key] = value


def _refill_sequence(held: Any, items: list[Any]) -> None:
    if len(held) != len(items) or any(a is not b for a, b in zip(held, items, strict=True)):
        held.clear()
        held.extend(items)


def _refill_set(held: MutableSet[Any], items: list[Any]) -> None:
    if len(held) != len(items) or any(item not in held for item in items):
        held.clear()
        for item in items:
            held.add(item)
