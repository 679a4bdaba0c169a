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
    """Holds a measurement back until a training step has confirmed the guessed loss that it uses.

    The measurement is made before the step, as usual, and published within the step, after its backward pass. At that
    point the loss is known, the weights have not changed, the graph of the step is freed, and no callback has been
    called for the end of a batch. A separate call of ``training_step`` could be compared earlier, but it may have side
    effects.

    Attributes:
        mode: Mode of the measurements.
        batch_size: The user's function that returns the number of samples in a batch, or None.
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
        """Measure at the x-value ``step``."""

    @property
    def needs_loss(self) -> bool:
        """Whether a guessed loss will be needed, so that the next batch should be used to confirm it."""
        return False

    def _hold(self, measurement: Measurement) -> None:
        """Keep a measurement that uses a guess."""
        self._held.append(measurement)

    def _forget_held(self) -> None:
        """Drop the held measurements of an earlier fit."""
        self._held = []

    def _release(self, trainer: Trainer, pl_module: LightningModule, context: FitContext) -> None:
        """Publish the held measurements; measure again if the guess that they use was wrong."""
        held, self._held = self._held, []
        if not held:
            return
        with context.losses.before_the_step():
            if context.losses.is_confirmed(self.mode):
                for each in held:
                    self._report(trainer, pl_module, context, each)
            else:  # all are of the same weights, because no step has been taken
                self.run(trainer, pl_module, step=held[0].step, epoch=held[0].epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Evaluate a guess just before the step is called."""
        context = known_context(trainer)
        if context is not None:
            start = time.perf_counter()
            if context.losses.before_step(
                trainer, batch, wanted=self.needs_loss, batch_size=self.batch_size, mode=self.mode
            ):
                context.clock.measuring_seconds += time.perf_counter() - start

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Record the loss that the step has returned."""
        context = known_context(trainer)
        if context is not None:
            context.losses.see_loss(trainer, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the losses, and publish the held measurements."""
        context = known_context(trainer)
        if context is not None:
            context.losses.after_backward(trainer)
            if self._held and context.losses.guess is None:
                self._release(trainer, pl_module, context)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the held measurements, because no further step can confirm a guess."""
        self._end_of_steps(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the held measurements, because no step confirms them."""
        self._forget_held()
        super().on_exception(trainer, pl_module, exception)

    def _end_of_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure again what is still held back, with a loss that is found outside the training."""
        context = known_context(trainer)
        if context is not None:
            context.losses.training_is_over()
            self._release(trainer, pl_module, context)
