"""The relative entropy and its inverses for numbers and for tensors, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.bounds import relative_entropy as scalars

SATURATED = 1e-12
"""Distance from 1 within which an upper limit has no slope: it is vacuous, and its digits are gone."""


@overload
def kl(q: float, p: float) -> float: ...
@overload
def kl(q: Tensor, p: float | Tensor) -> Tensor: ...
@overload
def kl(q: float, p: Tensor) -> Tensor: ...
def kl(q: float | Tensor, p: float | Tensor) -> float | Tensor:
    """Relative entropy ``kl(q || p) = q ln(q/p) + (1-q) ln((1-q)/(1-p))`` of two coins, in nats.

    Args:
        q: Probability of the first coin, or a tensor of them.
        p: Of the second; the two broadcast.

    Returns:
        A number for numbers, else a float64 tensor on the CPU through which gradients flow. Infinite where p excludes
        what q allows. Tensors are worked through one element after another, 10 microseconds each.

    Raises:
        ConfigurationError: For a q or p that is no probability.

    >>> round(kl(0.0, 0.5), 6)  # ln 2
    0.693147
    """
    if isinstance(q, Tensor) or isinstance(p, Tensor):
        return _apply(_RelativeEntropy, q, p)
    return scalars.binary_kl(q, p)


@overload
def kl_inverse(q: float, c: float) -> float: ...
@overload
def kl_inverse(q: Tensor, c: float | Tensor) -> Tensor: ...
@overload
def kl_inverse(q: float, c: Tensor) -> Tensor: ...
def kl_inverse(q: float | Tensor, c: float | Tensor) -> float | Tensor:
    """Largest p in [q, 1] with ``kl(q || p) <= c``: the upper limit that a budget of c nats allows; never below it.

    With the implicit gradients ``dp/dc = p(1-p)/(p-q)`` and ``dp/dq = (logit p - logit q) dp/dc``, so a bound can be
    minimised directly. They are 0 within 1e-12 of 1, where the limit says nothing; at q = 0 the second is infinite, and
    at c = 0 the first, unless q is 0: keep q above 1/(2n) and c above 1e-12 when you optimise.

    Args:
        q: Observed rate, in [0, 1], or a tensor of them.
        c: Budget in nats for each sample; the two broadcast. Infinite or NaN gives 1, a negative one counts as 0.

    Returns:
        A number for numbers, else a float64 tensor on the CPU. Tensors are worked through one element after another,
        20 microseconds each.

    Raises:
        ConfigurationError: For a q that is no probability.

    >>> round(kl_inverse(0.1, 0.5), 12)
    0.574817291013
    >>> kl_inverse(torch.tensor([0.0, 1.0]), 0.1)
    tensor([0.0952, 1.0000], dtype=torch.float64)
    """
    if isinstance(q, Tensor) or isinstance(c, Tensor):
        return _apply(_Limit, q, c, 1)
    return scalars.scalar_kl_inverse(q, c)


@overload
def kl_inverse_lower(q: float, c: float) -> float: ...
@overload
def kl_inverse_lower(q: Tensor, c: float | Tensor) -> Tensor: ...
@overload
def kl_inverse_lower(q: float, c: Tensor) -> Tensor: ...
def kl_inverse_lower(q: float | Tensor, c: float | Tensor) -> float | Tensor:
    """Smallest p in [0, q] with ``kl(q || p) <= c``, by the symmetry ``1 - kl_inverse(1 - q, c)``; never above it.

    Args:
        q: Observed rate, in [0, 1], or a tensor of them.
        c: Budget in nats for each sample.

    Returns:
        As :func:`kl_inverse`; absolute accuracy 1e-15.

    Raises:
        ConfigurationError: For a q that is no probability.

    >>> round(kl_inverse_lower(0.5, 0.5), 12)
    0.10246995119
    """
    if isinstance(q, Tensor) or isinstance(c, Tensor):
        return _apply(_Limit, q, c, -1)
    return scalars.scalar_kl_inverse_lower(q, c)


def _apply(function: Any, first: float | Tensor, second: float | Tensor, *more: int) -> Tensor:
    one, other = _double(first), _double(second)
    result: Tensor = function.apply(one + torch.zeros_like(other), other + torch.zeros_like(one), *more)
    return result


def _double(value: float | Tensor) -> Tensor:
    return value.to("cpu", torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _each(function: Callable[[float, float], float], first: Tensor, second: Tensor) -> Tensor:
    found = np.frompyfunc(function, 2, 1)(first.detach().numpy(), second.detach().numpy())
    return torch.as_tensor(np.asarray(found, dtype=np.float64)).reshape(first.shape)


class _RelativeEntropy(torch.autograd.Function):
    """``kl(q || p)`` and its two slopes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(q, p)
        return _each(scalars.binary_kl, q, p)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        q, p = ctx.saved_tensors
        return upstream * (torch.logit(q) - torch.logit(p)), upstream * (p - q) / (p * (1 - p))


class _Limit(torch.autograd.Function):
    """``kl_inverse`` (sign 1) or ``kl_inverse_lower`` (sign -1), and its two slopes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, c: Tensor, sign: int) -> Tensor:
        limit = _each(scalars.scalar_kl_inverse if sign > 0 else scalars.scalar_kl_inverse_lower, q, c)
        ctx.save_for_backward(q, c, limit)
        ctx.sign = sign
        return limit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        q, c, p = ctx.saved_tensors
        live = p < 1 - SATURATED if ctx.sign > 0 else p > SATURATED
        return *_slopes(q, c, p, upstream, sign=ctx.sign, live=live), None


def _slopes(q: Tensor, c: Tensor, p: Tensor, upstream: Tensor, *, sign: int, live: Tensor) -> tuple[Tensor, Tensor]:
    """In the rate and in the budget, by the implicit function theorem; none where the limit says nothing."""
    # Without a budget p may miss q by a rounding; where q is 0 or 1 the quotient has a limit of its own.
    by_budget = sign * p * (1 - p) / torch.where(c == 0, torch.zeros_like(q), (p - q).abs())
    by_budget = torch.where(q == 0, 1 - p, torch.where(q == 1, -p, by_budget))
    by_rate = by_budget * (torch.logit(p) - torch.logit(q))
    nothing = torch.zeros_like(q)
    # Without a budget the limit is the rate itself, and a negative budget counts as none.
    by_rate = torch.where(c > 0, by_rate, nothing + 1)
    by_budget = torch.where(c < 0, nothing, by_budget)
    return torch.where(live, by_rate, nothing) * upstream, torch.where(live, by_budget, nothing) * upstream
