"""Leave everything as it was: modes, buffers, random streams, numeric flags, metric states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Mode = Literal["eval", "train"]


@contextmanager
def preserved(module: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Evaluate ``module`` inside as often as you like; outside nothing has happened, also after an exception.

    Restored: the random streams of torch, CUDA, numpy and python; the ``training`` flag of every submodule, one by
    one (a user may keep some in eval mode); buffers; states of torchmetrics; the TF32 flags, which like autocast are
    switched off inside because a product good to three digits is no input for Lanczos. Autograd is on inside,
    inference mode off.
    ``.grad`` needs no care: only :func:`torch.autograd.grad` on detached parameters is used.

    Args:
        module: The module to evaluate.
        mode: "eval" makes the loss a deterministic function of the parameters; "train" keeps every submodule's
            own flag, so layers that the user froze in eval mode stay there.
    """
    flags = [(child, child.training) for child in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    metrics = _metric_states(module)
    with ExitStack() as stack:
        stack.enter_context(random_streams())
        stack.enter_context(_full_precision())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {parameter.device.type for parameter in module.parameters()}:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            if mode == "eval":
                for child, _ in flags:
                    child.training = False
            yield
        finally:
            for child, training in flags:
                child.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for metric, state in metrics:
                metric.__dict__.update(state)


@contextmanager
def random_streams() -> Iterator[None]:
    """Restore the global random streams afterwards, also after an exception.

    Lightning's ``isolate_rng`` does not restore after an exception; a skipped measurement must.
    """
    cpu = torch.get_rng_state()
    # Looking at CUDA must not start it: that would cost memory and forbid forking.
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if started else None
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global stream is what user code draws from
    python_state = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in whole float32, on tensor cores and on CPUs that would use bfloat16."""
    undo = [_full_matmul(), _full_cudnn()]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _full_matmul() -> Callable[[], None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # The user set the newer per-backend flags; the older one can then be neither read nor restored.
        return _ieee("cuda.matmul", "mkldnn.matmul")
    if before == "highest":
        return lambda: None
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _full_cudnn() -> Callable[[], None]:
    try:
        before = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return _ieee("cudnn.conv", "cudnn.rnn")

    def allow(flag: bool) -> None:
        torch.backends.cudnn.allow_tf32 = flag

    allow(False)
    return lambda: allow(before)


def _ieee(*names: str) -> Callable[[], None]:
    """Set the flags that torch 2.9 and later have for each kind of operation."""
    backends = [attrgetter(name)(torch.backends) for name in names]
    before = [backend.fp32_precision for backend in backends]

    def put(values: list[str]) -> None:
        for backend, value in zip(backends, values, strict=True):
            backend.fp32_precision = value

    put(["ieee"] * len(backends))
    return lambda: put(before)


def _metric_states(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Copies of the states of every torchmetrics metric, which are attributes and not always buffers."""
    from torchmetrics import Metric

    kept = ("_update_count", "_computed", "_forward_cache", "_is_synced", "_cache")
    saved: list[tuple[nn.Module, dict[str, Any]]] = []
    for child in module.modules():
        if isinstance(child, Metric):
            names = [*child._defaults, *(name for name in kept if hasattr(child, name))]
            saved.append((child, {name: _copied(getattr(child, name)) for name in names}))
    return saved


def _copied(state: Any) -> Any:
    """Clones of all tensors; not a deep copy, which refuses a cached value that still has its graph."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)
