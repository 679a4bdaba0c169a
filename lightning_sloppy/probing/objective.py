"""Which loss does the training minimise? Guess from the module, then compare with ``training_step``."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, as_pair, private, sample_count
from lightning_sloppy.evaluation.objective import Loss, Objective, checked_scalar, default_loss
from lightning_sloppy.probing.guard import measuring

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

LOSS_ATTRIBUTES = ("loss_fn", "criterion")
"""Where modules keep their loss, by the conventions of Lightning's and torch's own examples."""

AGREEMENT = 1e-4
"""Relative difference of two evaluations of one loss in float32 that is rounding."""

ASK = "pass objective=, the mean-reduced loss of (outputs, targets); in YAML as a dotted path"


@dataclass(frozen=True)
class ObjectiveChoice:
    """The objective of a fit, and how it was found.

    Attributes:
        objective: Module and loss.
        source: In words: the attribute, the guess, "objective=" or "training_step".
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


def choose_objective(module: LightningModule, batch: Batch, override: Loss | None) -> ObjectiveChoice:
    """Find the loss of a fit and check it on one batch.

    Order: ``objective=``; the module's ``loss_fn`` or ``criterion``; cross-entropy for integer targets; mean squared
    error for float targets of the outputs' shape. A loss that was not given as ``objective=`` must reproduce
    ``training_step`` in train mode with the same random stream; when it does not, the whole ``training_step`` is used.

    Args:
        module: The module of the fit.
        batch: A training batch on the module's device.
        override: The user's ``objective=``.

    Raises:
        ConfigurationError: When nothing fits, the loss is not finite, or manual optimisation forbids the comparison.
    """
    inputs, targets = as_pair(batch)
    with measuring(module), torch.no_grad():
        outputs = module(private((inputs, targets))[0])
    if override is not None:
        choice = _choice(module, override, "objective=", outputs, targets)
        _checked_value(choice.objective, module, (inputs, targets), "objective=")
        return choice
    guess, source = _guess(module, outputs, targets)
    if not module.automatic_optimization:
        raise ConfigurationError(
            "Under manual optimisation training_step also steps the optimiser, so the loss cannot be compared with it; "
            f"{ASK}."
        )
    if guess is not None:
        choice = _choice(module, guess, source, outputs, targets)
        mine, theirs = _both_losses(choice.objective, module, (inputs, targets))
        if math.isfinite(theirs) and abs(mine - theirs) <= AGREEMENT * max(abs(mine), abs(theirs)) + 1e-6:
            return choice
        found = f"{source} gives {mine:.6g}, but training_step {theirs:.6g}"
    else:
        theirs = _step_loss(module, (inputs, targets))
        found = "no loss_fn or criterion was found and the targets fit neither cross-entropy nor mean squared error"
    if not math.isfinite(theirs):
        raise ConfigurationError(f"The loss of training_step is {theirs}, not finite; look at the inputs and the loss.")
    return ObjectiveChoice(
        Objective(module, None, step_module=TrainingStep(module)),
        "training_step",
        classification=False,
        note=f"On one batch {found}; the Hessian is that of training_step. For the Gauss-Newton part, Fisher and the "
        f"bound {ASK}.",
    )


def _guess(module: LightningModule, outputs: Any, targets: Any) -> tuple[Loss | None, str]:
    for name in LOSS_ATTRIBUTES:
        candidate = getattr(module, name, None)
        if callable(candidate):
            return candidate, f"the module's {name}"
    loss = default_loss(outputs, targets)
    if loss is None:
        return None, ""
    return loss, "cross-entropy" if loss is nn.functional.cross_entropy else "mean squared error"


def _choice(module: LightningModule, loss: Loss, source: str, outputs: Any, targets: Any) -> ObjectiveChoice:
    classification = (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == 2
        and outputs.shape[1] >= 2
        and targets.ndim == 1
        and not targets.is_floating_point()
    )
    return ObjectiveChoice(Objective(module, loss), source, classification)


def _both_losses(objective: Objective, module: LightningModule, batch: Batch) -> tuple[float, float]:
    """The guessed loss and that of ``training_step``, in train mode, from the same random stream."""
    with measuring(module, "train"), torch.no_grad():
        assert objective.loss_fn is not None
        inputs, targets = private(batch)
        try:
            mine = float(checked_scalar(objective.loss_fn(module(inputs), targets)))
        except (TypeError, RuntimeError, ValueError):
            mine = math.nan  # an attribute of that name with another signature: no match, the step decides
    return mine, _step_loss(module, batch)


def _step_loss(module: LightningModule, batch: Batch) -> float:
    with measuring(module, "train"), torch.no_grad():
        # A list, as default collation gives it: some steps index or unpack, and both work.
        return float(TrainingStep(module)(list(private(batch))))


def _checked_value(objective: Objective, module: LightningModule, batch: Batch, source: str) -> None:
    with measuring(module), torch.no_grad():
        assert objective.loss_fn is not None
        inputs, targets = private(batch)
        value = float(checked_scalar(objective.loss_fn(module(inputs), targets)))
    if not math.isfinite(value):
        raise ConfigurationError(
            f"{source} is {value} on a batch of {sample_count(batch)}, not finite; look at the inputs and the loss."
        )
