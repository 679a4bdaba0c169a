"""Multilayer perceptrons, small enough to check every measurement against the whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_sloppy.errors import ConfigurationError

Activation = Literal["relu", "tanh"]
OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["constant", "exponential", "cosine"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def perceptron(widths: Sequence[int], activation: Activation = "relu") -> nn.Sequential:
    """Linear layers of the given widths with an activation between them; the input is flattened.

    Args:
        widths: Width of every layer, input first, output last: (64, 32, 10) has one hidden layer.
        activation: Between the layers, not after the last.

    Raises:
        ConfigurationError: If there are fewer than two widths, one is below 1, or the activation is unknown.

    Example:
        >>> perceptron((4, 3, 2))(torch.zeros(5, 2, 2)).shape
        torch.Size([5, 2])
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ConfigurationError(
            f"widths must contain at least an input and an output width, each at least 1, but are {list(widths)};"
            " pass for instance [64, 32, 10]."
        )
    if activation not in ACTIVATIONS:
        raise ConfigurationError(f"The activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class _Perceptron(LightningModule):
    """Base class of classifier and regressor: the network, the optimiser, and the logged loss and score."""

    score_name: str
    loss_fn: nn.Module
    train_score: Metric
    val_score: Metric

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation,
        optimizer: OptimizerName,
        lr: float,
        weight_decay: float,
        lr_schedule: Schedule,
        lr_decay: float,
    ) -> None:
        super().__init__()
        if not lr > 0 or not weight_decay >= 0 or not 0 < lr_decay <= 1:
            raise ConfigurationError(
                f"lr must be positive, weight_decay not negative and lr_decay in (0, 1], but they are {lr},"
                f" {weight_decay} and {lr_decay}."
            )
        if optimizer not in ("adamw", "sgd") or lr_schedule not in ("constant", "exponential", "cosine"):
            raise ConfigurationError(
                f"optimizer={optimizer!r} with lr_schedule={lr_schedule!r} is unknown; choose adamw or sgd, with"
                " constant, exponential or cosine."
            )
        self.save_hyperparameters()
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.lr_schedule, self.lr_decay = lr_schedule, lr_decay
        self.network = perceptron(widths, activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Flatten the inputs and return the output of the last layer, shape (batch, widths[-1])."""
        return self.network(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch, logged at every step, and log the score of the epoch."""
        return self._step("train", batch, self.train_score, on_step=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean loss and the score over the validation part."""
        self._step("val", batch, self.val_score, on_step=False)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean loss and the score over the test part."""
        self._step("test", batch, self.val_score, on_step=False)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule of its learning rate if it is not constant."""
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                self.parameters(), lr=self.lr, weight_decay=self.weight_decay
            )
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        if self.lr_schedule == "constant":
            return optimizer
        if self.lr_schedule == "exponential":
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=self.lr_decay)]
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ConfigurationError(
                f"lr_schedule='cosine' ends with the last epoch, but max_epochs is {epochs}; pass a number to Trainer."
            )
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)]

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], score: Metric, *, on_step: bool) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss: Tensor = self.loss_fn(outputs, targets)
        score(outputs, targets)
        size = len(targets)
        self.log(f"{stage}_loss", loss, on_step=on_step, on_epoch=not on_step, batch_size=size)
        self.log(f"{stage}_{self.score_name}", score, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return loss


class MLPClassifier(_Perceptron):
    """A multilayer perceptron with cross-entropy; logs ``{train,val,test}_loss`` and ``_accuracy``.

    Args:
        widths: Width of every layer, input first, number of classes last.
        activation: Activation between the layers.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        lr: Initial learning rate.
        weight_decay: Weight decay of the optimiser: decoupled for AdamW, a quadratic penalty for SGD.
        lr_schedule: "constant"; "exponential": multiplied by ``lr_decay`` after every epoch; "cosine": decreases to
            zero over the Trainer's ``max_epochs``.
        lr_decay: Factor of the exponential schedule.

    Raises:
        ConfigurationError: If an argument is out of range.

    Example:
        >>> MLPClassifier([64, 32, 10])(torch.zeros(3, 8, 8)).shape
        torch.Size([3, 10])
    """

    score_name = "accuracy"

    def __init__(
        self,
        widths: Sequence[int] = (64, 32, 10),
        *,
        activation: Activation = "relu",
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "constant",
        lr_decay: float = 0.9,
    ) -> None:
        super().__init__(
            widths,
            activation=activation,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            lr_decay=lr_decay,
        )
        self.loss_fn = nn.CrossEntropyLoss()
        self.train_score = MulticlassAccuracy(widths[-1], average="micro")
        self.val_score = MulticlassAccuracy(widths[-1], average="micro")


class MLPRegressor(_Perceptron):
    """A multilayer perceptron with mean squared error; logs ``{train,val,test}_loss`` and ``_absolute_error``.

    Targets are float of shape (batch, widths[-1]).

    Args:
        widths: Width of every layer, input first, number of targets last.
        activation: Activation between the layers.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        lr: Initial learning rate.
        weight_decay: Weight decay of the optimiser.
        lr_schedule: "constant", "exponential" or "cosine", as in :class:`MLPClassifier`.
        lr_decay: Factor of the exponential schedule.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    score_name = "absolute_error"

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation = "tanh",
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "constant",
        lr_decay: float = 0.9,
    ) -> None:
        super().__init__(
            widths,
            activation=activation,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            lr_decay=lr_decay,
        )
        self.loss_fn = nn.MSELoss()
        self.train_score = MeanAbsoluteError()
        self.val_score = MeanAbsoluteError()
