"""Contexts in which a double backward exists: fused kernels often have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sloppy.errors import UnsupportedError


@contextmanager
def double_backward(module: nn.Module) -> Iterator[None]:
    """Run forwards so that second derivatives exist.

    Attention uses the math kernel, recurrent layers leave cuDNN, compiled modules run eagerly: the fused kernels of
    all three lack a second derivative.

    Raises:
        UnsupportedError: When a double backward was still refused; the message names the operation.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(child, nn.RNNBase) for child in module.modules()):
            stack.enter_context(_without_cudnn())
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if ("derivative for" in text and "not implemented" in text) or "double backward" in text:
                raise UnsupportedError(
                    f"The Hessian needs second derivatives, but an operation of {type(module).__name__} has none "
                    f"({text.splitlines()[0]}); use FisherSpectrum, which needs first derivatives only, or replace it."
                ) from error
            raise


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """The flag alone: :func:`torch.backends.cudnn.flags` would set the precision flags as well."""
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def free_bytes(device: torch.device) -> int:
    """Memory free on the device; 2 GiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as table:
            for line in table:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2 * 1024**3


@contextmanager
def counted_graph() -> Iterator[list[int]]:
    """Count the bytes that the graph built inside will keep; the list holds one number afterwards."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: a node that saves its own output would then keep itself alive for ever.
        return tensor.detach()

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(seen.values()))
