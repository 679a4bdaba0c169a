"""Losses of logits and labels among outputs and batch, as a forward computes them that gives its loss itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_sloppy.evaluation.loss_checks import agree
from lightning_sloppy.evaluation.nests import leaves_of, tensors_of
from lightning_sloppy.evaluation.target_weights import TargetWeights

IGNORED = -100
"""Label that counts for nothing, by the convention of torch and of Hugging Face."""

NAMES: dict[Any, str] = {
    functional.cross_entropy: "cross-entropy",
    functional.mse_loss: "mean squared error",
    functional.binary_cross_entropy_with_logits: "binary cross-entropy",
}
"""Names of the usual losses, in words."""


@dataclass(frozen=True)
class LossOfLogits:
    """A loss of one tensor of the outputs and one of the targets.

    Attributes:
        loss_fn: Of logits and labels.
        logits: Place of the logits among the tensors of the outputs.
        labels: Place of the labels among the leaves of the targets.
        tokens: Whether there is a label for each position: logits (N, T, C), labels (N, T).
        shifted: Whether each position predicts the label of the next one.
    """

    loss_fn: Callable[[Any, Any], Tensor]
    logits: int
    labels: int
    tokens: bool = False
    shifted: bool = False

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of a batch."""
        return self.loss_fn(*self.arranged(tensors_of(outputs)[self.logits], leaves_of(targets)[self.labels]))

    def arranged(self, logits: Tensor, labels: Any) -> tuple[Tensor, Any]:
        """Logits and labels as ``loss_fn`` takes them, the classes in the second dimension."""
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return (logits.movedim(-1, 1) if self.tokens else logits), labels

    @property
    def weights(self) -> TargetWeights | None:
        """Weights of the mean; None if all samples have equal weight."""
        if self.loss_fn is not functional.cross_entropy:
            return None
        return TargetWeights(self.labels, IGNORED, int(self.shifted))


@dataclass(frozen=True)
class OneNumber:
    """A loss whose outputs are given the shape of the targets, and whose targets their type.

    Attributes:
        loss_fn: Of both.
    """

    loss_fn: Any

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        value: Tensor = self.loss_fn(*self.arranged(outputs, targets))
        return value

    def arranged(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both as ``loss_fn`` takes them."""
        return outputs.reshape(targets.shape), targets.to(outputs)


def losses_of_logits(outputs: Any, targets: Any) -> Iterator[LossOfLogits]:
    """The usual losses of any of the outputs with any of the targets, by their shapes."""
    for place, logits in enumerate(tensors_of(outputs)):
        for leaf, labels in enumerate(leaves_of(targets)):
            if not isinstance(labels, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
                continue
            if _are_classes(labels, logits.shape[1]) and labels.shape == logits.shape[:1] + logits.shape[2:]:
                yield LossOfLogits(functional.cross_entropy, place, leaf)
            if logits.ndim == 3 and _are_classes(labels, logits.shape[2]) and labels.shape == logits.shape[:2]:
                yield LossOfLogits(functional.cross_entropy, place, leaf, tokens=True)
                if labels.shape[1] > 1:
                    yield LossOfLogits(functional.cross_entropy, place, leaf, tokens=True, shifted=True)
            if labels.is_floating_point() and labels.shape == logits.shape:
                yield LossOfLogits(functional.mse_loss, place, leaf)
                if bool(((labels >= 0) & (labels <= 1)).all()):
                    yield LossOfLogits(functional.binary_cross_entropy_with_logits, place, leaf)


def loss_of_logits(outputs: Any, targets: Any, inputs: Any) -> LossOfLogits | None:
    """The usual loss that equals a number among the outputs, or the only one that shapes and tokens allow; else None.

    Labels at each position count for the next one only if they are the inputs themselves, or if the batch is no pair of
    tensors. Labels that a data set returns beside other inputs have been shifted by it, or mark each position.
    """
    usual = list(losses_of_logits(outputs, targets))
    given = [float(tensor) for tensor in tensors_of(outputs) if tensor.ndim == 0]
    equal = next((each for each in usual if any(agree(value, float(each(outputs, targets))) for value in given)), None)
    if equal is None and isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        same = torch.equal(inputs, targets)
        usual = [each for each in usual if not each.tokens or each.shifted == same]
    return equal or (usual[0] if len(usual) == 1 else None)


def equal_loss(values: Sequence[tuple[Any, float]], targets: Any) -> LossOfLogits | None:
    """A usual loss of logits and labels that gives these values at these outputs; None for none.

    Args:
        values: Outputs at several weights, each with the loss there: at one point other losses may agree by chance,
            behind a head of zeros all do.
        targets: Of the batch.
    """

    def gives_them(same: LossOfLogits) -> bool:
        return all(agree(value, float(same(outputs, targets))) for outputs, value in values)

    return next(filter(gives_them, losses_of_logits(values[0][0], targets)), None)


def _are_classes(labels: Tensor, count: int) -> bool:
    """Whether they are indices of so many classes; tokens of the inputs may be of more."""
    if labels.is_floating_point() or labels.is_complex() or labels.numel() == 0:
        return False
    return bool((((labels >= 0) & (labels < count)) | (labels == IGNORED)).all())
