"""Products in whole float32, or in float64 on request: no TF32 on tensor cores, no bfloat16 on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Literal

import torch

from lightning_sloppy.errors import ConfigurationError

Precision = Literal["float64"]
"""Data type of the products, if it should be more precise than that of the parameters."""

HALF = (torch.float16, torch.bfloat16)
"""Types whose rounding is as large as the noise of a posterior."""

OPERATIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
REDUCED = ("tf32", "bf16")


def checked_precision(precision: str | None) -> Precision | None:
    """Return it if it is known.

    Raises:
        ConfigurationError: For anything but "float64" and None.
    """
    if precision in ("float64", None):
        return precision  # type: ignore[return-value]
    raise ConfigurationError(
        f"precision={precision!r} was asked for; pass 'float64', or None for the data type of the parameters."
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn off reduced-precision arithmetic inside, because Lanczos needs products with more than three digits.

    torch has older global flags and, since 2.9, newer ones for each operation; setting an older one moves several of
    the newer ones, and an older one cannot be read while they disagree. So the older ones are used where they can be
    read, the newer ones close what is left, and both are restored in that order.
    """
    operations = [found for name in OPERATIONS if (found := _operation(name)) is not None]
    before = [operation.fp32_precision for operation in operations]
    undo = [_set_matmul(), _set_cudnn()]
    for operation in operations:
        if operation.fp32_precision in REDUCED:
            operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        for restore in undo:
            restore()
        for operation, value in zip(operations, before, strict=True):
            if operation.fp32_precision != value:
                operation.fp32_precision = value


def _operation(name: str) -> Any:
    try:
        operation = attrgetter(name)(torch.backends)
    except AttributeError:
        return None
    return operation if hasattr(operation, "fp32_precision") else None


def _set_matmul() -> Callable[[], None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        return lambda: None
    if before == "highest":
        return lambda: None
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _set_cudnn() -> Callable[[], None]:
    try:
        before = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return lambda: None

    def put(flag: bool) -> None:
        torch.backends.cudnn.allow_tf32 = flag

    put(False)
    return lambda: put(before)
