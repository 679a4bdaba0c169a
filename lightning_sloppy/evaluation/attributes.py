"""Save and restore the Python state of a module: counters, lists, metric states, replaced buffers, plain objects."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], object]

LARGEST = 1024**3
"""Tensors above this size are not copied, because they are data sets rather than state."""

MOST_OBJECTS = 500_000
"""Largest number of objects that are searched. More objects are a data set rather than state."""

TRACKERS = frozenset(
    {"wandb", "mlflow", "neptune", "comet_ml", "clearml", "aim", "swanlab", "tensorboard", "tensorboardX"}
)
"""Packages that send data to a service or a file."""

HOSTS = TRACKERS | {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_sloppy"}
"""Packages whose objects are not restored: Trainers, loaders, data sets, optimisers and loggers manage their state."""

SHARED = frozenset({"threading", "_thread", "queue", "multiprocessing", "asyncio", "concurrent", "socket", "ssl"})
"""Objects that refer to these are shared by threads. Restoring them could undo the work of another thread."""

ATOMS = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)
"""Types without state, or without state that a forward changes."""


@contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Restore the attributes of every submodule on exit, and the contents of these attributes.

    An additional forward or training step may count, append to lists, update a metric, or replace a buffer. These are
    restored, at any depth of nesting: the tables of all submodules (attributes, buffers, parameters, children) by
    identity; lists, dicts, sets, deques, arrays and random streams in them; the attributes of objects of plain classes;
    and the values of tensors up to 1 GiB that are not parameters of the module. Objects of classes of torch and
    Lightning, and objects that hold locks or threads, are not restored.
    """
    restores = captured(module.modules(), ignoring=module.parameters())
    try:
        yield
    finally:
        for restore in restores:
            restore()


def captured(objects: Iterable[Any], *, ignoring: Iterable[Any] = (), largest: int = LARGEST) -> list[Restore]:
    """Functions that restore these objects, and everything inside them, to their current state."""
    ignored = {id(each) for each in ignoring}
    restores = []
    for value in reachable(objects):
        if id(value) not in ignored:
            restore = _restore_of(value, largest)
            if restore is not None:
                restores.append(restore)
    return restores


def reachable(objects: Iterable[Any], *, everything: bool = False) -> Iterator[Any]:
    """These objects and all objects inside them that can have state, each once.

    With ``everything``, objects that are not restored are included, but not what is inside them.
    """
    waiting = list(objects)
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        value = waiting.pop()
        if isinstance(value, ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        if not is_left_alone(value):
            yield value
            waiting.extend(_parts(value))
        elif everything:
            yield value


def is_left_alone(value: Any) -> bool:
    """Whether the state of an object must not be restored from outside."""
    if isinstance(value, (Tensor, nn.Module, torch.Generator)) or type(value).__module__ == "builtins":
        return False
    kinds = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return bool(kinds & (HOSTS | SHARED)) or holds_threads(value)


def holds_threads(value: Any) -> bool:
    """Whether an object may be shared with other threads."""
    return any(type(part).__module__.partition(".")[0] in SHARED for part in _fields(value).values())


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, including those in slots."""
    fields = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name[:2] == "__" and name[-2:] != "__" else name
            if mangled not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                fields[mangled] = getattr(value, mangled)
    return fields


def _parts(value: Any) -> Iterable[Any]:
    """The objects inside, one level deep."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return ()
    inside: list[Any] = list(_fields(value).values())
    if isinstance(value, MutableMapping):
        inside += list(value.values())
    elif isinstance(value, (MutableSequence, MutableSet, deque, tuple, frozenset)):
        inside += list(value)
    return inside


def _restore_of(value: Any, largest: int) -> Restore | None:
    if isinstance(value, Tensor):
        return _tensor_restore(value) if value.numel() * value.element_size() <= largest else None
    if isinstance(value, np.ndarray):
        return _array_restore(value) if value.nbytes <= largest and value.flags.writeable else None
    stream = _stream_restore(value)
    if stream is not None:
        return stream
    restores = [restore for restore in (_contents_restore(value), _fields_restore(value)) if restore is not None]
    if len(restores) < 2:
        return restores[0] if restores else None
    return lambda: [restore() for restore in restores]


def _tensor_restore(tensor: Tensor) -> Restore:
    kept = tensor.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            # The comparison only saves a write. NaN is not equal to itself, so such tensors are always written.
            if tensor.shape == kept.shape and not torch.equal(tensor, kept):
                tensor.copy_(kept)

    return restore


def _array_restore(array: np.ndarray[Any, Any]) -> Restore:
    kept = array.copy()

    def restore() -> None:
        if array.shape == kept.shape and array.tobytes() != kept.tobytes():
            array[...] = kept

    return restore


def _stream_restore(value: Any) -> Restore | None:
    """Of a generator of random numbers."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        kept = value.getstate()
        return lambda: value.setstate(kept)
    if isinstance(value, np.random.Generator):
        bits, held = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", held)
    if isinstance(value, np.random.RandomState):
        table = value.get_state()
        return lambda: value.set_state(table)
    return None


def _contents_restore(value: Any) -> Restore | None:
    """Of a container."""
    if isinstance(value, MutableMapping):
        pairs = list(value.items())
        return lambda: _refill_mapping(value, pairs)
    if isinstance(value, (MutableSequence, deque)):
        items = list(value)
        return lambda: _refill_sequence(value, items)
    if isinstance(value, MutableSet):
        members = list(value)
        return lambda: _refill_set(value, members)
    return None


def _fields_restore(value: Any) -> Restore | None:
    """Of the attributes of a module or a plain object."""
    table = vars(value) if hasattr(value, "__dict__") else {}
    before = list(table.items())
    slots = {name: part for name, part in _fields(value).items() if name not in table}
    if not hasattr(value, "__dict__") and not slots:
        return None

    def restore() -> None:
        _refill_mapping(table, before)
        for name, part in slots.items():
            if getattr(value, name, restore) is not part:
                object.__setattr__(value, name, part)

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
