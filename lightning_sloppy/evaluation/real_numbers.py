"""Complex numbers as pairs of real ones: real and imaginary parts are what is counted and differentiated."""

from __future__ import annotations

import torch
from torch import Tensor


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as (..., 2) real numbers in the same memory; others as they are.

    >>> real_view(torch.tensor([1 + 2j])).tolist()
    [[1.0, 2.0]]
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def real_parts(tensor: Tensor) -> Tensor:
    """The same numbers as a function to differentiate: the derivative of a view wants an even place in memory."""
    return torch.stack([tensor.real, tensor.imag], dim=-1) if tensor.is_complex() else tensor


def shaped_like(numbers: Tensor, like: Tensor) -> Tensor:
    """Real numbers in the shape of a tensor, or (..., 2) of them as complex ones where it is complex."""
    if numbers.shape == like.shape:
        return numbers
    if not like.is_complex():
        return numbers.reshape(like.shape)
    pairs = numbers.reshape(*like.shape, 2)
    # Not view_as_complex: it asks for an even place in memory, which a slice of a flat vector need not have.
    return torch.complex(pairs[..., 0], pairs[..., 1])


def cast_number(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of floating point in another precision, a complex one in that of its parts; others as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def is_number(tensor: Tensor) -> bool:
    """Whether it holds real or complex numbers, which can be differentiated, and not integers or truth values."""
    return tensor.is_floating_point() or tensor.is_complex()
