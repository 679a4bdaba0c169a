"""Find the loss that the training minimises: guessed from the module, confirmed by the first step of the training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.hessian import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import CAUSES, ConfigurationError, Note
from lightning_sloppy.evaluation.batches import Batch, as_pair, private, sample_count
from lightning_sloppy.evaluation.inner_loss import NAMES, loss_of_logits
from lightning_sloppy.evaluation.loss_checks import checked_loss, default_loss, is_loss_of_step
from lightning_sloppy.evaluation.mean_weights import checked_reduction_of
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.number_losses import are_numbers, for_one_number, loss_of_numbers
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.probing.error_words import in_words, note_of
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.loss_difference import Seen, code_of, explained, likely_causes
from lightning_sloppy.probing.training_step import ASK, TrainingStep, uncopied

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

LossArgument = Loss | Literal["training_step"]
"""Type of ``loss_fn=`` of a callback: a loss of ``(outputs, targets)``, or "training_step"."""

TRAINING_STEP = "training_step"
"""The value of ``loss_fn=`` that selects the loss of ``training_step``, even if the step has side effects."""

SUMMED = Note(
    "The loss adds up its samples. All numbers are those of the mean over the probe, like the curvature scale z. Those "
    "of the sum are N times as large.",
    cause="summed",
)
"""Note for a loss that is a sum over samples."""

BATCHWISE = Note(
    "The loss of a batch is not the mean over its samples (it compares them, or is a mean over tokens). It is measured "
    "on batches of the same size as those of the training, each weighted by its number of samples.",
    cause="batchwise",
)
"""Note for a loss that depends on which samples are in a batch."""

MODES: tuple[Mode, Mode] = ("eval", "train")

LOSS_ATTRIBUTES = ("loss_fn", "criterion")
"""Attributes in which modules keep their loss, as in the examples of Lightning and torch."""

BINARY = nn.functional.binary_cross_entropy_with_logits

Modes = Sequence[tuple[nn.Module, bool]]
"""Submodules with their training flags."""


@dataclass(frozen=True)
class LossChoice:
    """The objective of a fit, and how it was found.

    Attributes:
        objective: Module and loss.
        source: How it was found, in words: the attribute, the guess, "loss_fn=" or "training_step".
        note: A note for the user about the choice; empty if there is none.
        checked: Whether it is known that the training minimises it. A guess is checked by the first step.
        batchwise: Whether the loss of a batch may not be a mean over its samples, so that the batch size matters.
    """

    objective: Objective
    source: str
    note: str = ""
    checked: bool = True
    batchwise: bool = False


def checked_argument(loss_fn: object) -> None:
    """Check that ``loss_fn`` is a function or "training_step".

    Raises:
        ConfigurationError: If it is neither.
    """
    if loss_fn != TRAINING_STEP:
        checked_loss(loss_fn)


def choose_loss(
    module: LightningModule,
    batch: Batch,
    override: LossArgument | None,
    *,
    modes: Modes | None = None,
    mode: Mode = "eval",
) -> LossChoice:
    """Find the loss of a fit on one batch.

    These are tried in order: ``loss_fn=``; the module's ``loss_fn`` or ``criterion``, or its only ``torch.nn`` loss;
    cross-entropy for integer targets; for float targets of the outputs' shape, or (N,) with outputs (N, 1), the loss of
    numbers that the step names, else mean squared error. A loss that was not given as ``loss_fn=`` is a guess. It is
    compared later with what ``training_step`` returns in the training. Without a guess, the whole ``training_step`` is
    used.

    Args:
        module: The module of the fit.
        batch: A training batch on the module's device.
        override: The ``loss_fn=`` of the user.
        modes: Every submodule with its training flag in the fit; None: the current flags.
        mode: Mode of the measurements.

    Raises:
        ConfigurationError: If nothing fits, the loss is not finite, or manual optimisation prevents the comparison.
    """
    modes = [(child, child.training) for child in module.modules()] if modes is None else modes
    trial = _Trial(module, as_pair(batch), modes, mode)
    if override is not None and not isinstance(override, str):
        try:
            return _given(module, override, trial)
        except (ConfigurationError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # A fit that works without loss_fn= also works with a wrong one: the step itself is then the loss.
            with suppress(Exception):
                if module.automatic_optimization:
                    cause = f"{type(error).__name__}: {str(error)[:200]}"
                    choice = step_choice(module, f"loss_fn= cannot be evaluated ({cause}){trial.modes_differ()}")
                    _finite(trial.loss(choice.objective, "train"))
                    return choice
            raise
    if not module.automatic_optimization:
        raise ConfigurationError(
            "Under manual optimisation, training_step also steps the optimiser, and it need not return the loss, so a "
            f"guessed loss cannot be compared with it; {ASK}.",
            cause="loss",
        )
    if override is not None:
        return step_choice(module, None)
    found, cause, batch = "no loss was found", "loss", trial.batch
    try:
        outputs = trial.outputs()
    except Exception as error:  # the step is used, which may call something else
        # Instruments that need forward meet the same error, and warn about it in the same name.
        found = f"the forward of the module does not accept the inputs: {in_words(error)}"
        cause = note_of(error, mode).cause
    else:
        with suppress(Exception):  # if a wrong guess raises something, the step is used
            found += f", and none is usual for outputs {_shape(outputs)} and targets {_shape(batch[1])}"
            guess, source = _guess(module, outputs, batch)
            if guess is not None:
                choice = LossChoice(Objective(module, guess), source)
                trial.loss(choice.objective, "train")
                note = trial.checked_reduction(choice.objective)
                return replace(choice, note=note, batchwise=note == BATCHWISE, checked=False)
    choice = step_choice(module, f"{found}{trial.modes_differ()}", cause=cause)
    _finite(trial.loss(choice.objective, "train"))
    if mode == "eval":
        trial.refuse_broken_step(choice.objective)
    return choice


def compared_beside(
    module: LightningModule, batch: Batch, guess: LossChoice, *, modes: Modes | None = None
) -> LossChoice:
    """Confirm a guess by a call of ``training_step`` without side effects, if the Trainer takes no step.

    Raises:
        ConfigurationError: If such a call would have side effects, or its loss is not finite.
    """
    modes = [(child, child.training) for child in module.modules()] if modes is None else modes
    trial = _Trial(module, as_pair(batch), modes)
    step = step_choice(module, f"there was no step of the training to compare {guess.source} with")
    mine, theirs = trial.loss(guess.objective.as_given(), "train"), trial.loss(step.objective, "train")
    if is_loss_of_step(mine, theirs, module):
        return replace(guess, checked=True)
    return instead_of(module, guess, mine, theirs)


def instead_of(
    module: LightningModule,
    guess: LossChoice,
    mine: float,
    theirs: float,
    *,
    elsewhere: bool = False,
    seen: Seen | None = None,
) -> LossChoice:
    """Return the choice that replaces a guess whose value differs from the loss of the step.

    Args:
        module: The module of the fit.
        guess: The loss that was guessed.
        mine: Value of the guess.
        theirs: Value of the step.
        elsewhere: Whether the values differ only on another process.
        seen: What was seen of the step; None if nothing was.

    Raises:
        ConfigurationError: If the loss is not finite, or a call of the step would have side effects.
    """
    _finite(theirs, f" ({guess.source} gives {mine:.6g} on that batch)" if math.isfinite(mine) else "")
    if elsewhere:
        return step_choice(module, f"{guess.source} differs from what training_step returned on another process")
    loss_fn = guess.objective.loss_fn
    difference = None if seen is None else explained(module, loss_fn, seen, mine, theirs)
    why = likely_causes(loss_fn) if difference is None else difference.words
    found = f"{guess.source} gives {mine:.6g}, but training_step returned {theirs:.6g}. {why}"
    remedy = difference.remedy if difference is not None else ""
    if not remedy and code_of(loss_fn):
        without = (difference.without if difference is not None else "") or "what was added"
        return step_choice(module, found, ask=f"pass loss_fn={code_of(loss_fn)} for the loss without {without}")
    return step_choice(module, found, ask=f"pass loss_fn={remedy}" if remedy else ASK)


def _finite(theirs: float, beside: str = "") -> None:
    if not math.isfinite(theirs):
        raise ConfigurationError(
            f"The loss that training_step returned is {theirs}, not finite{beside}; check the inputs, the weights and "
            "the loss.",
            cause="not_finite",
        )


def step_choice(module: LightningModule, found: str | None, *, ask: str = ASK, cause: str = "loss") -> LossChoice:
    """The whole ``training_step`` as the objective.

    Args:
        module: The module of the fit.
        found: Why no loss of outputs and targets is known; None if the user asked for the step.
        ask: What to do about it.
        cause: Name of the cause.

    Raises:
        ConfigurationError: If a call of the step would have side effects on the training, and it was not asked for.
    """
    step = TrainingStep(module)
    left = uncopied(module)
    if found is None:
        step = TrainingStep(module, shielded=not left)
        return LossChoice(Objective(module, None, step_module=step), TRAINING_STEP, batchwise=True)
    reasons = [f"{left} cannot be copied"] if left else []
    reasons += [f"it uses {name}, whose state cannot be restored" for name in step.acting]
    if reasons:
        raise ConfigurationError(
            f"On one batch {_ended(found)} Measurements would have to call training_step itself, and these calls would "
            f"have side effects on the training: {'; '.join(reasons[:3])}. To measure, {ask}, or pass "
            "loss_fn='training_step' to accept the side effects.",
            cause="loss",
        )
    return LossChoice(
        Objective(module, None, step_module=step),
        TRAINING_STEP,
        note=Note(
            f"On one batch {_ended(found)} So the Hessian is that of training_step as a whole, and there is no "
            f"Gauss-Newton part, no Fisher matrix and, without predict=, no bound. To get them, {ask}.",
            cause=cause,
            short=CAUSES["loss"],
        ),
        batchwise=True,
    )


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(".") else f"{sentence}."


def _given(module: LightningModule, loss_fn: Loss, trial: _Trial) -> LossChoice:
    """Check the loss of the user.

    Raises:
        ConfigurationError: If it is not finite.
    """
    choice = LossChoice(Objective(module, loss_fn), "loss_fn=")
    note = trial.checked_reduction(choice.objective)
    value = trial.loss(choice.objective, trial.mode)
    if not math.isfinite(value):
        raise ConfigurationError(
            f"loss_fn= is {value} on a batch of {sample_count(trial.batch)}, not finite; check the inputs and the "
            "loss.",
            cause="not_finite",
        )
    return replace(choice, note=note, batchwise=note == BATCHWISE)


def seconds_of_a_gradient(choice: LossChoice, batches: list[Batch]) -> float:
    """Wall-clock seconds of one gradient of the mean loss over these batches, measured on the second of two calls."""
    layout = ParameterLayout.of(choice.objective.module)
    for _ in range(2):
        start = time.perf_counter()
        # Conversion to a number waits for the device.
        float(mean_gradient(choice.objective, layout, batches).sum())
    return time.perf_counter() - start


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


class _Trial:
    """One batch, evaluated on copies of the parameters."""

    def __init__(self, module: LightningModule, batch: Batch, modes: Modes, mode: Mode = "eval") -> None:
        self._module = module
        self._modes = modes
        self.mode = mode
        self._plain = Objective(module, None)
        self._table = ParameterLayout.of(module).leaves(module, self._plain.dtype)
        self.batch = self._plain.prepare([batch])[0]

    def outputs(self, mode: Mode | None = None) -> Any:
        """The output of ``forward``, by default in the mode of the measurements."""
        mode = mode or self.mode
        with measuring(self._module, mode):
            self._take(mode)
            return self._plain.output_values(self._table, private(self.batch)[0])

    def modes_differ(self) -> str:
        """A phrase that says how ``forward`` differs between eval and train mode; empty if it does not."""
        found = []
        for mode in MODES:
            try:
                outputs = self.outputs(mode)
                found.append(f"{type(outputs).__name__} with {len(tensors_of(outputs))} tensors")
            except Exception as error:  # noqa: PERF203 - the error is the result
                found.append(type(error).__name__)
        if found[0] == found[1] or self.mode == "train":
            return ""
        return (
            f", because forward gives {found[1]} in train mode but {found[0]} in eval mode, in which measurements run "
            "(return the same in both modes, or pass mode='train')"
        )

    def refuse_broken_step(self, objective: Objective) -> None:
        """Suggest ``mode="train"`` if the step works in train mode only, as for detectors, which return losses there.

        Raises:
            ConfigurationError: If the step raises something in eval mode.
        """
        try:
            self.loss(objective, "eval")
        except (ConfigurationError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ConfigurationError(
                f"training_step works in train mode, but raises {type(error).__name__} ({str(error)[:200]}) in eval "
                "mode, in which measurements run; pass mode='train'."
            ) from error

    def _take(self, mode: Mode) -> None:
        """In train mode, set the training flags of the fit. The guard around a measurement has set eval mode."""
        if mode == "train":
            for child, training in self._modes:
                child.training = training

    def checked_reduction(self, objective: Objective) -> str:
        """Record in the objective whether the loss is a mean or a sum; return a sentence about the numbers."""
        with measuring(self._module, self.mode):
            note = checked_reduction_of(objective, [self.batch])
        return SUMMED if objective.reduction == "sum" else BATCHWISE if note else ""

    def loss(self, objective: Objective, mode: Mode) -> float:
        """The loss of the batch, always with the same random stream."""
        with measuring(self._module, mode):
            self._take(mode)
            return float(objective.loss_value(self._table, self.batch))


def _guess(module: LightningModule, outputs: Any, batch: Batch) -> tuple[Loss | None, str]:
    inputs, targets = batch
    for name in LOSS_ATTRIBUTES:
        candidate = getattr(module, name, None)
        if callable(candidate):
            return for_one_number(candidate, outputs, targets), f"the module's {name}"
    children = [child for child in module.children() if isinstance(child, nn.modules.loss._Loss)]
    if len(children) == 1:
        return for_one_number(children[0], outputs, targets), f"the module's {type(children[0]).__name__}"
    names = getattr(getattr(type(module).training_step, "__code__", None), "co_names", ())
    if BINARY.__name__ in names:
        return for_one_number(BINARY, outputs, targets), "binary cross-entropy"
    if are_numbers(outputs, targets):
        # Several losses fit such outputs and targets, so the names that the step uses decide which one to try.
        return loss_of_numbers(names, outputs, targets)
    loss = default_loss(outputs, targets)
    if loss is None:
        named = loss_of_logits(outputs, targets, inputs)
        return named, "" if named is None else NAMES[named.loss_fn]
    return loss, NAMES[loss]
