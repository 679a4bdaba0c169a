"""Between a first measurement and its publication: the first step of the training confirms the loss."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from lightning_sloppy.callbacks.base import SloppyCallback
from lightning_sloppy.evaluation.batches import BatchSize
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.probing.context import FitContext, known_context
from lightning_sloppy.records import Measurement

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor


class AwaitingCallback(SloppyCallback):
    """Holds a measurement back until a step of the training has confirmed the guessed loss that it rests on.

    The measurement is made where it always was, before the step; it is published within the step, behind its backward.
    There the loss is known, the weights have not moved, the graph of the step is gone, and no callback has seen the end
    of a batch. A call of the step beside the training could be compared earlier, but a step may do more than compute.

    Attributes:
        mode: Of the measurements.
        batch_size: The user's count of the samples of a batch, or None.
    """

    mode: Mode = "eval"
    batch_size: BatchSize | None = None

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Measurement] = []

    @abstractmethod
    def _report(
        self, trainer: Trainer, pl_module: LightningModule, context: FitContext | None, measurement: Measurement
    ) -> None:
        """Publish a measurement."""

    @abstractmethod
    def run(self, trainer: Trainer, pl_module: LightningModule, *, step: int, epoch: int | None = None) -> None:
        """Measure under the x-value ``step``."""

    @property
    def needs_loss(self) -> bool:
        """Whether a loss that is to be guessed will be asked for, so that the batch that comes now should serve."""
        return False

    def _hold(self, measurement: Measurement) -> None:
        """Keep a measurement that rests on a guess."""
        self._held.append(measurement)

    def _forget_held(self) -> None:
        """Drop what an earlier fit has left."""
        self._held = []

    def _release(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> None:
        """Publish what was held back; measure anew where the guess that it rests on was wrong."""
        held, self._held = self._held, []
        if not held:
            return
        with context.losses.before_the_step():
            if context.losses.is_confirmed(self.mode):
                for each in held:
                    self._report(trainer, pl_module, context, each)
            else:  # all are of the same weights, for no step has been taken
                self.run(trainer, pl_module, step=held[0].step, epoch=held[0].epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Evaluate a guess where the step is about to be called."""
        context = known_context(trainer)
        if context is not None:
            start = time.perf_counter()
            if context.losses.before_step(
                trainer, batch, wanted=self.needs_loss, batch_size=self.batch_size, mode=self.mode
            ):
                context.clock.measuring_seconds += time.perf_counter() - start

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The step has returned its loss."""
        context = known_context(trainer)
        if context is not None:
            context.losses.see_loss(trainer, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and publish what was held back."""
        context = known_context(trainer)
        if context is not None:
            context.losses.after_backward(trainer)
            if self._held and context.losses.guess is None:
                self._release(trainer, pl_module, context)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No further step can confirm a guess."""
        self._end_of_steps(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No step confirms what is held back."""
        self._forget_held()
        super().on_exception(trainer, pl_module, exception)

    def _end_of_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is still held back is measured anew, by a loss that is looked for beside the training."""
        context = known_context(trainer)
        if context is not None:
            context.losses.training_is_over()
            self._release(trainer, pl_module, context)
