"""Leave everything as it was: modes, attributes, random streams, numeric flags."""

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
"""Measurements that are open in this process: of all threads, for on CUDA backward hooks run in threads of autograd."""


def is_measuring() -> bool:
    """Whether a measurement runs, so that what calls the module now is no step of the training.

    For hooks, forwards and steps of one's own that count, log or learn.

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
    """Evaluate ``module`` inside as often as you like; outside nothing has happened, also after an exception.

    Restored: the random streams of torch, CUDA, numpy and python; the ``training`` flag of every submodule, one by
    one (a user may keep some in eval mode); buffers, states of torchmetrics, all other attributes and the objects of
    plain classes among them; the flags of reduced precision, which like autocast are off inside. Autograd is on inside,
    inference mode off, gradients of embeddings are dense, for sparse ones have no derivative, and what is compiled
    runs eagerly. Parameters and
    ``.grad`` need no care: only :func:`torch.autograd.grad` on copies of the parameters is used.

    Args:
        module: The module to evaluate.
        mode: "eval" makes the loss a deterministic function of the parameters; "train" keeps every submodule's
            own flag, so layers that the user froze in eval mode stay there.
        precise: Without reduced precision and autocast; False computes as the surroundings do.
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
                child.sparse = False  # an attribute like others: it is restored
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
    """Run what :func:`torch.compile` has wrapped as it was written.

    Compiled anew for every set of weights that stands in, it would use up ``recompile_limit``, and the training
    itself would then run eagerly, with other roundings.
    """
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def parameters_restored(module: nn.Module) -> Iterator[None]:
    """Parameters and their ``.grad`` are afterwards what they were, bit for bit, also after an exception.

    For code that may write: it costs a copy of both. Where nothing was written nothing is copied back.
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
