"""The only file that touches private names of Lightning; checked against lightning 2.5 and 2.6."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


def effective_batches(trainer: Trainer) -> int:
    """Effective batches finished before the current one: Lightning's own x-value of all curves.

    Under manual optimisation ``global_step`` counts optimiser steps, which differ (``logger_connector.log_metrics``).
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def batch_steps(trainer: Trainer) -> bool:
    """Whether the batch that just ended completes an effective batch, and is no mere part of an accumulated one."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def batch_number(trainer: Trainer) -> int:
    """Of the current batch in the whole training, accumulated ones one by one."""
    return int(trainer.fit_loop.epoch_loop.total_batch_idx)


def fraction_done(trainer: Trainer) -> float | None:
    """Share of the planned training that is behind, in (0, 1]; None when no end is planned."""
    fractions = []
    if trainer.max_steps > 0:
        fractions.append(trainer.global_step / trainer.max_steps)
    batches = _planned_batches(trainer)
    if batches is not None:
        fractions.append((batch_number(trainer) + 1) / batches)
    return min(max(fractions), 1.0) if fractions and max(fractions) > 0 else None


def has_planned_end(trainer: Trainer) -> bool:
    """Whether it is known how long the training will be, unless somebody stops it."""
    return trainer.max_steps > 0 or _planned_batches(trainer) is not None


def _planned_batches(trainer: Trainer) -> float | None:
    batches = trainer.num_training_batches * (trainer.max_epochs or -1)
    return batches if 0 < batches < math.inf else None


def gradients_are_scaled(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the optimiser itself takes the loss scale of 16-mixed out of the gradients, later than any hook."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch that just ended was the last of its epoch, also for loaders without a length."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def epochs_done(trainer: Trainer, *, within: bool) -> float:
    """Epochs that are done, with the part of the current one.

    Args:
        trainer: Running.
        within: Whether a batch of the current epoch has been run in this process; else the progress may be that of the
            epoch before.
    """
    planned, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress.current.ready
    part = done / planned if 0 < planned < math.inf else 0.5 * (done > 0)
    if within:
        part = 1.0 if is_last_batch(trainer) else min(part, 1.0)
    return trainer.current_epoch + (part if within or part < 1 else 0.0)


def training_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All training loaders, flattened; reading this attribute starts no iterator."""
    return [leaf for leaf in pytree.tree_leaves(trainer.train_dataloader) if leaf is not None]


def validation_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All validation loaders, flattened; empty when there is no validation."""
    loaders = trainer.val_dataloaders
    return [leaf for leaf in pytree.tree_leaves(loaders) if leaf is not None]


def has_validation(trainer: Trainer) -> bool:
    """Whether there are validation samples, whatever the Trainer does with them."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def held_out_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All validation loaders, also where the Trainer does not validate or has not begun to."""
    if not has_validation(trainer):
        return []
    loaders = trainer.val_dataloaders
    if loaders is None:
        loaders = trainer.fit_loop.epoch_loop.val_loop._data_source.dataloader()
    loaders = getattr(loaders, "iterables", loaders)  # of a CombinedLoader
    return [leaf for leaf in pytree.tree_leaves(loaders) if leaf is not None]


def as_training_sees_it(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Run a collated batch through the conversions and hooks of ``training_epoch_loop.advance``, in its order."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def steers_by_validation(trainer: Trainer) -> bool:
    """Whether a learning-rate schedule reacts to a monitored value."""
    return any(bool(config.reduce_on_plateau) for config in trainer.lr_scheduler_configs)


def reloads_loaders(trainer: Trainer) -> bool:
    """Whether the loaders are made anew every few epochs."""
    return bool(trainer.reload_dataloaders_every_n_epochs)


def fits_on(trainer: Trainer, datamodule: Any) -> bool:
    """Whether the running fit takes its samples from this data module: an earlier one may still hang on the Trainer."""
    return trainer.fit_loop._data_source.instance is datamodule


def weights_file(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint with the weights alone holds, made on this rank without waiting for others."""
    return dict(trainer._checkpoint_connector.dump_checkpoint(weights_only=True))


def process_group_seconds(trainer: Trainer) -> float:
    """How long processes wait for one another before they give up; infinite for a process alone."""
    timeout = getattr(trainer.strategy, "_timeout", None)
    return math.inf if trainer.world_size == 1 or timeout is None else float(timeout.total_seconds())


def strategy_is_supported(trainer: Trainer) -> bool:
    """Single device and data parallelism: every rank holds all parameters. Sharded ones have no double backward."""
    names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return bool(names & {"SingleDeviceStrategy", "DDPStrategy"})


def root_device(trainer: Trainer) -> torch.device:
    """Device of this rank."""
    return trainer.strategy.root_device
