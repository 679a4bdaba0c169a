"""Records as values that JSON can hold, and back. Every float64 is exact.

A record becomes an object with one key for each field; a mapping an object; a sequence an array; an enum its name. JSON
has no NaN and no infinities: they become the texts "NaN", "Infinity" and "-Infinity", as in the JSON form of protocol
buffers. A tensor becomes nested arrays of its numbers (float64), of true and false (bool), or of whole numbers (int64).
A tensor of another type, or an empty one whose shape nested arrays cannot tell, becomes an object with the keys
"dtype", "shape" and "values". A note with a cause, or a reason with a flag, becomes an object that has them beside its
"sentence". Eigenvectors, which are as large as the network times their number, are left out.

What is read is guided by the types of the fields: a missing key gives the default of the field, an unknown key is
ignored.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from types import UnionType
from typing import Any, TypeVar, Union

import torch
from torch import Tensor

from lightning_sloppy.certificate import Reason
from lightning_sloppy.errors import Note

T = TypeVar("T")

LEFT_OUT = {"eigenvectors"}
"""Fields that are not written."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NESTED = (torch.float64, torch.bool, torch.int64)


def to_json(value: Any) -> Any:
    """The value as objects, arrays, texts, numbers, true, false and null.

    Args:
        value: A record, or what records hold. An object of another type becomes its text.

    >>> to_json({"rate": float("nan"), "count": 3})
    {'rate': 'NaN', 'count': 3}
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _special(value)
    if isinstance(value, Note):
        named = {"flag": getattr(value, "flag", ""), "cause": value.cause, "short": value.short}
        said = {name: text for name, text in named.items() if text}
        return {"sentence": str(value), **said} if said else str(value)
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in LEFT_OUT]
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, Tensor) and value.ndim:
        return _from_tensor(value.detach().cpu())
    if hasattr(value, "item"):  # numbers of NumPy, tensors of one number
        return to_json(value.item())
    return str(value)


def from_json(kind: Callable[..., T], value: Any) -> T:
    """The record of a type from its JSON value.

    Args:
        kind: The type, a dataclass.
        value: What :func:`to_json` has made of such a record.

    Raises:
        KeyError, TypeError, ValueError: If the value is not that of such a record.
    """
    return typing.cast(T, _reader(kind)(value))


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_tensor(tensor: Tensor) -> Any:
    flat = tensor.tolist()
    if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        flat = to_json(flat)
    if tensor.dtype in _NESTED and (tensor.numel() or (tensor.dtype == torch.float64 and tensor.shape == (0,))):
        return flat
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": flat}


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, dict):
        return _filled(value["values"], getattr(torch, value["dtype"])).reshape(value["shape"])
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    kind = {bool: torch.bool, int: torch.int64}.get(type(first), torch.float64)
    return _filled(value, kind)


def _filled(value: Any, dtype: torch.dtype) -> Tensor:
    try:
        return torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError):  # texts among the numbers
        return torch.tensor(_numbers(value), dtype=dtype)


def _numbers(value: Any) -> Any:
    """Nested arrays with floats in place of the texts for what is not finite."""
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return _SPECIAL[value] if isinstance(value, str) else value


def _to_float(value: Any) -> float:
    return _SPECIAL[value] if isinstance(value, str) else float(value)


def _to_text(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    named = {"cause": value.get("cause", ""), "short": value.get("short", "")}
    if "flag" in value:
        return Reason(value["sentence"], flag=value["flag"], **named)
    return Note(value["sentence"], **named)


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """The function that makes a value of a type from JSON."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return _union_reader(args)
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, (Sequence, Mapping)):
        return _container_reader(origin, args)
    if kind in (Tensor, float, str):
        return {Tensor: _to_tensor, float: _to_float, str: _to_text}[kind]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda value: kind[value]
    return partial(_to_record, kind) if dataclasses.is_dataclass(kind) else lambda value: value


def _to_record(kind: Any, value: Mapping[str, Any]) -> Any:
    fields = _fields(kind)
    return kind(**{key: fields[key](part) for key, part in value.items() if key in fields})


@cache
def _fields(kind: Any) -> dict[str, Callable[[Any], Any]]:
    """The readers of the fields of a dataclass; made late, because a record may hold others of its type."""
    hints = typing.get_type_hints(kind)
    return {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}


def _union_reader(args: Sequence[Any]) -> Callable[[Any], Any]:
    some = [_reader(arg) for arg in args if arg is not type(None)]
    if len(some) == 1:
        return lambda value: None if value is None else some[0](value)
    # Texts and numbers: JSON tells them apart, apart from numbers that are not finite.
    return lambda value: _SPECIAL.get(value, value) if isinstance(value, str) else value


def _container_reader(origin: Any, args: Sequence[Any]) -> Callable[[Any], Any]:
    if issubclass(origin, Mapping):
        read = _reader(args[1])
        return lambda value: {key: read(part) for key, part in value.items()}
    if origin is tuple and args[-1] is not Ellipsis:
        each = [_reader(arg) for arg in args]
        return lambda value: tuple(read(part) for read, part in zip(each, value, strict=True))
    read = _reader(args[0])
    return lambda value: tuple(read(part) for part in value)
