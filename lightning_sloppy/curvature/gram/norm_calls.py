"""Calls of normalisations with weight and bias: their per-sample gradients are as small as the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from lightning_sloppy.curvature.gram.calls import LayerCall, Use


class NormCall(LayerCall):
    """``y = weight * normalised(x) + bias``, each sample by itself or by fixed statistics.

    Args:
        input: Input.
        weight: Weight, if any.
        bias: Bias, if any.
        normalised: The same without weight and bias.
        features: Trailing dimensions of the weight; None when it is one number for each channel.
    """

    path = "norm"

    def __init__(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        normalised: Callable[[Tensor], Tensor],
        features: int | None = None,
    ) -> None:
        super().__init__(input, weight, bias)
        self._normalised = normalised
        self._features = features

    def of_weight(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """See :class:`LayerCall`."""
        left, values = self._split(gradients, count), self._split([self._normalised(self.input)], count)
        return None if left is None or values is None else (left * values).sum((2, 4))

    def of_bias(self, gradients: Sequence[Tensor], count: int) -> Use | None:
        """See :class:`LayerCall`."""
        left = self._split(gradients, count)
        return None if left is None else left.sum((2, 4))

    def _split(self, tensors: Sequence[Tensor], count: int) -> Tensor | None:
        """(n, R, positions before, p, positions behind)."""
        if self._features is None:
            split = self._images(tensors, count, tensors[0].ndim - 2)
            return None if split is None else split.reshape(*split.shape[:4], -1)
        split = self._copies(tensors, count, self._features)
        return None if split is None else split.flatten(3).unsqueeze(4)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> LayerCall:
    """A call of :func:`torch.nn.functional.layer_norm`."""
    shape = list(normalized_shape)
    return NormCall(input, weight, bias, lambda x: F.layer_norm(x, shape, eps=eps), len(shape))


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> LayerCall:
    """A call of :func:`torch.nn.functional.rms_norm`."""
    shape = list(normalized_shape)
    return NormCall(input, weight, None, lambda x: F.rms_norm(x, shape, eps=eps), len(shape))


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> LayerCall:
    """A call of :func:`torch.nn.functional.group_norm`."""
    return NormCall(input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LayerCall | None:
    """A call of :func:`torch.nn.functional.batch_norm`; None when samples act on one another."""
    del momentum
    if training or running_mean is None:
        return None
    return NormCall(input, weight, bias, lambda x: F.batch_norm(x, running_mean, running_var, eps=eps))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LayerCall:
    """A call of :func:`torch.nn.functional.instance_norm`."""
    del momentum
    mean, variance = (None, None) if use_input_stats else (running_mean, running_var)
    return NormCall(
        input, weight, bias, lambda x: F.instance_norm(x, mean, variance, use_input_stats=use_input_stats, eps=eps)
    )
