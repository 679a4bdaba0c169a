"""Weights of the terms of a loss, with which means over batches are combined into the mean over the whole probe.

A mean-reduced loss of a batch is ``sum_t w_t l_t / sum_t w_t``. For most losses every sample has weight 1.
Cross-entropy ignores targets equal to ``ignore_index`` and can weight classes, so its denominator is the sum of those
weights over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import AnyBatch, rows_in
from lightning_sloppy.evaluation.inner_loss import LossOfLogits, OneNumber
from lightning_sloppy.evaluation.target_weights import TargetWeights

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
"""The model of the targets that a loss is the negative logarithm of: cross-entropy, BCE with logits, squared error."""

Reduction = Literal["mean", "sum"]
"""How a loss combines its samples."""

SampleWeights = Callable[[Any], Tensor]
"""``sample_weights(targets) -> (n,)``: the weight of each sample of a batch in the mean of the loss."""


@dataclass(frozen=True)
class KnownLoss:
    """A loss of torch, recognised.

    Attributes:
        likelihood: The model that its targets are drawn from.
        token_mean: Whether the mean is over the valid targets, by their class weights, instead of over samples.
        ignore_index: Class that counts for nothing.
        class_weights: Weight of each class, or None.
        term_weights: Weight of each element (``weight=`` of BCE), or None.
        positive_weight: ``pos_weight=`` of BCE, or None.
        label_smoothing: Share of every target that is spread over all classes.
        reduction: Whether the terms are averaged or added up.
    """

    likelihood: Likelihood
    token_mean: bool = False
    ignore_index: int = -100
    class_weights: Tensor | None = None
    term_weights: Tensor | None = None
    positive_weight: Tensor | None = None
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"


OPTIONS = ("ignore_index", "weight", "pos_weight", "label_smoothing", "reduction")
"""Attributes of the losses of torch that change what their mean is over."""


def known_loss(loss_fn: Any) -> KnownLoss | None:
    """Recognise cross-entropy, log-likelihood, BCE with logits and squared error: functions, modules, partials.

    >>> known_loss(nn.CrossEntropyLoss(ignore_index=0)).ignore_index
    0
    """
    options: dict[str, Any] = {}
    if isinstance(loss_fn, (LossOfLogits, OneNumber)):
        loss_fn = loss_fn.loss_fn
    if isinstance(loss_fn, partial):
        options, loss_fn = dict(loss_fn.keywords), loss_fn.func if not loss_fn.args else None
    elif isinstance(loss_fn, nn.Module):
        options = {name: getattr(loss_fn, name, None) for name in OPTIONS}
    reduction: Reduction = "sum" if options.get("reduction") == "sum" else "mean"
    if loss_fn in (functional.cross_entropy, functional.nll_loss) or type(loss_fn) in (nn.CrossEntropyLoss, nn.NLLLoss):
        ignored = options.get("ignore_index")
        return KnownLoss(
            "categorical",
            token_mean=reduction == "mean",
            ignore_index=-100 if ignored is None else int(ignored),
            class_weights=options.get("weight"),
            label_smoothing=options.get("label_smoothing") or 0.0,
            reduction=reduction,
        )
    if loss_fn is functional.binary_cross_entropy_with_logits or type(loss_fn) is nn.BCEWithLogitsLoss:
        return KnownLoss(
            "bernoulli",
            term_weights=options.get("weight"),
            positive_weight=options.get("pos_weight"),
            reduction=reduction,
        )
    if loss_fn is functional.mse_loss or type(loss_fn) is nn.MSELoss:
        return KnownLoss("gaussian", term_weights=options.get("weight"), reduction=reduction)
    return None


def term_weights(known: KnownLoss, outputs: Tensor, targets: Any) -> Tensor:
    """Weight of each term of a batch, so that weights times terms add up to the batch's weight times its mean.

    Args:
        known: The loss.
        outputs: (n, C, ...) class scores, or elements of the targets' shape.
        targets: Targets of the batch.

    Returns:
        (n, ...) without the class dimension for cross-entropy, else the outputs' shape.
    """
    if known.likelihood == "categorical":
        return _class_term_weights(known, outputs, targets)
    # A mean over the elements of a sample: each has its fraction of the sample's weight.
    weights = _ones(outputs) / (max(outputs.shape[1:].numel(), 1) if known.reduction == "mean" else 1)
    if known.term_weights is not None:
        weights = weights * known.term_weights.to(outputs)
    if known.positive_weight is not None:
        weights = weights * (1 + (known.positive_weight.to(outputs) - 1) * targets)
    return weights


def sample_weights(loss_fn: Any, batch: AnyBatch, override: SampleWeights | TargetWeights | None = None) -> Tensor:
    """Weight of each sample of a batch in the mean over the whole probe, (n,), float64 on the CPU.

    Raises:
        ConfigurationError: When ``sample_weights=`` gives another shape, negative or non-finite numbers.
    """
    rows = rows_in(batch)
    count = rows.count
    if override is None and isinstance(loss_fn, LossOfLogits):
        override = loss_fn.weights
    if isinstance(override, TargetWeights):
        return override.of(batch)
    if override is not None:
        weights = torch.as_tensor(override(batch[1])).detach().to("cpu", torch.float64)
        if weights.shape != (count,) or not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
            raise ConfigurationError(
                f"sample_weights= must return one non-negative weight for each of the {count} samples of a batch, but "
                f"returned shape {tuple(weights.shape)}; return for instance the number of valid targets per sample."
            )
        return weights
    known = known_loss(loss_fn)
    axis = rows.targets[0] if rows.targets else None
    if known is not None and known.token_mean and _is_classes(batch[1]):
        tokens = _token_weights(known, batch[1]).to("cpu", torch.float64)
        if axis is None:  # whose they are is not known, but the batch weighs what they weigh together
            return (tokens.sum() / max(count, 1)).expand(count)
        return tokens.movedim(axis, 0).reshape(count, -1).sum(1)
    return torch.ones(count, dtype=torch.float64)


def _is_classes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.ndim > 0 and not targets.is_floating_point()


def _token_weights(known: KnownLoss, targets: Tensor) -> Tensor:
    valid = targets != known.ignore_index
    if known.class_weights is None:
        return valid.to(torch.float64 if targets.device.type == "cpu" else torch.float32)
    weights = known.class_weights.detach().to(targets.device)
    chosen: Tensor = weights[targets.where(valid, torch.zeros_like(targets))]
    return chosen * valid


def _class_term_weights(known: KnownLoss, outputs: Tensor, targets: Any) -> Tensor:
    if not _is_classes(targets):
        # Targets that are probabilities: the mean is over samples and positions, the class weights are in the terms.
        fraction = _ones(outputs.movedim(1, -1)[..., 0])
        if known.reduction == "mean":
            fraction = fraction / max(outputs.shape[2:].numel(), 1)
        if known.class_weights is None or not isinstance(targets, Tensor):
            return fraction
        return fraction * (targets.movedim(1, -1) * known.class_weights.to(targets)).sum(-1)
    weights = _token_weights(known, targets)
    if known.class_weights is None:
        return weights
    spread = known.class_weights.to(weights).mean() * (targets != known.ignore_index)
    mixed: Tensor = (1 - known.label_smoothing) * weights + known.label_smoothing * spread
    return mixed


def _ones(outputs: Tensor) -> Tensor:
    return torch.ones_like(outputs.detach())
