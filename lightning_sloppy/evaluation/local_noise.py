"""Gaussian weights in a forward, with separate noise for every sample if a layer allows it.

One draw of the weights for a batch makes all its samples err together, so a gradient of an expected loss takes many
batches to be seen. A linear layer of Gaussian weights has Gaussian outputs, and those can be drawn for each sample
apart (Kingma, Salimans and Welling, NeurIPS 2015, equation 6). Convolutions are treated alike, position by position:
there the noise of neighbours is no longer shared as it would be by one draw of the weights, so this is for learning
alone, never for judging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RandomWeight:
    """``origin + left (mean + sqrt(variance) z) right^T``, z standard normal: independent entries in a basis.

    Attributes:
        mean: Shape of the weight; of a turned one, rows by all other dimensions.
        variance: The same shape.
        origin: What is added; None for nothing.
        left: Orthonormal, (rows, rows); None for a weight that is not turned.
        right: Orthonormal, (columns, columns); None for a bias.
    """

    mean: Tensor
    variance: Tensor
    origin: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None


class LocalNoise(TorchFunctionMode):
    """While it is active, tensors in a forward's arguments stand for random weights.

    Where a linear layer or a convolution takes one as its weight, the outputs are drawn; everywhere else a plain draw
    stands in its place, one for the whole forward.

    Args:
        table: Parameters that the forward is run with, by name.
        laws: What each stands for.
        generator: Source of the noise.
    """

    def __init__(
        self, table: Mapping[str, Tensor], laws: Mapping[str, RandomWeight], generator: torch.Generator
    ) -> None:
        super().__init__()
        self._generator = generator
        self._table = table  # alive, so that no other tensor gets one of their identities
        self._laws = {id(table[name]): law for name, law in laws.items()}
        self._draws: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Draw outputs, or put draws in the place of weights."""
        kwargs = kwargs or {}
        if func is _LINEAR or func in _CONVOLUTIONS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            if id(given["weight"]) in self._laws:
                rest = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}

                def layer(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                    outputs: Tensor = func(inputs, weight, bias, *args[3:], **rest)
                    return outputs

                return self._local(layer, self._drawn(given["input"]), given["weight"], given.get("bias"))
        if getattr(func, "__name__", "") == "__get__" and getattr(func, "__self__", None) not in _VIEWS:
            return func(*args, **kwargs)  # a shape, a device
        return func(*(self._drawn(arg) for arg in args), **{name: self._drawn(arg) for name, arg in kwargs.items()})

    def _local(
        self,
        layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        law = self._laws[id(weight)]
        beside = None if bias is None else self._laws.get(id(bias))
        if beside is not None and beside.left is not law.left:
            bias, beside = self._drawn(bias), None
        constant = bias if beside is None else beside.origin
        if law.left is None:
            outputs = self._noisy(layer, inputs, law.mean, law.variance, beside)
        else:
            outputs = self._turned(layer, inputs, law, beside)
        if law.origin is not None:
            return outputs + layer(inputs, law.origin, constant)
        return outputs if constant is None else outputs + constant.reshape(-1, *[1] * (weight.ndim - 2))

    def _noisy(
        self,
        layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        inputs: Tensor,
        mean: Tensor,
        spread: Tensor,
        beside: RandomWeight | None,
    ) -> Tensor:
        centre = layer(inputs, mean, None if beside is None else beside.mean)
        variance = layer(inputs.square(), spread, None if beside is None else beside.variance)
        return centre + (variance + LEAST_VARIANCE).sqrt() * self._noise(centre)

    def _turned(
        self,
        layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        inputs: Tensor,
        law: RandomWeight,
        beside: RandomWeight | None,
    ) -> Tensor:
        """In the basis of the weight its entries are independent, so inputs are turned into it and outputs back."""
        assert law.left is not None
        assert law.right is not None
        assert law.origin is not None
        if law.origin.ndim == 2:
            outputs = self._noisy(F.linear, inputs @ law.right, law.mean, law.variance, beside)
            return outputs @ law.left.T
        # A convolution: its patches in the basis are those of a convolution with the basis.
        patches = layer(inputs, law.right.T.reshape(-1, *law.origin.shape[1:]), None)
        ones = (1,) * (law.origin.ndim - 2)
        mean, variance = law.mean.reshape(*law.mean.shape, *ones), law.variance.reshape(*law.variance.shape, *ones)
        pointwise = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[law.origin.ndim]
        outputs = self._noisy(pointwise, patches, mean, variance, beside)
        turned: Tensor = pointwise(outputs, law.left.reshape(*law.left.shape, *ones))
        return turned

    def _drawn(self, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
            return type(argument)(self._drawn(part) for part in argument)
        law = self._laws.get(id(argument))
        if law is None:
            return argument
        if id(argument) not in self._draws:
            draw = law.mean + (law.variance + LEAST_VARIANCE).sqrt() * self._noise(law.mean)
            if law.left is not None:
                draw = law.left @ draw.reshape(len(law.left), -1)
                draw = draw if law.right is None else draw @ law.right.T
            draw = draw.reshape(argument.shape)
            self._draws[id(argument)] = draw if law.origin is None else law.origin + draw
        return self._draws[id(argument)]

    def _noise(self, like: Tensor) -> Tensor:
        device = self._generator.device
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=device).to(like.device)
