"""A checkpoint that is measured or certified without training: its file, its weights, and a fit without a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_sloppy.errors import ConfigurationError


def opened_checkpoint(ckpt_path: str | None, weights_only: bool) -> dict[str, Any]:
    """The contents of a checkpoint.

    Args:
        ckpt_path: The file.
        weights_only: Whether to read plain values only.

    Raises:
        ConfigurationError: If it is not a checkpoint.
    """
    if ckpt_path is None:
        raise ConfigurationError("No checkpoint is named; pass --ckpt_path with a file written by a fit.")
    if not Path(ckpt_path).is_file():
        raise ConfigurationError(f"There is no checkpoint {ckpt_path}; pass --ckpt_path with a file written by a fit.")
    try:
        state = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        raise ConfigurationError(
            f"{ckpt_path} cannot be read ({type(error).__name__}); if it is a checkpoint that you trust and that "
            "contains more than plain values, pass --weights_only false."
        ) from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise ConfigurationError(f"{ckpt_path} is not a checkpoint of Lightning; pass a file written by a fit.")
    return state


def load_weights(model: LightningModule, state: dict[str, Any], ckpt_path: str | None) -> None:
    """Load the weights of a checkpoint.

    Raises:
        ConfigurationError: For a checkpoint of another model.
    """
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ConfigurationError(
            f"{ckpt_path} contains the weights of another model than the configured {type(model).__name__}; use "
            f"the configuration of its training. {' '.join(str(error).split()[:40])}"
        ) from error


def fit_without_step(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, callbacks: list[Callback]
) -> None:
    """Run the hooks of a fit, with these callbacks only, and end before its first step.

    Args:
        trainer: The Trainer. Of its own callbacks, the progress bar remains.
        model: The module.
        datamodule: Its data.
        callbacks: What is called at the start and the end of the fit.
    """
    shown: list[Callback] = [peer for peer in trainer.callbacks if isinstance(peer, ProgressBar)]
    trainer.callbacks = [*shown, _NoStep(), *callbacks]
    trainer.num_sanity_val_steps = 0
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None
    trainer.fit(model, datamodule=datamodule)


class _NoStep(Callback):
    """Ends the fit before its first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
