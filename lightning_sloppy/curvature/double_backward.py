"""Contexts in which a double backward exists. Fused kernels often have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint as checkpointing

from lightning_sloppy.curvature.parameters import grad
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.nests import map_tensors, tensors_of


@contextmanager
def double_backward(module: nn.Module) -> Iterator[None]:
    """Run forwards so that second derivatives exist.

    Attention uses the math kernel, recurrent layers do not use cuDNN, compiled modules run eagerly, and activation
    checkpointing is not re-entrant. Without these changes, none of the four has a second derivative.

    Raises:
        UnsupportedError: If an operation still has no double backward; the message names it.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_without_reentry())
        stack.enter_context(backward_in_eval(module))
        try:
            yield
        except RuntimeError as error:
            if _is_refusal(error):
                raise UnsupportedError(
                    f"The Hessian needs second derivatives, but an operation of {type(module).__name__} has none "
                    f"({str(error).splitlines()[0]}); use method='central_differences', or a Fisher spectrum, which "
                    "needs first derivatives only."
                ) from error
            raise


def _is_refusal(error: RuntimeError) -> bool:
    text = str(error)
    return ("derivative for" in text and "not implemented" in text) or "double backward" in text


@contextmanager
def backward_in_eval(module: nn.Module) -> Iterator[None]:
    """Run forwards so that first derivatives exist in eval mode, where recurrent layers of cuDNN have none."""
    enabled = torch.backends.cudnn.enabled
    if any(isinstance(child, nn.RNNBase) for child in module.modules()):
        # The flag alone: torch.backends.cudnn.flags would set the precision flags as well.
        torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


class _NoReentry:
    """Replacement for the autograd function of ``checkpoint(use_reentrant=True)``."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        return checkpointing.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def _without_reentry() -> Iterator[None]:
    """Replace re-entrant checkpointing, which does not support :func:`torch.autograd.grad`, with the same numbers."""
    function = checkpointing.CheckpointFunction
    checkpointing.CheckpointFunction = _NoReentry  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpointing.CheckpointFunction = function  # type: ignore[misc]


def refusing_layers(module: nn.Module, forward: Callable[[], Any]) -> list[str]:
    """Names of the layers whose own operations have no double backward.

    Every layer without children is differentiated twice on the inputs that it gets in one forward.

    Args:
        module: The module.
        forward: Runs it on one batch.
    """
    seen: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for name, child in module.named_modules():
        if not any(child.children()):

            def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                args, kwargs = map_tensors(_copy, args), map_tensors(_copy, kwargs)
                seen.setdefault(name, (layer, args, kwargs))

            handles.append(child.register_forward_pre_hook(note, with_kwargs=True))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, call in seen.items() if not _twice_differentiable(*call)]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _twice_differentiable(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    sources: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        sources.append(tensor.detach().requires_grad_())
        return sources[-1]

    own = {name: leaf(p) for name, p in layer.named_parameters()}
    arguments, keywords = map_tensors(leaf, args), map_tensors(leaf, kwargs)
    try:
        with torch.enable_grad():
            result = torch.func.functional_call(layer, own, arguments, keywords)
            outputs = [tensor for tensor in tensors_of(result) if tensor.requires_grad]
            first = grad([sum((t.square().sum() for t in outputs), torch.zeros(()))], sources, create_graph=True)
            grad([g.square().sum() for g in first if g is not None], sources)
    except RuntimeError as error:
        return not _is_refusal(error)
    return True
