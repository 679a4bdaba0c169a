"""Records compared field by field, with tensors, and with NaN equal to NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_sloppy.certificate import Reason
from lightning_sloppy.errors import Note


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two values differ; eigenvectors are not looked at."""
    if dataclasses.is_dataclass(one):
        if type(one) is not type(other):
            return [f"{place}: {type(one)} and {type(other)}"]
        names = [field.name for field in dataclasses.fields(one) if field.name != "eigenvectors"]
        return [d for name in names for d in differences(getattr(one, name), getattr(other, name), f"{place}.{name}")]
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return [] if same and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) else [f"{place}: tensors"]
    if isinstance(one, Mapping):
        if list(one) != list(other):
            return [f"{place}: keys {list(one)} and {list(other)}"]
        return [d for key in one for d in differences(one[key], other[key], f"{place}[{key}]")]
    if isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            return [f"{place}: {one!r} and {other!r}"]
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{place}[{i}]")]
    if isinstance(one, Note) and (one.cause or one.short or isinstance(one, Reason)):
        names = ("cause", "short", *(["flag"] if isinstance(one, Reason) else []))
        if any(getattr(one, name) != getattr(other, name, None) for name in names):
            return [f"{place}: another cause or flag"]
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return []
    return [] if one == other and (type(one) is type(other) or not isinstance(one, bool)) else [f"{place}: {one!r}"]
