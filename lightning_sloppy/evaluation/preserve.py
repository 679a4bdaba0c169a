"""Restore the state around measurements: modes, attributes, random streams, numeric flags."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn

from lightning_sloppy.evaluation.attributes import attributes_restored
from lightning_sloppy.evaluation.precision import full_precision

Mode = Literal["eval", "train"]

_depth = 0
"""Number of open measurements in this process, over all threads: on CUDA, hooks run in the threads of autograd."""


def is_measuring() -> bool:
    """Return whether a measurement is running, so that a call of the module is not part of the training.

    Use it in your hooks, ``forward`` and ``training_step`` if they count, log or learn.

    >>> is_measuring()
    False
    """
    return _depth > 0


@contextmanager
def _flagged() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


@contextmanager
def preserved(module: nn.Module, mode: Mode = "eval", *, precise: bool = True) -> Iterator[None]:
    """Context in which ``module`` can be evaluated any number of times. Its state is restored on exit.

    These are restored, also after an exception: the random streams of torch, CUDA, numpy and python; the ``training``
    flag of every submodule; buffers, states of torchmetrics, and all other attributes, including objects of plain
    classes; the flags of reduced precision. Inside, reduced precision, autocast and inference mode are off, autograd is
    on, compiled code runs eagerly, and gradients of embeddings are dense, because sparse ones have no derivative.
    Parameters and ``.grad`` are not changed: only :func:`torch.autograd.grad` on copies of the parameters is used.

    Args:
        module: The module to evaluate.
        mode: "eval" makes the loss a deterministic function of the parameters. "train" keeps the flag of every
            submodule, so layers that the user froze in eval mode stay there.
        precise: Whether to turn off reduced precision and autocast. False computes as the surrounding code does.
    """
    flags = [(child, child.training) for child in module.modules()]
    with ExitStack() as stack:
        stack.enter_context(_flagged())
        stack.enter_context(random_streams())
        stack.enter_context(attributes_restored(module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_uncompiled())
        if precise:
            stack.enter_context(full_precision())
            for device in {parameter.device.type for parameter in module.parameters()}:
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        for child, _ in flags:
            if isinstance(child, (nn.Embedding, nn.EmbeddingBag)):
                child.sparse = False  # restored with the other attributes
        try:
            if mode == "eval":
                for child, _ in flags:
                    child.training = False
            yield
        finally:
            for child, training in flags:
                child.training = training


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled code eagerly.

    Recompilation for every set of replaced weights would reach ``recompile_limit``. The training itself would then run
    eagerly, with other rounding errors.
    """
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def parameters_restored(module: nn.Module) -> Iterator[None]:
    """Restore parameters and their ``.grad`` bit for bit on exit, also after an exception.

    For code that may write to them. It costs a copy of both. Unchanged tensors are not written.
    """
    kept = [
        (p, p.data, p.detach().clone(), p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
        for p in module.parameters()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, data, copy, trained, gradient, gradient_copy in kept:
                parameter.data = data
                if not torch.equal(data, copy):
                    data.copy_(copy)
                parameter.requires_grad_(trained)
                parameter.grad = gradient
                if gradient is not None and gradient_copy is not None and not torch.equal(gradient, gradient_copy):
                    gradient.copy_(gradient_copy)


@contextmanager
def random_streams() -> Iterator[None]:
    """Restore the global random streams on exit, also after an exception.

    Lightning's ``isolate_rng`` does not restore them after an exception, which a failed measurement needs.
    """
    cpu = torch.get_rng_state()
    # This must not initialise CUDA, which would cost memory and prevent forking.
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
