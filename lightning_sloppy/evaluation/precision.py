"""Products in whole float32: no TF32 on tensor cores, no bfloat16 on CPUs, and every flag as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch

OPERATIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
REDUCED = ("tf32", "bf16")


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch reduced-precision arithmetic off inside: a product good to three digits is no input for Lanczos.

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
