"""How outputs become labels, and labels mistakes: what the loss says of them, or what the user does."""

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
"""``predict(outputs) -> (N,)`` labels, or ``predict(outputs, targets) -> (N,)`` booleans that are true for mistakes."""

_LOOKS = 24
_SAME = 1e-3
_CLASS_LOSSES = (functional.multi_margin_loss, nn.MultiMarginLoss)
_PROBABILITY_LOSSES = (functional.binary_cross_entropy, nn.BCELoss)


@dataclass(frozen=True)
class Classifier:
    """A classifier made of a network's outputs.

    Attributes:
        words: The rule, for people.
        mistakes: Outputs and targets to booleans (N,), true for a mistake.
        labels: Outputs to labels (N,); None where the user gave the mistakes alone.
    """

    words: str
    mistakes: Callable[[Any, Any], Tensor]
    labels: Callable[[Any], Tensor] | None


def classifier_of(loss_fn: Any, outputs: Any, targets: Any, predict: Predict | None = None) -> Classifier | None:
    """The classifier that the loss says the network is, or None when it says nothing of the kind.

    Certified is the error of a rule from outputs to labels, and it must be the model's own. Class scores are outputs
    (N, C) with targets (N,) of class indices, and a loss that calls them so: cross-entropy, likelihood or margin of
    torch, or a function that treats every class alike: it falls when the larger of two scores is moved to the target,
    and at equal scores it prefers no class more at some heights than at others. Scores of an embedding, which the loss
    itself turns into classes, do not pass. One output for each sample with targets 0 and 1 and binary cross-entropy is
    a classifier by the sign of the logit. A criterion with parameters of its own is asked for ``predict``.

    Args:
        loss_fn: Mean-reduced loss of (outputs, targets); None where it is not known.
        outputs: Of one batch.
        targets: Of the same batch.
        predict: The user's own rule.

    Raises:
        ConfigurationError: For a ``predict`` that gives no label or boolean for each sample.
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
    """The function or class by which a loss of torch is known."""
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
    except Exception:  # a loss that cannot be asked sample by sample says nothing
        return False


def _in_proportion(pairs: list[tuple[float, float]]) -> bool:
    """Whether all pairs of losses have one quotient."""
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
        # A wrong sign costs more the larger it is, a right one less, and it is the same for both classes but for a
        # weight.
        wrong = [loss(-height, 1) for height in reversed(heights)] + [loss(height, 1) for height in heights]
        falling = all(a > b for a, b in pairwise(wrong))
        pairs = [(loss(sign * height, 1), loss(-sign * height, 0)) for height in heights for sign in (1, -1)]
        return falling and _in_proportion(pairs)
    except Exception:
        return False


def _largest(outputs: Tensor) -> Tensor:
    return outputs.argmax(1)


def _score_mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
    # A score that is not a number is a mistake, whatever argmax makes of it.
    return (outputs.argmax(1) != targets) | ~torch.isfinite(outputs).all(1)


def _above(threshold: float, outputs: Tensor) -> Tensor:
    return (outputs.reshape(len(outputs)) > threshold).long()


def _threshold_mistakes(threshold: float, outputs: Tensor, targets: Tensor) -> Tensor:
    # A target between 0 and 1 is no label, and whatever is said of it counts as a mistake.
    wrong = _above(threshold, outputs) != targets.reshape(len(outputs))
    return wrong | ~torch.isfinite(outputs.reshape(len(outputs)))


SCORES = Classifier("the class of the largest score", _score_mistakes, _largest)
LOGIT = Classifier("the sign of the logit", partial(_threshold_mistakes, 0.0), partial(_above, 0.0))
PROBABILITY = Classifier("a probability above one half", partial(_threshold_mistakes, 0.5), partial(_above, 0.5))


def _given(predict: Predict, outputs: Any, targets: Any) -> Classifier:
    """The user's rule, tried on a batch."""
    if not callable(predict):
        raise ConfigurationError(
            f"predict= must be a function of the outputs, but {predict!r} was given; return a label for each sample."
        )
    whole = _takes_targets(predict)
    if not whole and not isinstance(targets, Tensor):
        raise ConfigurationError(
            "predict= gives labels, but the batch has no tensor of targets to compare them with; let predict(outputs, "
            "targets) return a boolean for each sample, true for a mistake."
        )

    def mistakes(outputs: Any, targets: Any) -> Tensor:
        found = predict(outputs, targets) if whole else predict(outputs)
        if not whole:
            found = _labels(found, targets) != targets
        if not isinstance(found, Tensor) or found.ndim != 1 or found.dtype != torch.bool:
            seen = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigurationError(
                f"predict(outputs, targets) must give booleans (N,), true for a mistake, but gave {seen}."
            )
        return found

    mistakes(outputs, targets)
    return Classifier("predict=", mistakes, None if whole else predict)


def _labels(found: Any, targets: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != targets.shape or targets.ndim != 1:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigurationError(
            f"predict(outputs) must give a label for each of the targets {tuple(targets.shape)}, one for each sample, "
            f"but gave {seen}; return labels (N,), or take (outputs, targets) and return booleans."
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
