"""The only file that touches private names of Lightning; checked against lightning 2.5 and 2.6."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from lightning_sloppy.probing.muted import (
    Muted,
    Nothing,
    muted_logger,
    muted_optimizer,
    muted_scheduler,
    target_of,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


def effective_batches(trainer: Trainer) -> int:
    """Effective batches finished before the current one: Lightning's own x-value of all curves.

    Under manual optimisation ``global_step`` counts optimiser steps, which differ (``logger_connector.log_metrics``).
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def batch_steps(trainer: Trainer) -> bool:
    """Whether the batch that just ended completes an effective batch, so that it is not followed by accumulation."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def batch_number(trainer: Trainer) -> int:
    """Number of the current batch in the whole training. Accumulated batches are counted separately."""
    return int(trainer.fit_loop.epoch_loop.total_batch_idx)


def fraction_done(trainer: Trainer) -> float | None:
    """Fraction of the planned training that is done, in (0, 1]; None if no end is planned."""
    fractions = []
    if trainer.max_steps > 0:
        fractions.append(trainer.global_step / trainer.max_steps)
    batches = _planned_batches(trainer)
    if batches is not None:
        fractions.append((batch_number(trainer) + 1) / batches)
    return min(max(fractions), 1.0) if fractions and max(fractions) > 0 else None


def has_planned_end(trainer: Trainer) -> bool:
    """Whether the length of the training is known, apart from an early stop."""
    return trainer.max_steps > 0 or _planned_batches(trainer) is not None


def _planned_batches(trainer: Trainer) -> float | None:
    batches = trainer.num_training_batches * (trainer.max_epochs or -1)
    return batches if 0 < batches < math.inf else None


def gradients_are_scaled(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the optimiser itself removes the loss scale of 16-mixed from the gradients, later than any hook."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch that just ended was the last of its epoch, also for loaders without a length."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def epochs_done(trainer: Trainer, *, within: bool) -> float:
    """Number of epochs done, including the fraction of the current one.

    Args:
        trainer: The running Trainer.
        within: Whether a batch of the current epoch has run in this process. Otherwise the progress may be that of the
            epoch before.
    """
    planned, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress.current.ready
    part = done / planned if 0 < planned < math.inf else 0.5 * (done > 0)
    if within:
        part = 1.0 if is_last_batch(trainer) else min(part, 1.0)
    return trainer.current_epoch + (part if within or part < 1 else 0.0)


def steps_of_an_epoch(trainer: Trainer) -> int | None:
    """Effective batches of one epoch, as they are accumulated now; None if the loader does not know its length."""
    planned = trainer.num_training_batches
    return math.ceil(planned / trainer.accumulate_grad_batches) if 0 < planned < math.inf else None


def metrics_so_far(trainer: Trainer) -> dict[str, Any]:
    """The logged metrics as of the last time that they were read or an epoch ended.

    Reading ``trainer.callback_metrics`` may compute metrics with reductions over the ranks, for which rank 0 alone
    would wait forever.
    """
    return dict(trainer._logger_connector._callback_metrics)


def logger_prefix(logger: object) -> str:
    """What a logger of Lightning puts before the names of scalars, with its separator; "" for others."""
    prefix = getattr(logger, "_prefix", None)
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if isinstance(prefix, str) and prefix else ""


def training_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All training loaders, flattened. Reading this attribute does not start an iterator."""
    return [leaf for leaf in pytree.tree_leaves(trainer.train_dataloader) if leaf is not None]


def validation_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All validation loaders, flattened; empty if there is no validation."""
    loaders = trainer.val_dataloaders
    return [leaf for leaf in pytree.tree_leaves(loaders) if leaf is not None]


def has_validation(trainer: Trainer) -> bool:
    """Whether there are validation samples, even if the Trainer does not use them."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def held_out_loaders(trainer: Trainer) -> list[DataLoader[Any]]:
    """All validation loaders, even if the Trainer does not validate or has not started to."""
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
    """Whether the loaders are recreated every few epochs."""
    return bool(trainer.reload_dataloaders_every_n_epochs)


def fits_on(trainer: Trainer, datamodule: Any) -> bool:
    """Whether the running fit uses this data module. The Trainer may still refer to one of an earlier fit."""
    return trainer.fit_loop._data_source.instance is datamodule


def weights_file(trainer: Trainer) -> dict[str, Any]:
    """The content of a checkpoint of the weights alone, made on this rank without waiting for others."""
    return dict(trainer._checkpoint_connector.dump_checkpoint(weights_only=True))


def process_group_seconds(trainer: Trainer) -> float:
    """Timeout in seconds after which processes stop waiting for one another; infinite for a single process."""
    timeout = getattr(trainer.strategy, "_timeout", None)
    return math.inf if trainer.world_size == 1 or timeout is None else float(timeout.total_seconds())


def strategy_is_supported(trainer: Trainer) -> bool:
    """Single device and data parallelism: every rank holds all parameters. Sharded ones have no double backward."""
    names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return bool(names & {"SingleDeviceStrategy", "DDPStrategy"})


def wait_for_device(trainer: Trainer) -> None:
    """Wait for the work queued on the device, so that seconds of training do not count as seconds of measuring."""
    device = root_device(trainer)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def obey_sigterm(trainer: Trainer) -> None:
    """End the run if a SIGTERM was received. Lightning checks this only between batches.

    Raises:
        SIGTERMException: If a SIGTERM was received, as in Lightning's loops.
    """
    if trainer.received_sigterm:
        raise SIGTERMException


def root_device(trainer: Trainer) -> torch.device:
    """Device of this rank."""
    return trainer.strategy.root_device


def real_trainer(module: nn.Module) -> Any:
    """The Trainer that a module is attached to, even while it is replaced; None without a Trainer."""
    return target_of(vars(module).get("_trainer"))


def attach(module: nn.Module, trainer: Any) -> None:
    """Set the Trainer, or its replacement, on every LightningModule inside. Without it ``self.log`` does nothing."""
    for child in module.modules():
        if "_trainer" in vars(child):
            vars(child)["_trainer"] = trainer


def stand_ins(trainer: Any) -> dict[int, Any]:
    """Replacements without effects for a Trainer and its loggers, optimisers and schedules, by identity.

    Loggers and experiments write nothing, optimisers and learning-rate schedules do not step, and the Trainer saves,
    prints and stops nothing. Everything can still be read.
    """
    found: dict[int, Any] = {}
    for logger in trainer.loggers:
        found[id(logger)] = muted_logger(logger)
        experiment = getattr(logger, "_experiment", None)  # the public attribute would create one
        if experiment is not None:
            found[id(experiment)] = Nothing()
    strategy = trainer.strategy
    for optimizer in trainer.optimizers:
        found[id(optimizer)] = muted_optimizer(optimizer)
    wrapped = list(getattr(strategy, "_lightning_optimizers", []))
    for each in wrapped:
        inner = found.get(id(each.optimizer), each.optimizer)
        found[id(each)] = muted_optimizer(each, optimizer=inner, param_groups=inner.param_groups)
    configs = []
    for config in trainer.lr_scheduler_configs:
        inner = getattr(config.scheduler, "optimizer", None)
        muted = muted_scheduler(config.scheduler, optimizer=found.get(id(inner), inner))
        found[id(config.scheduler)] = muted
        configs.append(dataclasses.replace(config, scheduler=muted))
    optimizers = [found[id(each)] for each in trainer.optimizers]
    shared = {"optimizers": optimizers, "lr_scheduler_configs": configs}
    found[id(strategy)] = Muted(
        strategy,
        silent=("backward", "optimizer_step", "save_checkpoint"),
        replaced={**shared, "_lightning_optimizers": [found[id(each)] for each in wrapped]},
    )
    loggers = [found[id(logger)] for logger in trainer.loggers]
    metrics = {name: dict(getattr(trainer, name)) for name in METRICS}
    found[id(trainer)] = Muted(
        trainer,
        silent=("save_checkpoint", "print"),
        replaced={
            **shared,
            **metrics,
            "loggers": loggers,
            "logger": loggers[0] if loggers else None,
            "strategy": found[id(strategy)],
        },
    )
    return found


METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
"""Tables of the Trainer that a module may write to."""


def as_written(module: nn.Module) -> None:
    """Remove the methods that ``fit(torch.compile(module))`` has set on a module. They belong to the original."""
    if vars(module).get("_compiler_ctx") is not None:
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            vars(module).pop(name, None)
        vars(module)["_compiler_ctx"] = None


def step_context(trainer: Trainer) -> AbstractContextManager[None]:
    """Context with the precision in which the training calls its step, if it is not the data type of the weights."""
    plugin = trainer.precision_plugin
    mixed = str(getattr(plugin, "precision", "")).endswith("-mixed")
    return plugin.train_step_context() if mixed else nullcontext()


def loss_of_the_step(trainer: Trainer, scaled: Tensor) -> float:
    """The loss that ``training_step`` returned, from the tensor whose backward is about to start.

    Lightning has divided it by the number of accumulated batches, and 16-mixed has multiplied it by the loss scale.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return float(scaled.detach()) * trainer.accumulate_grad_batches / scale
