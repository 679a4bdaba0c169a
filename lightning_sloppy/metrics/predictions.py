"""From predictions and targets to mistakes, classes and losses of samples, and the checks on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError


def checked_labels(target: Tensor, num_classes: int) -> Tensor:
    """Class labels, (N,), as integers.

    Raises:
        ConfigurationError: Another shape, numbers that are not whole, or labels out of range.
    """
    labels = target.squeeze(1) if target.ndim == 2 and target.shape[1] == 1 else target
    if labels.ndim != 1 or labels.is_complex():
        raise ConfigurationError(
            f"A classification needs one label for each sample, but the targets have shape {tuple(target.shape)}; pass "
            "labels of shape (N,)."
        )
    if labels.is_floating_point():
        if not bool((labels == labels.round()).all()):
            raise ConfigurationError(
                "Class labels must be whole numbers, but the targets hold others; for a regression leave out "
                "num_classes."
            )
        labels = labels.round()
    labels = labels.long()
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ConfigurationError(
            f"Labels from 0 to {num_classes - 1} were announced by num_classes={num_classes}, but the targets hold "
            f"{int(labels.min())} to {int(labels.max())}; count the classes from 0, or pass a larger num_classes."
        )
    return labels


def mistakes_of(preds: Tensor, labels: Tensor, num_classes: int, threshold: float | None) -> Tensor:
    """Which samples are wrong, (N,) booleans. A prediction that is not finite is a mistake.

    Args:
        preds: Labels (N,), integers; scores (N, C) of any kind, of which the largest counts; or one probability or
            logit for each sample.
        labels: The true labels, (N,).
        num_classes: C.
        threshold: From where one number for each sample means class 1: 0.5 for probabilities, 0 for logits.

    Raises:
        ConfigurationError: Predictions of another form, or one number for each sample without a threshold.
    """
    if preds.is_complex() or preds.shape[:1] != labels.shape[:1]:
        raise ConfigurationError(
            f"Predictions of shape {tuple(preds.shape)} do not fit {len(labels)} targets; pass one label or one row of "
            "scores for each."
        )
    if not preds.is_floating_point():
        found = preds.squeeze(1) if preds.ndim == 2 and preds.shape[1] == 1 else preds
        if found.ndim != 1:
            raise ConfigurationError(
                f"Predicted labels must have shape (N,), but have {tuple(preds.shape)}; pass one label for each sample."
            )
        return found.long() != labels
    if preds.ndim == 2 and preds.shape[1] >= 2:
        if preds.shape[1] != num_classes:
            raise ConfigurationError(
                f"The predictions hold {preds.shape[1]} scores for each sample, but num_classes={num_classes}; pass "
                "the number of scores as num_classes."
            )
        return (preds.argmax(1) != labels) | ~torch.isfinite(preds).all(1)
    if preds.numel() != len(labels):
        raise ConfigurationError(
            f"Predictions of shape {tuple(preds.shape)} are neither labels (N,) nor scores (N, C) for {len(labels)} "
            "samples; pass one of them."
        )
    return _beyond(preds.reshape(-1), labels, num_classes, threshold)


def _beyond(preds: Tensor, labels: Tensor, num_classes: int, threshold: float | None) -> Tensor:
    if num_classes != 2:
        raise ConfigurationError(
            f"One number for each sample decides between two classes, but num_classes={num_classes}; pass scores "
            "(N, C), or predicted labels as integers."
        )
    if threshold is None:
        raise ConfigurationError(
            "One number for each sample may be a probability or a logit; pass threshold=0.5 for probabilities, or "
            "threshold=0.0 for logits."
        )
    finite = preds[torch.isfinite(preds)]
    if 0 < threshold < 1 and len(finite) and not (float(finite.min()) >= 0 and float(finite.max()) <= 1):
        raise ConfigurationError(
            f"threshold={threshold:g} is for probabilities, but the predictions reach from {float(finite.min()):.3g} "
            f"to {float(finite.max()):.3g}; for logits pass threshold=0.0."
        )
    return ((preds > threshold).long() != labels) | ~torch.isfinite(preds)


def differences(preds: Tensor, target: Tensor) -> Tensor:
    """Predictions minus targets, (N, t), float64.

    Raises:
        ConfigurationError: For other shapes or types.
    """
    if preds.is_complex() or target.is_complex() or not preds.is_floating_point():
        raise ConfigurationError(
            f"A regression needs real predictions, but these are {preds.dtype} with targets {target.dtype}; for a "
            "classification pass num_classes."
        )
    if preds.shape[:1] != target.shape[:1] or preds.numel() != target.numel():
        raise ConfigurationError(
            f"Predictions of shape {tuple(preds.shape)} do not fit targets of shape {tuple(target.shape)}; give them "
            "the same shape."
        )
    count = len(preds)
    found = preds.double().reshape(count, -1) if count else preds.double().flatten(1)
    return found - target.double().reshape(found.shape)


def checked_losses(losses: Tensor, count: int) -> Tensor:
    """One loss for each sample, (N,), float64.

    Raises:
        ConfigurationError: For another shape.
    """
    if losses.numel() != count or losses.ndim == 0 or not losses.is_floating_point():
        raise ConfigurationError(
            f"losses= must hold one number for each of the {count} samples, but has shape {tuple(losses.shape)}; pass "
            "the loss with reduction='none'."
        )
    return losses.detach().double().reshape(count)
