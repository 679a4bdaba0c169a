"""Replace a module's parameters and buffers by other tensors while a function runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.precision import HALF

Result = TypeVar("Result")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what Fabric, data parallelism and :func:`torch.compile` put around it.

    Its parameters are the same. A measurement takes care of precision and devices itself, runs compiled modules
    eagerly, and keeps gradients away from reducers.
    """
    while True:
        children = dict(module.named_children())
        if type(module).__name__ == "_FabricModule":
            inner = getattr(module, "module", None)
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = children.get("module")
        else:
            inner = children.get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def places(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Every place of a parameter or buffer in every submodule, by one name, with the tensor in it, and which it is.

    A submodule that is registered under two names comes once: a tensor put into it by one name is there by the other.
    A tensor that is in two places comes twice, first by its name in ``named_parameters()``.
    """
    for prefix, child in module.named_modules():
        for table, is_parameter in ((child._parameters, True), (child._buffers, False)):
            for name, tensor in table.items():
                if tensor is not None:
                    yield (f"{prefix}.{name}" if prefix else name), tensor, is_parameter


def run_with(module: nn.Module, table: Mapping[str, Tensor], function: Callable[[], Result]) -> Result:
    """Run a function with these tensors in place of those of the module, which is restored afterwards.

    Args:
        module: The module.
        table: A tensor for each of the :func:`places`.
        function: May call the module, or read its parameters.
    """
    inside = {f"inner.{name}": tensor for name, tensor in table.items()}
    # Places are named once, so nothing is left to tie; what torch ties is not put back where a module has two names.
    result: Result = functional_call(_Inside(module), inside, (function,), tie_weights=False)
    return result


@contextmanager
def casts_explained(module: nn.Module) -> Iterator[None]:
    """Say what to do where a forward casts to a half precision itself: wider tensors stand in for such weights.

    Raises:
        UnsupportedError: In the place of the error of torch.
    """
    try:
        yield
    except RuntimeError as error:
        half = next((held.dtype for _, held, _ in places(module) if held.dtype in HALF), None)
        if half is None or not re.search("dtype|same type|scalar type", str(error)):
            raise
        raise UnsupportedError(
            f"Weights in {half} are widened for measuring, but forward casts to a fixed type ({error}); cast to the "
            "type of the weights there: x.to(self.layer.weight.dtype)."
        ) from error


class _Inside(nn.Module):
    """Holds a module while a function runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The fused function of torch takes the norms for constants in its second derivative (seen in 2.13 on a CPU)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


REWRITTEN: dict[Any, Callable[..., Any]] = {torch._weight_norm: _weight_norm}
"""Functions of torch whose second derivative is wrong, with the same function made of others."""


class StandingIn(TorchFunctionMode):
    """Inside, functions of torch that are given one of some tensors take what stands in for it.

    For losses that keep parameters themselves, outside of any module: in a list, or in a closure. A function whose
    second derivative is wrong is put together from others.

    Args:
        instead: What stands in, by the identity of the tensor.
    """

    def __init__(self, instead: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function on what stands in."""
        del types
        func = REWRITTEN.get(func, func)
        args = tuple(map(self._put, args))
        return func(*args, **{name: self._put(value) for name, value in kwargs.items()}) if kwargs else func(*args)

    def _put(self, value: Any) -> Any:
        kind = type(value)
        if kind is list or kind is tuple:
            return kind(map(self._put, value))
        if kind is dict:
            return {name: self._put(part) for name, part in value.items()}
        return self._instead.get(id(value), value)  # what it holds is alive, so no other object has its identity
