"""What the per-sample gradients are pulled back from: the three kinds of Fisher information.

The model is ``p(y | f)`` proportional to ``exp(-loss(f, y))`` for outputs f. Each kind is a set of R cotangents c_r
in the outputs of a sample, and the matrix is ``F = (1/N) sum_i sum_r (J_i^T c_ir)(J_i^T c_ir)^T``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Loss, checked_scalar

Kind = Literal["empirical", "sampled", "exact"]
KINDS: tuple[Kind, ...] = ("empirical", "sampled", "exact")


def checked_kind(kind: str) -> Kind:
    """Return ``kind`` when it is known.

    Raises:
        ConfigurationError: For any other word.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise ConfigurationError(f"kind={kind!r} is no Fisher information; choose one of {', '.join(KINDS)}.")


def cotangents(kind: Kind, loss_fn: Loss, outputs: Tensor, targets: Any, rng: torch.Generator) -> Tensor:
    """Cotangents of a batch, shape (R, N, ...): the outputs' shape behind the number of cotangents.

    * "empirical": R = 1, the gradient of each sample's loss at its own target.
    * "sampled": R = 1, the same at a target drawn from the model (Kunstner, Hennig and Balles 2019), times the square
      root of the number of terms the loss of one sample is a mean of, so that its expectation is the exact kind.
    * "exact": R = C, the columns of a factor S_i with ``S_i S_i^T`` the Hessian of the loss in the outputs, so that
      F is the Gauss-Newton matrix; directions of negative curvature (non-convex losses) are dropped.

    Args:
        kind: Which.
        loss_fn: Mean-reduced loss of outputs and targets.
        outputs: (N, ...), detached.
        targets: Targets of the batch.
        rng: Draws the sampled targets.
    """
    if not bool(torch.isfinite(outputs).all()):
        # Nothing can be drawn or factorised; NaN travels on and ends as Status.NON_FINITE.
        width = outputs.shape[1:].numel() if kind == "exact" else 1
        return torch.full_like(outputs, torch.nan).expand(width, *outputs.shape)
    if kind == "exact":
        return _hessian_factors(loss_fn, outputs, targets)
    terms = 1
    if kind == "sampled":
        targets, terms = _drawn_targets(loss_fn, outputs, rng)
    gradient, _ = _loss_gradient(loss_fn, outputs, targets, create_graph=False)
    return gradient.unsqueeze(0) * math.sqrt(terms)


def _loss_gradient(loss_fn: Loss, outputs: Tensor, targets: Any, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Gradient of every sample's own loss in its outputs: N times that of the batch's mean; and the leaf."""
    leaf = outputs.detach().requires_grad_()
    loss = checked_scalar(loss_fn(leaf, targets)) * len(outputs)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
    return gradient, leaf


def _hessian_factors(loss_fn: Loss, outputs: Tensor, targets: Any) -> Tensor:
    gradient, leaf = _loss_gradient(loss_fn, outputs, targets, create_graph=True)
    shape = outputs.shape
    width = shape[1:].numel()
    if not gradient.requires_grad:
        return torch.zeros(width, *shape, dtype=outputs.dtype, device=outputs.device)
    columns = []
    for index in range(width):
        unit = torch.zeros(shape[0], width, dtype=outputs.dtype, device=outputs.device)
        unit[:, index] = 1
        (column,) = torch.autograd.grad(gradient, leaf, unit.view(shape), retain_graph=True)
        columns.append(column.reshape(shape[0], width))
    hessians = torch.stack(columns, dim=2).to(torch.float64)
    if not bool(torch.isfinite(hessians).all()):
        return torch.full_like(outputs, torch.nan).expand(width, *shape)
    values, vectors = torch.linalg.eigh((hessians + hessians.transpose(1, 2)) / 2)
    factors = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    stacked: Tensor = factors.permute(2, 0, 1).reshape(width, *shape)
    return stacked.to(outputs.dtype)


def _drawn_targets(loss_fn: Loss, outputs: Tensor, rng: torch.Generator) -> tuple[Tensor, int]:
    """One target for each sample from the model that the loss stands for, and the terms of a sample's mean loss.

    A mean of T independent terms has the curvature of one term over T, but a squared gradient of one over T^2.
    """
    host = outputs.detach().to("cpu", torch.float64)
    if loss_fn is nn.functional.cross_entropy or isinstance(loss_fn, nn.CrossEntropyLoss):
        classes = host.movedim(1, -1).softmax(-1)
        draws: Tensor = torch.multinomial(classes.reshape(-1, classes.shape[-1]), 1, generator=rng)
        drawn: Tensor = draws.reshape(classes.shape[:-1])
        return drawn.to(outputs.device), host.shape[2:].numel()
    if loss_fn is nn.functional.binary_cross_entropy_with_logits or isinstance(loss_fn, nn.BCEWithLogitsLoss):
        flips: Tensor = torch.bernoulli(host.sigmoid(), generator=rng)
        return flips.to(outputs.device, outputs.dtype), host.shape[1:].numel()
    if loss_fn is nn.functional.mse_loss or isinstance(loss_fn, nn.MSELoss):
        # exp(-(f - y)^2) is a Gaussian of variance 1/2.
        noise = torch.randn(host.shape, generator=rng, dtype=torch.float64) / 2**0.5
        return (host + noise).to(outputs.device, outputs.dtype), host.shape[1:].numel()
    raise ConfigurationError(
        f"kind='sampled' draws targets from the model, but the model behind {loss_fn!r} is unknown; use cross-entropy, "
        "binary cross-entropy with logits or mean squared error, or kind='empirical' or 'exact'."
    )
