"""Why the loss of a step differs from a loss of outputs and targets: what one batch shows, and what to pass instead.

Only what was seen on that batch is said: that another loss of the same outputs gives the step's value up to rounding,
or that the step passed other inputs to the module. If nothing fits, the usual causes are listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_sloppy.evaluation.inner_loss import LossOfLogits
from lightning_sloppy.evaluation.nests import leaves_of, tensors_of
from lightning_sloppy.evaluation.weights import KnownLoss, known_loss
from lightning_sloppy.probing.outside import constants_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

ROUNDING = 1e-6
"""Two evaluations of one loss in float32 differ by less, relative to their value."""

CLEAR = 5e3
"""A penalty is looked for in differences of this many rounding errors: chance then fits about one in 100."""

LIKELY = ("a penalty on the weights", "label smoothing", "augmentation", "mixup")
"""What is said if nothing was seen, the most frequent first."""

SMOOTHINGS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Usual amounts of label smoothing, tried beside the numbers in the code of the step."""

DIGITS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Strengths of penalties that are tried are these numbers times powers of ten, and the numbers in the code."""

FACTORS = (0.1, 0.25, 0.5, 2.0, 4.0, 10.0, 100.0, 1000.0)
"""Usual factors of a loss."""

MOST_NUMBERS = 2**24
"""Outputs with more entries are not evaluated again."""

MOST_WEIGHTS = 8
"""Largest number of tensors that are tried as class weights."""

MIXED_ROWS = 16
"""Number of inputs that are looked at for mixtures."""

CODE = {
    nn.functional.cross_entropy: "torch.nn.functional.cross_entropy",
    nn.functional.mse_loss: "torch.nn.functional.mse_loss",
    nn.functional.l1_loss: "torch.nn.functional.l1_loss",
    nn.functional.smooth_l1_loss: "torch.nn.functional.smooth_l1_loss",
    nn.functional.huber_loss: "torch.nn.functional.huber_loss",
    nn.functional.binary_cross_entropy_with_logits: "torch.nn.functional.binary_cross_entropy_with_logits",
}
"""Losses as they are written in Python."""


@dataclass
class Seen:
    """What was seen of one step beside its loss.

    Attributes:
        outputs: Outputs of the module for the batch, from which the guess was computed.
        targets: Its targets.
        inputs: How the inputs that the step passed to the module differ from those of the batch: "", "changed",
            "augmented", "mixed" or "pasted".
    """

    outputs: Any = None
    targets: Any = None
    inputs: str = ""


@dataclass(frozen=True)
class Difference:
    """Why two losses differ.

    Attributes:
        words: One sentence.
        remedy: What to pass as ``loss_fn=``, in Python; empty if it is the guess itself.
        without: What that loss leaves out; empty if it is the loss of the step.
    """

    words: str
    remedy: str = ""
    without: str = field(default="")


INPUTS = {
    "mixed": Difference(
        "training_step passed mixtures of two samples to the module (mixup).", without="the mixtures of samples"
    ),
    "pasted": Difference(
        "training_step passed inputs to the module that are pasted together from two samples (cutmix).",
        without="the pasted samples",
    ),
    "augmented": Difference(
        "training_step drew random numbers and passed other inputs to the module than those of the batch "
        "(augmentation).",
        without="the augmentation",
    ),
    "changed": Difference(
        "training_step passed other inputs to the module than those of the batch; let forward or the data set change "
        "them instead."
    ),
}
"""What is said about inputs."""


def code_of(loss_fn: Any) -> str:
    """A loss in Python, if it is a function of torch; else empty."""
    return next((code for loss, code in CODE.items() if loss_fn is loss), "")


def likely_causes(loss_fn: Any) -> str:
    """What makes losses of steps differ, the most frequent first."""
    known = known_loss(loss_fn)
    labels = known is None or known.likelihood != "gaussian"
    causes = [each for each in LIKELY if labels or each != "label smoothing"]
    return f"Likely causes in training_step, in this order: {', '.join(causes)}."


def explained(
    module: LightningModule, loss_fn: Callable[[Any, Any], Tensor] | None, seen: Seen, mine: float, theirs: float
) -> Difference | None:
    """What one batch shows about the difference of two losses; None if nothing.

    Args:
        module: The module of the fit.
        loss_fn: The guessed loss.
        seen: What was seen of the step.
        mine: Value of the guess on the batch.
        theirs: Value of the step.
    """
    rounding = ROUNDING * max(abs(mine), abs(theirs))
    if seen.inputs:
        return INPUTS[seen.inputs]
    if not math.isfinite(mine):
        return None
    found = constants_of(module)
    with torch.no_grad():
        return (
            _as_entropy(loss_fn, seen, theirs, rounding, found)
            or _as_penalty(module, mine, theirs, rounding, found.numbers)
            or _as_factor(loss_fn, seen, mine, theirs, found.numbers)
        )


def inputs_differ(batch: Any, passed: Any, *, drew: bool) -> str:
    """How inputs that a step passed to a module differ from those of the batch: a name of :data:`INPUTS`, or empty.

    Args:
        batch: Inputs of the batch, as they were before the step.
        passed: First argument of the first call of a module in the step.
        drew: Whether random numbers were drawn before that call.
    """
    if not isinstance(batch, Tensor) or not isinstance(passed, Tensor) or batch.numel() != passed.numel():
        return ""
    if len(batch) < 2 or not (batch.is_floating_point() and passed.is_floating_point()) or len(passed) != len(batch):
        return ""
    before, after = (tensor.detach().reshape(len(batch), -1).float() for tensor in (batch, passed.to(batch.device)))
    if torch.allclose(before, after, rtol=1e-5, atol=1e-7):
        return ""
    if not drew:
        return "changed"
    pairs = [_as_pair(before, row, index) for index, row in enumerate(after[:MIXED_ROWS])]
    for kind in ("mixed", "pasted"):
        if all(kind in pair for pair in pairs):
            return kind
    return "augmented"


def _as_pair(samples: Tensor, row: Tensor, index: int) -> set[str]:
    """Whether an input is a mixture of its sample with another one ("mixed"), or consists of parts of both."""
    own = samples[index]
    moved, towards = row - own, samples - own
    length = towards.square().sum(dim=1).clamp_min(1e-12)
    part = ((towards @ moved) / length).clamp(0, 1)
    left = (moved - part.unsqueeze(1) * towards).norm(dim=1)
    found = {"mixed"} if float(left.min()) <= 1e-4 * float(own.norm() + moved.norm()) else set()
    if bool(((row == own) | (row == samples)).all(dim=1).any()):
        found.add("pasted")
    return found


def _as_entropy(loss_fn: Any, seen: Seen, theirs: float, rounding: float, found: Any) -> Difference | None:
    """Cross-entropy with label smoothing or class weights that gives the value of the step."""
    known = known_loss(loss_fn)
    outputs, targets = seen.outputs, seen.targets
    if isinstance(loss_fn, LossOfLogits):
        outputs, targets = loss_fn.arranged(tensors_of(outputs)[loss_fn.logits], leaves_of(targets)[loss_fn.labels])
    if known is None or known.likelihood != "categorical" or known.label_smoothing or not _small(outputs):
        return None
    if not isinstance(targets, Tensor) or targets.is_floating_point() or outputs.ndim < 2:
        return None
    outputs = outputs.float()
    classes = outputs.shape[1]
    matching = []
    for words, code, weight in _class_weights(known, found.tensors, found.tuples, classes):
        given = None if weight is None else weight.to(outputs)

        def entropy(smoothing: float, given: Tensor | None = given) -> float:
            value = nn.functional.cross_entropy(
                outputs,
                targets,
                weight=given,
                ignore_index=known.ignore_index,
                reduction=known.reduction,
                label_smoothing=smoothing,
            )
            return float(value)

        plain, spread = entropy(0.0), entropy(1.0)
        if words and abs(plain - theirs) <= rounding:
            matching.append((f"Cross-entropy with {words} gives the same value.", f"weight={code}"))
        if abs(spread - plain) * min(SMOOTHINGS) < 100 * rounding:
            continue
        for amount in sorted({*SMOOTHINGS, *(n for n in found.numbers if 0 < n < 1)}):
            # The loss is linear in the amount; what fits is then evaluated.
            near = abs((1 - amount) * plain + amount * spread - theirs) <= 2 * rounding
            if near and abs(entropy(amount) - theirs) <= rounding:
                also = f" and {words}" if words else ""
                option = f"label_smoothing={amount:g}" + (f", weight={code}" if words else "")
                matching.append((f"Label smoothing of {amount:g}{also} gives the same value.", option))
    if len(matching) != 1:
        return None
    words, option = matching[0]
    options = [option] + ([] if known.ignore_index == -100 else [f"ignore_index={known.ignore_index}"])
    # A loss of other tensors than the outputs themselves cannot be written in one line.
    plain = not isinstance(loss_fn, LossOfLogits)
    return Difference(words, f"torch.nn.CrossEntropyLoss({', '.join(options)})" if plain else "")


def _class_weights(
    known: KnownLoss, tensors: Mapping[str, Tensor], tuples: Sequence[tuple[float, ...]], classes: int
) -> Iterator[tuple[str, str, Tensor | None]]:
    """The weights of the guess, then tensors of the module and of the code with a number for each class."""
    yield "", "", known.class_weights
    if known.class_weights is not None:
        return
    fitting = [(name, tensor) for name, tensor in tensors.items() if tensor.shape == (classes,)]
    for name, tensor in fitting[:MOST_WEIGHTS]:
        yield f"the class weights in {name}", name.replace("self.", "model.", 1), tensor
    for numbers in [each for each in tuples if len(each) == classes][:MOST_WEIGHTS]:
        shown = ", ".join(f"{number:g}" for number in numbers)
        code = ", ".join(map(repr, numbers))
        yield f"the class weights {shown}", f"torch.tensor([{code}])", torch.tensor(numbers, dtype=torch.float64)


def _as_penalty(
    module: nn.Module, mine: float, theirs: float, rounding: float, numbers: Sequence[float]
) -> Difference | None:
    """A penalty on the weights that gives the difference, with a strength that is a round number or in the code."""
    excess = theirs - mine
    if excess < CLEAR * rounding:
        return None
    matching: dict[float, str] = {}
    for size, words in _sizes_of_weights(module):
        strength = excess / size if size > 0 else math.inf
        if not math.isfinite(strength):
            continue
        tolerance = (rounding + 10 * ROUNDING * excess) / size
        known = [each * factor for each in numbers for factor in (1.0, 0.5)]
        fits = [each for each in (*known, *_round_numbers_near(strength)) if abs(each - strength) <= tolerance]
        if fits and size not in matching:
            matching[size] = f"{min(fits, key=lambda each: abs(each - strength)):g} times {words}"
    if len(matching) != 1:
        return None
    (words,) = matching.values()
    return Difference(f"The difference is {words}, a penalty on the weights.", without="the penalty")


def _sizes_of_weights(module: nn.Module) -> list[tuple[float, str]]:
    """What penalties are usually proportional to, with words for it."""
    trained = [p.detach().double() for p in module.parameters() if p.requires_grad and not p.is_complex()]
    found = []
    for kept, words in ((trained, "all weights"), ([p for p in trained if p.ndim > 1], "all weights without biases")):
        norms = [float(p.square().sum()) for p in kept]
        found.append((sum(norms), f"the sum of the squares of {words}"))
        found.append((sum(float(p.abs().sum()) for p in kept), f"the sum of the magnitudes of {words}"))
        found.append((math.sqrt(sum(norms)), f"the norm of {words}"))
        found.append((sum(map(math.sqrt, norms)), f"the sum of the norms of the tensors of {words}"))
    return found


def _round_numbers_near(number: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(number))
    return [digit * power for digit in DIGITS]


def _as_factor(loss_fn: Any, seen: Seen, mine: float, theirs: float, numbers: Sequence[float]) -> Difference | None:
    """The guess times a usual number."""
    if mine == 0:
        return None
    ratio = theirs / mine
    samples = len(seen.outputs) if isinstance(seen.outputs, Tensor) and seen.outputs.ndim else 0
    name = code_of(loss_fn)
    if samples > 1 and abs(ratio / samples - 1) <= ROUNDING:
        code = f"functools.partial({name}, reduction='sum')" if name else ""
        return Difference(
            f"It is {samples} times as large, and the batch has {samples} samples: a sum over them.", code
        )
    near = [each for each in (*FACTORS, *numbers) if each and abs(ratio / each - 1) <= ROUNDING]
    if not near:
        return None
    code = f"lambda outputs, targets: {near[0]:g} * {name}(outputs, targets)" if name else ""
    return Difference(f"It is {near[0]:g} times as large.", code)


def _small(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and outputs.numel() <= MOST_NUMBERS
