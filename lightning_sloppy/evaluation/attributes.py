"""The Python side of a module's state: counters, lists, metric states, buffers that are bound anew, plain objects."""

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
"""Tensors above this size are not copied: a data set that hangs on a module is no state of it."""

MOST_OBJECTS = 500_000
"""Objects that are looked at; beyond them there is a data set, not a state."""

TRACKERS = frozenset(
    {"wandb", "mlflow", "neptune", "comet_ml", "clearml", "aim", "swanlab", "tensorboard", "tensorboardX"}
)
"""Packages that send what they are told somewhere."""

HOSTS = TRACKERS | {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_sloppy"}
"""Whose objects are left alone: Trainers, loaders, data sets, optimisers, loggers keep a state of their own."""

SHARED = frozenset({"threading", "_thread", "queue", "multiprocessing", "asyncio", "concurrent", "socket", "ssl"})
"""Objects that hold something of these belong to several threads: to turn them back could undo what another one did."""

ATOMS = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)
"""What has no state, or none that a forward changes."""


@contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Give every submodule its attributes back afterwards, and what hangs on them its contents.

    A forward or a training step that runs once more may count, append to lists, update a metric, or bind a buffer
    anew. Restored are the tables of all submodules (attributes, buffers, parameters, children) by identity; lists,
    dicts, sets, deques, arrays and random streams in them; the attributes of objects of any plain class; and the
    values of tensors up to 1 GiB that are no parameters of the module; all of it nested. Objects of torch's and
    Lightning's own kinds and those that hold locks or threads are left alone.
    """
    restores = captured(module.modules(), ignoring=module.parameters())
    try:
        yield
    finally:
        for restore in restores:
            restore()


def captured(objects: Iterable[Any], *, ignoring: Iterable[Any] = (), largest: int = LARGEST) -> list[Restore]:
    """What it takes to turn these objects, and everything inside them, back to what they are now."""
    ignored = {id(each) for each in ignoring}
    restores = []
    for value in reachable(objects):
        if id(value) not in ignored:
            restore = _restore_of(value, largest)
            if restore is not None:
                restores.append(restore)
    return restores


def reachable(objects: Iterable[Any], *, everything: bool = False) -> Iterator[Any]:
    """These objects and what is inside them that can have a state, each once.

    With ``everything`` what is left alone is given too, and not what is inside of it.
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
    """Whether an object keeps a state of its own that is not for others to turn back."""
    if isinstance(value, (Tensor, nn.Module, torch.Generator)) or type(value).__module__ == "builtins":
        return False
    kinds = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return bool(kinds & (HOSTS | SHARED)) or holds_threads(value)


def holds_threads(value: Any) -> bool:
    """Whether other threads may have a part in an object."""
    return any(type(part).__module__.partition(".")[0] in SHARED for part in _fields(value).values())


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots included."""
    fields = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name[:2] == "__" and name[-2:] != "__" else name
            if mangled not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                fields[mangled] = getattr(value, mangled)
    return fields


def _parts(value: Any) -> Iterable[Any]:
    """What is inside, one level deep."""
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
            # NaN differs from itself: compare bitwise-equal tensors only to spare a write.
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
