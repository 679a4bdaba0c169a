"""Which loss does the training minimise? Guess from the module, then compare with ``training_step``."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_sloppy.curvature.gradient import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, as_pair, private, sample_count
from lightning_sloppy.evaluation.loss_checks import AGREEMENT, checked_mean, checked_scalar, default_loss
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.probing.guard import measuring

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

LOSS_ATTRIBUTES = ("loss_fn", "criterion")
"""Where modules keep their loss, by the conventions of Lightning's and torch's own examples."""

Modes = Sequence[tuple[nn.Module, bool]]
"""Submodules with their training flags."""

ASK = (
    "pass loss_fn=, the mean-reduced loss of (outputs, targets), for instance "
    "loss_fn=torch.nn.functional.cross_entropy (in YAML the dotted path)"
)


@dataclass(frozen=True)
class LossChoice:
    """The objective of a fit, and how it was found.

    Attributes:
        objective: Module and loss.
        source: In words: the attribute, the guess, "loss_fn=" or "training_step".
        classification: Whether outputs are class scores and targets class indices, so that an error rate exists.
        note: What a person should know about the choice; empty when all is well.
    """

    objective: Objective
    source: str
    classification: bool
    note: str = ""


class TrainingStep(nn.Module):
    """Wraps a LightningModule so that calling it runs ``training_step`` and gives the loss."""

    def __init__(self, inner: LightningModule) -> None:
        super().__init__()
        self.inner = inner
        self._takes_index = len(inspect.signature(inner.training_step).parameters) > 1

    def forward(self, batch: Any) -> Tensor:
        """The loss of ``training_step``."""
        result = self.inner.training_step(batch, 0) if self._takes_index else self.inner.training_step(batch)
        loss = result.get("loss") if isinstance(result, dict) else result
        if loss is None:
            raise ConfigurationError(f"training_step returned no loss, so it cannot be measured; {ASK}.")
        return checked_scalar(loss)


def choose_loss(
    module: LightningModule, batch: Batch, override: Loss | None, *, modes: Modes | None = None
) -> LossChoice:
    """Find the loss of a fit and check it on one batch.

    Order: ``loss_fn=``; the module's ``loss_fn`` or ``criterion``, or its only ``torch.nn`` loss; cross-entropy for
    integer targets; mean squared error for float targets of the outputs' shape. A loss that was not given as
    ``loss_fn=`` must reproduce ``training_step`` in train mode with the same random stream; when it does not, the
    whole ``training_step`` is used.

    Args:
        module: The module of the fit.
        batch: A training batch on the module's device.
        override: The user's ``loss_fn=``.
        modes: Every submodule with its training flag in the fit; None takes them as they are.

    Raises:
        ConfigurationError: When nothing fits, the loss is not finite, or manual optimisation forbids the comparison.
    """
    modes = [(child, child.training) for child in module.modules()] if modes is None else modes
    step = Objective(module, None, step_module=TrainingStep(module))
    trial = _Trial(module, step, as_pair(batch), modes)
    if override is not None:
        choice = _choice(module, override, "loss_fn=", trial.outputs(), batch[1])
        note = trial.checked_mean(choice.objective)
        value = trial.loss(choice.objective, "eval")
        if not math.isfinite(value):
            raise ConfigurationError(
                f"loss_fn= is {value} on a batch of {sample_count(batch)}, not finite; look at inputs and loss."
            )
        return replace(choice, note=note)
    if not module.automatic_optimization:
        raise ConfigurationError(
            "Under manual optimisation training_step also steps the optimiser, so the loss cannot be compared with it; "
            f"{ASK}."
        )
    theirs = trial.loss(step, "train")
    found = "the module has no forward that takes the inputs"
    with suppress(Exception):  # whatever a wrong guess raises, the step decides
        outputs = trial.outputs()
        found = f"no loss was found, and none is usual for outputs {_shape(outputs)} and targets {_shape(batch[1])}"
        guess, source = _guess(module, outputs, batch[1])
        if guess is not None:
            choice = _choice(module, guess, source, outputs, batch[1])
            mine = trial.loss(choice.objective, "train")
            if math.isfinite(theirs) and abs(mine - theirs) <= AGREEMENT * max(abs(mine), abs(theirs)) + 1e-6:
                return choice
            found = (
                f"{source} gives {mine:.6g}, but training_step {theirs:.6g} (a penalty, or augmentation in the step?)"
            )
    if not math.isfinite(theirs):
        raise ConfigurationError(f"The loss of training_step is {theirs}, not finite; look at the inputs and the loss.")
    return LossChoice(
        step,
        "training_step",
        classification=False,
        note=f"On one batch {found}; the Hessian is that of training_step. For the Gauss-Newton part, Fisher and the "
        f"bound {ASK}.",
    )


def seconds_of_a_gradient(choice: LossChoice, batches: list[Batch]) -> float:
    """Wall-clock seconds of one gradient of the mean loss over these batches, the second one of two."""
    layout = ParameterLayout.of(choice.objective.module)
    for _ in range(2):
        start = time.perf_counter()
        # Asking for a number waits for the device.
        float(mean_gradient(choice.objective, layout, batches).sum())
    return time.perf_counter() - start


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


class _Trial:
    """One batch, evaluated on copies of the parameters."""

    def __init__(self, module: LightningModule, step: Objective, batch: Batch, modes: Modes) -> None:
        self._module = module
        self._modes = modes
        self._step = step
        self._table = ParameterLayout.of(module).leaves(module, step.dtype)
        self._batch = step.prepare([batch])[0]

    def outputs(self) -> Any:
        """What ``forward`` gives in eval mode."""
        with measuring(self._module):
            return self._step.output_values(self._table, private(self._batch)[0])

    def checked_mean(self, objective: Objective) -> str:
        """Raise when the loss adds up its samples; a sentence when it is a mean with weights that are not known."""
        with measuring(self._module):
            return checked_mean(objective, self._batch)

    def loss(self, objective: Objective, mode: Mode) -> float:
        """The loss of the batch, always from the same random stream."""
        with measuring(self._module, mode):
            if mode == "train":
                # A measurement has eval mode around it; the fit's own flags are wanted here.
                for child, training in self._modes:
                    child.training = training
            return float(objective.loss_value(self._table, self._batch))


def _guess(module: LightningModule, outputs: Any, targets: Any) -> tuple[Loss | None, str]:
    for name in LOSS_ATTRIBUTES:
        candidate = getattr(module, name, None)
        if callable(candidate):
            return candidate, f"the module's {name}"
    children = [child for child in module.children() if isinstance(child, nn.modules.loss._Loss)]
    if len(children) == 1:
        return children[0], f"the module's {type(children[0]).__name__}"
    loss = default_loss(outputs, targets)
    if loss is None:
        return None, ""
    return loss, "cross-entropy" if loss is nn.functional.cross_entropy else "mean squared error"


def _choice(module: LightningModule, loss: Loss, source: str, outputs: Any, targets: Any) -> LossChoice:
    classification = (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == 2
        and outputs.shape[1] >= 2
        and targets.ndim == 1
        and not targets.is_floating_point()
    )
    return LossChoice(Objective(module, loss), source, classification)
