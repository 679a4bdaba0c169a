"""A checkpoint that is measured or certified without training: its file, its weights, and a fit without a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from lightning_sloppy.compression.matrix_layers import find_layers
from lightning_sloppy.compression.structure import Structure, restructured, structure_in
from lightning_sloppy.errors import ConfigurationError

STRUCTURE = "LowRank"
"""Where a compressed checkpoint has its structure: the state of this callback."""

MOST_STRUCTURES = 10**12
"""Structures that a certificate can be charged for. The number of an evaluation is the seed of its random stream."""


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
    """Load the weights of a checkpoint. If it is a compressed one, the layers of the model are replaced first.

    Raises:
        ConfigurationError: For a checkpoint of another model.
    """
    make_structure(model, state["state_dict"])
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ConfigurationError(
            f"{ckpt_path} contains the weights of another model than the configured {type(model).__name__}; use "
            f"the configuration of its training. {' '.join(str(error).split()[:40])}"
        ) from error


def make_structure(model: nn.Module, weights: Mapping[str, Any]) -> Structure:
    """Replace the layers of a model that have become pairs in the weights of a compressed checkpoint.

    Args:
        model: The model.
        weights: The ``state_dict`` of the checkpoint.

    Returns:
        Rank by name of the layers that were replaced; empty for a checkpoint that is not compressed.
    """
    structure = structure_in(model, weights)
    restructured(model, structure)
    return structure


def number_of_structures(model: nn.Module) -> int:
    """How many structures the compression of a model could have had: the product of the choices of all its layers.

    Raises:
        ConfigurationError: If there are too many for a certificate.
    """
    count = math.prod(layer.largest_rank + 1 for layer in find_layers(model) if not layer.reason)
    if count > MOST_STRUCTURES:
        raise ConfigurationError(
            f"The ranks of {type(model).__name__} can be combined in about 10^{math.log10(count):.0f} ways, and a "
            f"certificate must hold for all of them, which it can for at most 10^{math.log10(MOST_STRUCTURES):.0f}; "
            "certify the checkpoint that was compressed."
        )
    return count


def is_compressed(path: object, model: nn.Module, *, weights_only: bool = True) -> bool:
    """Whether a file is a compressed checkpoint of a model. One that cannot be read is not: its loading says why."""
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return False
    try:
        return bool(structure_in(model, opened_checkpoint(str(path), weights_only)["state_dict"]))
    except ConfigurationError:
        return False


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
    if trainer.max_epochs is None and trainer.max_steps < 0:
        trainer.fit_loop.max_epochs = 1  # else Lightning warns that there is no limit
    trainer.fit(model, datamodule=datamodule)


class _NoStep(Callback):
    """Ends the fit before its first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
