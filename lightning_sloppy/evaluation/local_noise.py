"""Gaussian weights in a forward, with noise of its own for every sample where a layer allows it.

One draw of the weights for a batch makes all its samples err together, so a gradient of an expected loss takes many
batches to be seen. A linear layer of Gaussian weights has Gaussian outputs, and those can be drawn for each sample
apart (Kingma, Salimans and Welling, NeurIPS 2015, equation 6). Convolutions are treated alike, position by position:
there the noise of neighbours is no longer shared as it would be by one draw of the weights, so this is for learning
alone, never for judging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEAST_VARIANCE = 1e-12
"""Added under the root, which has no derivative at zero."""

_LINEAR = F.linear
_VIEWS = (Tensor.T, Tensor.mT, Tensor.H, Tensor.mH, Tensor.real, Tensor.imag, Tensor.data)
"""Attributes that hold the numbers themselves."""
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class LocalNoise(TorchFunctionMode):
    """While it is active, the means in a forward's arguments are random weights.

    Where a linear layer or a convolution takes one as its weight, the outputs are drawn; everywhere else a plain draw
    stands in its place, one for the whole forward.

    Args:
        means: Parameters that the forward is run with, by name.
        variances: Their variances, of the same shapes.
        generator: Source of the noise.
    """

    def __init__(
        self, means: Mapping[str, Tensor], variances: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        super().__init__()
        self._generator = generator
        self._pairs = {id(mean): (mean, variances[name]) for name, mean in means.items()}
        self._draws: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Draw outputs, or put draws in the place of means."""
        kwargs = kwargs or {}
        if func is _LINEAR or func in _CONVOLUTIONS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            if id(given["weight"]) in self._pairs:
                rest = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
                return self._local(func, given["input"], given["weight"], given.get("bias"), args[3:], rest)
        if getattr(func, "__name__", "") == "__get__" and getattr(func, "__self__", None) not in _VIEWS:
            return func(*args, **kwargs)  # a shape, a device
        return func(*(self._drawn(arg) for arg in args), **{name: self._drawn(arg) for name, arg in kwargs.items()})

    def _local(
        self,
        func: Callable[..., Any],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Tensor:
        spread = self._pairs[id(weight)][1]
        known = None if bias is None else self._pairs.get(id(bias))
        centre = func(inputs, weight, bias, *rest, **named)
        variance = func(inputs.square(), spread, None if known is None else known[1], *rest, **named)
        noise = self._noise(centre)
        outputs: Tensor = centre + (variance + LEAST_VARIANCE).sqrt() * noise
        return outputs

    def _drawn(self, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
            return type(argument)(self._drawn(part) for part in argument)
        if id(argument) not in self._pairs:
            return argument
        if id(argument) not in self._draws:
            mean, variance = self._pairs[id(argument)]
            self._draws[id(argument)] = mean + (variance + LEAST_VARIANCE).sqrt() * self._noise(mean)
        return self._draws[id(argument)]

    def _noise(self, like: Tensor) -> Tensor:
        device = self._generator.device
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=device).to(like.device)
