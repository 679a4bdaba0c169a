"""What an instrument measures on: training samples, the module, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_sloppy.curvature.hessian import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, picked, sample_count
from lightning_sloppy.evaluation.mean_weights import checked_reduction_of
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.precision import Precision
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import ASK, LossChoice

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def _no_progress(steps: int) -> None:
    """Replacement for a progress bar if there is none."""


MeasureOn = Literal["fixed_samples", "current_batch"]
"""Which samples the probe holds."""

ROWS = 1_280
"""Target for samples times outputs of a small probe. The eigenvalues of this many rows take 0.15 s on one core, those
of twice as many 1.0 s."""

MOST_ROWS = 2_560
"""Rows above which the default is products. With 100 outputs the Gram matrix of 64 samples takes 15 s."""

FEWEST, MOST = 64, 256
"""Range of samples of a small probe. The Jacobian's dimension changes little there (181, 199, 215 at 64, 128, 256,
MNIST)."""


def small_probe(batches: list[Batch], outputs: int, most: int = MOST) -> list[Batch]:
    """The first ``min(256, max(64, 1280 // outputs))`` samples, for a Gram matrix with one row per sample and output.

    Args:
        batches: Prepared batches.
        outputs: Number of outputs per sample.
        most: Largest number of samples.
    """
    return first_samples(batches, min(MOST, max(FEWEST, ROWS // max(outputs, 1)), most))


def first_samples(batches: list[Batch], count: int) -> list[Batch]:
    """The first ``count`` samples of the batches, or all if there are fewer."""
    chosen: list[Batch] = []
    for batch in batches:
        if count > 0:
            chosen.append(batch if sample_count(batch) <= count else picked(batch, torch.arange(count)))
            count -= sample_count(chosen[-1])
    return chosen


@dataclass(frozen=True)
class Probe:
    """The samples, the module and the loss of one measurement.

    While a measurement runs, the module is in eval mode and ``self.log`` does nothing. Afterwards modes, buffers,
    random streams, gradients and attributes are restored.

    Attributes:
        module: The LightningModule of the fit, unwrapped.
        batches: Pairs ``(inputs, targets)`` on the module's device. Floating-point tensors have the data type of the
            measurement. Under DDP every rank has all of them. With the default ``measure_on="fixed_samples"`` they are
            the same at every measurement.
        step: The x-value of the measurement in every logger.
        seed: Seed of the instrument.
        dtype: Data type of the measurement: the widest one of the parameters, at least float32.
        choose: Function that finds the loss of the training.
        context: The state that the callbacks of the fit share.
        advance: Function that advances the progress bar by a number of steps. The total need not be known.
    """

    module: LightningModule
    batches: list[Batch]
    step: int
    seed: int
    dtype: torch.dtype
    choose: Callable[[], LossChoice]
    context: FitContext
    advance: Callable[[int], None] = _no_progress

    @property
    def num_samples(self) -> int:
        """Number of probe samples N."""
        return sum(sample_count(batch) for batch in self.batches)

    @cached_property
    def choice(self) -> LossChoice:
        """The loss of the training with the module, and how it was found. It is looked for at the first access.

        Raises:
            ConfigurationError: If it cannot be determined; the message asks for ``loss_fn=``.
        """
        choice = self.choose()
        if any(child.training for child in self.module.modules()):
            return choice  # random numbers and statistics depend on the whole batch, so its parts cannot be compared
        # The batch on which the loss was found need not have shown what its mean is over.
        note = checked_reduction_of(choice.objective, self.batches)
        return replace(choice, note=choice.note or note)

    def at(self, precision: Precision | None) -> Probe:
        """Return the same probe and loss in another data type; with None, the probe itself."""
        if precision is None:
            return self
        plain = Objective(self.module, None).at(getattr(torch, precision))

        def choose() -> LossChoice:
            choice = self.choice
            return replace(choice, objective=choice.objective.at(plain.dtype))

        return replace(self, batches=plain.prepare(self.batches), dtype=plain.dtype, choose=choose)

    @property
    def loss_fn(self) -> Loss:
        """The mean-reduced loss of ``(outputs, targets)`` that the training minimises.

        Raises:
            ConfigurationError: If only ``training_step`` as a whole is known.
        """
        loss_fn = self.choice.objective.loss_fn
        if loss_fn is None:
            raise ConfigurationError(
                f"The loss is known only as a whole, as training_step computes it, but this instrument needs it as a "
                f"function of the outputs; {ASK}.",
                cause="loss",
            )
        return loss_fn

    def forward(self, inputs: Any) -> Any:
        """Compute the outputs of the module for the inputs of a batch, in the data type of the measurement.

        It works in every precision of the Trainer. ``pl_module(inputs)`` fails if the module is in bfloat16, because
        the batches are in float32. Call it under ``torch.no_grad()`` unless gradients are needed.
        """
        layout = ParameterLayout.of(self.module)
        return Objective(self.module, None).outputs(layout.leaves(self.module, self.dtype), inputs)

    def gradient(self) -> Tensor:
        """Gradient of the mean loss over the probe with respect to the trainable parameters, flat, (p,)."""
        return mean_gradient(self.choice.objective, ParameterLayout.of(self.module), self.batches)

    def generator(self) -> torch.Generator:
        """A random generator on the CPU, with the same state at every measurement and on every rank."""
        return generator(self.seed)
