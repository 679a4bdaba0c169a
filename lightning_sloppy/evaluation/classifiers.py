"""Rules from outputs to labels and mistakes, derived from the loss or given by the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.weights import known_loss

Predict = Callable[..., Tensor]
"""``predict(outputs) -> (N,)`` labels, or ``predict(outputs, targets) -> (N,)`` booleans, True for a mistake."""

_LOOKS = 24
_SAME = 1e-3
_CLASS_LOSSES = (functional.multi_margin_loss, nn.MultiMarginLoss)
_PROBABILITY_LOSSES = (functional.binary_cross_entropy, nn.BCELoss)


@dataclass(frozen=True)
class Classifier:
    """A rule that turns the outputs of a network into labels.

    Attributes:
        words: The rule in words.
        mistakes: Function from outputs and targets to booleans (N,), True for a mistake.
        labels: Function from outputs to labels (N,); None if the user gave only the mistakes.
    """

    words: str
    mistakes: Callable[[Any, Any], Tensor]
    labels: Callable[[Any], Tensor] | None


def classifier_of(loss_fn: Any, outputs: Any, targets: Any, predict: Predict | None = None) -> Classifier | None:
    """Derive the classifier from the loss, or return None if the loss does not determine one.

    A certificate bounds the error of a rule from outputs to labels, which must be the rule of the model. Outputs (N, C)
    with targets (N,) of class indices are class scores if the loss treats them so. This holds for cross-entropy,
    likelihood and margin losses of torch, and for functions that are symmetric in the classes: the loss decreases when
    the larger of two scores is moved to the target, and at equal scores its preference between classes does not depend
    on the value of the scores. It does not hold for an embedding that the loss itself turns into classes. One output
    per sample with targets 0 and 1 and binary cross-entropy is a classifier by the sign of the logit. A loss with
    parameters needs ``predict``.

    Args:
        loss_fn: Mean-reduced loss of (outputs, targets); None if it is not known.
        outputs: Outputs of one batch.
        targets: Targets of the same batch.
        predict: The rule of the user, or None.

    Raises:
        ConfigurationError: If ``predict`` does not return one label or boolean per sample.
    """
    if predict is not None:
        return _given(predict, outputs, targets)
    if loss_fn is None or not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if not outputs.is_floating_point() or outputs.ndim == 0 or len(outputs) == 0:
        return None
    scores = outputs.ndim == 2 and outputs.shape[1] >= 2 and targets.shape == outputs.shape[:1]
    if scores and not targets.is_floating_point() and not targets.is_complex():
        return SCORES if _means_scores(loss_fn, outputs) else None
    one = outputs.numel() == len(outputs) == targets.numel() and bool(((targets == 0) | (targets == 1)).all())
    if not one:
        return None
    if _plain(loss_fn) in _PROBABILITY_LOSSES:
        return PROBABILITY
    return LOGIT if _means_logit(loss_fn, outputs, targets) else None


def _plain(loss_fn: Any) -> Any:
    """The function or class by which a loss of torch is recognised."""
    if isinstance(loss_fn, partial):
        return loss_fn.func
    return type(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn


def _learns(loss_fn: Any) -> bool:
    return isinstance(loss_fn, nn.Module) and any(True for _ in loss_fn.parameters())


@torch.no_grad()
def _means_scores(loss_fn: Any, outputs: Tensor) -> bool:
    known = known_loss(loss_fn)
    if known is not None or _plain(loss_fn) in _CLASS_LOSSES:
        return known is None or known.likelihood == "categorical"
    if _learns(loss_fn):
        return False
    classes = outputs.shape[1]
    rng = torch.Generator().manual_seed(0)

    def loss(scores: Tensor, target: int) -> float:
        value = loss_fn(scores.to(outputs)[None], torch.tensor([target], device=outputs.device))
        return float(value)

    try:
        strict = 0
        for look in range(_LOOKS):
            scores = torch.randn(classes, generator=rng) * (0.5, 2.0, 5.0)[look % 3]
            target = int(torch.randint(classes, (), generator=rng))
            other = (target + 1 + int(torch.randint(classes - 1, (), generator=rng))) % classes
            swapped = scores.clone()
            swapped[[target, other]] = scores[[other, target]]
            before, after = loss(scores, target), loss(swapped, target)
            difference = (after - before) * float((scores[target] - scores[other]).sign())
            margin = _SAME * 0.01 * max(abs(before), abs(after))
            if not difference >= -margin:
                return False
            strict += difference > margin
        if not strict > _LOOKS // 3:
            return False
        target, other = 0, classes - 1
        heights = [torch.full((classes,), height) for height in (-3.0, -0.7, 0.0, 1.1, 4.0)]
        return _in_proportion([(loss(row, target), loss(row, other)) for row in heights])
    except Exception:  # a loss that cannot be evaluated on single samples determines no classifier
        return False


def _in_proportion(pairs: list[tuple[float, float]]) -> bool:
    """Whether all pairs of losses have the same quotient."""
    first, second = pairs[0]
    return all(abs(first * b - second * a) <= _SAME * max(abs(first * b), abs(second * a), 1e-12) for a, b in pairs)


@torch.no_grad()
def _means_logit(loss_fn: Any, outputs: Tensor, targets: Tensor) -> bool:
    known = known_loss(loss_fn)
    if known is not None:
        return known.likelihood == "bernoulli"
    if _learns(loss_fn):
        return False

    def loss(logit: float, target: int) -> float:
        one = outputs[:1]
        return float(loss_fn(torch.full_like(one, logit), torch.full_like(targets[:1], target)))

    try:
        heights = (0.3, 1.0, 2.5, 6.0)
        # The loss must decrease with the logit for target 1, and be the same for both classes up to a weight.
        wrong = [loss(-height, 1) for height in reversed(heights)] + [loss(height, 1) for height in heights]
        falling = all(a > b for a, b in pairwise(wrong))
        pairs = [(loss(sign * height, 1), loss(-sign * height, 0)) for height in heights for sign in (1, -1)]
        return falling and _in_proportion(pairs)
    except Exception:
        return False


def _largest(outputs: Tensor) -> Tensor:
    return outputs.argmax(1)


def _score_mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
    # A NaN score counts as a mistake, even if argmax returns the target.
    return (outputs.argmax(1) != targets) | ~torch.isfinite(outputs).all(1)


def _above(threshold: float, outputs: Tensor) -> Tensor:
    return (outputs.reshape(len(outputs)) > threshold).long()


def _threshold_mistakes(threshold: float, outputs: Tensor, targets: Tensor) -> Tensor:
    # A target between 0 and 1 is not a label. Any prediction for it counts as a mistake.
    wrong = _above(threshold, outputs) != targets.reshape(len(outputs))
    return wrong | ~torch.isfinite(outputs.reshape(len(outputs)))


SCORES = Classifier("the class of the largest score", _score_mistakes, _largest)
LOGIT = Classifier("the sign of the logit", partial(_threshold_mistakes, 0.0), partial(_above, 0.0))
PROBABILITY = Classifier("a probability above one half", partial(_threshold_mistakes, 0.5), partial(_above, 0.5))


def _given(predict: Predict, outputs: Any, targets: Any) -> Classifier:
    """The rule of the user, tried on a batch."""
    if not callable(predict):
        raise ConfigurationError(
            f"predict= must be a function of the outputs, but {predict!r} was given; return one label per sample."
        )
    whole = _takes_targets(predict)
    if not whole and not isinstance(targets, Tensor):
        raise ConfigurationError(
            "predict= returns labels, but the batch has no tensor of targets to compare them with; let "
            "predict(outputs, targets) return one boolean per sample, True for a mistake."
        )

    def mistakes(outputs: Any, targets: Any) -> Tensor:
        found = predict(outputs, targets) if whole else predict(outputs)
        if not whole:
            found = _labels(found, targets) != targets
        if not isinstance(found, Tensor) or found.ndim != 1 or found.dtype != torch.bool:
            seen = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigurationError(
                f"predict(outputs, targets) must give booleans (N,), True for a mistake, but returned {seen}."
            )
        return found

    mistakes(outputs, targets)
    return Classifier("predict=", mistakes, None if whole else predict)


def _labels(found: Any, targets: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != targets.shape or targets.ndim != 1:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigurationError(
            f"predict(outputs) must give a label for each of the targets {tuple(targets.shape)}, one per sample, but "
            f"returned {seen}; return labels (N,), or take (outputs, targets) and return booleans."
        )
    return found


def _takes_targets(predict: Predict) -> bool:
    try:
        parameters = inspect.signature(predict).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(needed) >= 2
