"""Objects outside a module that its code refers to: closures, globals, attributes of classes."""

from __future__ import annotations

import functools
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_sloppy.evaluation.attributes import ATOMS, HOSTS, TRACKERS, captured, holds_threads

KNOWN = HOSTS | {"numpy", "torchmetrics", "torchvision", "transformers", "builtins"}
"""Packages whose functions are not searched, because they keep no state of a user's training."""

WRITES = object()
"""Marker for a file that is opened."""

MOST_FUNCTIONS = 300
"""Largest number of functions that are searched."""

LARGEST = 16 * 1024**2
"""Largest size in bytes of a tensor that is restored after every call. Larger ones are taken to be data."""


@dataclass(frozen=True)
class Binding:
    """A name that a function can rebind: a global, a variable of an enclosing function, or a class attribute."""

    name: str
    value: Any
    bind: Callable[[Any], object]
    now: Callable[[], Any]

    def restore(self) -> None:
        """Bind the name to its earlier value."""
        if self.now() is not self.value:
            self.bind(self.value)


@dataclass(frozen=True)
class Outside:
    """What a call of a module's methods can change outside the module.

    Attributes:
        bindings: Names that its code uses.
        acting: Those whose state cannot be restored, by name: they write, step, or are consumed by reading.
    """

    bindings: tuple[Binding, ...]
    acting: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Outside:
        """Search the code of the step, of the forwards, and of what they call.

        The search finds what is referred to by name: globals, variables of enclosing functions, plain values kept by
        classes, and files that are opened. It does not find objects that are passed in other ways.
        """
        mine = {id(each) for each in module.modules()}
        found = [*_named(_functions_of(module)), *_of_classes(module)]
        found = [each for each in found if id(each.value) not in mine]
        return cls(tuple(found), tuple(dict.fromkeys(each.name for each in found if _acts(each.value))))

    @contextmanager
    def restored(self, *others: Any) -> Iterator[None]:
        """Restore on exit what the names are bound to and the state of these objects, and that of ``others``."""
        bindings = [Binding(each.name, each.now(), each.bind, each.now) for each in self.bindings]
        restores = captured([*others, *(each.value for each in bindings if not _acts(each.value))], largest=LARGEST)
        try:
            yield
        finally:
            for restore in (*restores, *(each.restore for each in bindings)):
                restore()


@dataclass(frozen=True)
class Constants:
    """Plain values that the code of a module refers to, or holds.

    Attributes:
        numbers: Numbers that are neither 0 nor 1.
        tuples: Several numbers in a row.
        tensors: Tensors by the name under which they are found.
    """

    numbers: tuple[float, ...]
    tuples: tuple[tuple[float, ...], ...]
    tensors: dict[str, Tensor]


def constants_of(module: nn.Module) -> Constants:
    """Constants in the code of the step and of what it calls, and in the attributes of the module."""
    named: dict[str, Any] = {f"self.{name}": value for name, value in vars(module).items() if name[:1] != "_"}
    named |= {f"self.{name}": buffer for name, buffer in module.named_buffers()}
    hparams = getattr(module, "hparams", None)
    named |= {f"self.hparams.{name}": value for name, value in dict(hparams or {}).items()}
    functions = list(_functions_of(module))
    for binding in list(_named(functions)):
        named.setdefault(binding.name, binding.value)
        functions += _functions(binding.value)
    values = [*named.values(), *(each for function in functions for each in _literals(function.__code__))]
    numbers = [float(each) for each in values if _is_number(each)]
    rows = [each for each in values if isinstance(each, (tuple, list)) and each and all(map(_is_number, each))]
    return Constants(
        tuple(dict.fromkeys(each for each in numbers if math.isfinite(each) and each not in (0.0, 1.0))),
        tuple(dict.fromkeys(tuple(map(float, each)) for each in rows)),
        {name: value for name, value in named.items() if isinstance(value, Tensor)},
    )


def _literals(code: CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _literals(constant)
        else:
            yield constant


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _acts(value: Any) -> bool:
    if value is WRITES:
        return True
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] in TRACKERS
    if isinstance(value, (Optimizer, LRScheduler, io.IOBase, Iterator)):
        return True
    if isinstance(value, (*ATOMS, nn.Module, logging.Logger)):
        return False
    kinds = {kind.__name__ for kind in type(value).__mro__}
    packages = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return bool(kinds & {"SummaryWriter", "Logger"} or packages & TRACKERS) or holds_threads(value)


def _classes(module: nn.Module) -> list[type]:
    """The classes of a module and its children, without those of known packages."""
    kinds = {kind: None for child in module.modules() for kind in type(child).__mro__}
    return [kind for kind in kinds if kind.__module__.partition(".")[0] not in KNOWN]


def _of_classes(module: nn.Module) -> Iterator[Binding]:
    """Plain values that are attributes of the classes."""
    for kind in _classes(module):
        for name, value in list(vars(kind).items()):
            plain = not callable(value) and not hasattr(type(value), "__get__") and not name.startswith("__")
            if plain:
                bind, now = functools.partial(setattr, kind, name), functools.partial(getattr, kind, name, None)
                yield Binding(f"{kind.__name__}.{name}", value, bind, now)


def _functions_of(module: nn.Module) -> Iterator[FunctionType]:
    """The step, the forwards, and all methods of any submodule whose names these use."""
    methods: dict[str, list[FunctionType]] = {}
    for owner in (*_classes(module), *module.modules()):
        for name, value in list(vars(owner).items()):
            methods.setdefault(name, []).extend(_functions(value))
    waiting, seen = ["training_step", "forward", "__call__"], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            for function in methods.get(name, ()):
                yield function
                waiting.extend(_names(function.__code__))


def _functions(value: Any) -> Iterator[FunctionType]:
    """The Python functions that a callable calls."""
    if isinstance(value, FunctionType):
        if (value.__module__ or "").partition(".")[0] not in KNOWN:
            yield value
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from _functions(value.__func__)
    elif isinstance(value, functools.partial):
        yield from _functions(value.func)
    elif isinstance(value, property) and value.fget is not None:
        yield from _functions(value.fget)


def _named(functions: Iterable[FunctionType]) -> Iterator[Binding]:
    """The names that functions refer to, including those of the functions that they refer to."""
    waiting = list(functions)
    seen: set[int] = set()
    while waiting and len(seen) < MOST_FUNCTIONS:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for binding in _bindings(function):
            waiting.extend(_functions(binding.value))
            yield binding


def _bindings(function: FunctionType) -> Iterator[Binding]:
    table = function.__globals__
    for name in _names(function.__code__):
        if name == "open" and name not in table:
            yield Binding(name, WRITES, _unbound, lambda: WRITES)
        if name in table:
            yield Binding(
                name, table[name], functools.partial(table.__setitem__, name), functools.partial(table.get, name)
            )
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        yield Binding(
            name,
            value,
            functools.partial(setattr, cell, "cell_contents"),
            functools.partial(getattr, cell, "cell_contents"),
        )


def _unbound(_: Any) -> None:
    """Bind nothing."""


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
