"""A Trainer that can also compress a checkpoint, for ``lightning-sloppy compress``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from lightning_sloppy.callbacks.checkpoints import (
    STRUCTURE,
    fit_without_step,
    load_weights,
    opened_checkpoint,
)
from lightning_sloppy.callbacks.monitored import Direction, Monitored, chosen_metric
from lightning_sloppy.callbacks.spectrum_trainer import SpectrumTrainer
from lightning_sloppy.compression.compressed import Compressed
from lightning_sloppy.compression.compressing import EVALUATING, MOST_EVALUATIONS, compress
from lightning_sloppy.compression.sizes import stored_numbers
from lightning_sloppy.compression.structure import structure_in
from lightning_sloppy.compression.target import refuse_wrong_target
from lightning_sloppy.display import untold
from lightning_sloppy.errors import NO_SUCH_PART, ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, map_batch, sample_count
from lightning_sloppy.probing.context import fit_context
from lightning_sloppy.reporting.terminal_progress import told

OF_A_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")
"""Parts of a checkpoint that belong to the larger network."""


@dataclass(frozen=True)
class CompressedCheckpoint:
    """What ``compress`` has done with a checkpoint.

    Attributes:
        source: The checkpoint.
        out: The compressed checkpoint that was written.
        compressed: The compressed module, its table and its curve.
        monitored: The validation metric that chose the size; None if none did.
        target: What was asked for, in words.
        num_samples: Training samples that the statistics are from.
        tested: Test metrics before and after, by name; empty without a test part.
    """

    source: str
    out: str
    compressed: Compressed
    monitored: Monitored | None
    target: str
    num_samples: int
    tested: Mapping[str, tuple[float, float]]


class CompressingTrainer(SpectrumTrainer):
    """Lightning's Trainer with the additional methods ``certify``, ``spectrum`` and ``compress``.

    Attributes:
        compressed: What the latest call of ``compress`` has done, or None.
    """

    compressed: CompressedCheckpoint | None = None

    def compress(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        keep: float | None = None,
        size: float | None = None,
        max_drop: float | None = None,
        monitor: str | None = None,
        direction: Direction | None = None,
        num_samples: int = 8192,
        out: str = "small.ckpt",
        weights_only: bool | None = None,
    ) -> CompressedCheckpoint:
        """Compress a checkpoint: linear and convolution layers of low rank in the metric of the training data.

        The statistics are from training samples without a step; no callback runs. With ``max_drop`` the validation
        chooses the size: the smallest of a bisection whose metric is at most so much worse. Test samples, where there
        are any, judge the network before and after, and choose nothing.

        Args:
            model: The module as configured for the training.
            datamodule: Its training samples give the statistics, its validation samples choose.
            ckpt_path: The checkpoint.
            keep: Share of its output variance that every layer keeps, such as 0.99.
            size: At most this fraction of the size, such as 0.25.
            max_drop: Largest change of the validation metric to the worse, in its own unit, such as 0.005.
            monitor: The validation metric. null: the one monitored in the configuration, else the only score.
            direction: "max" or "min": whether larger or smaller values are better. null: from the configuration or the
                name.
            num_samples: Number of training samples for the statistics.
            out: The compressed checkpoint to write.
            weights_only: Read plain values only. Pass false for a file that you trust and that contains more. null:
                true.

        Returns:
            The compressed network, its table, and the metrics.

        Raises:
            ConfigurationError: Without a checkpoint, for one of another model or a compressed one, if not exactly one
                of ``keep``, ``size`` and ``max_drop`` is given, if the metric is not clear, or if nothing can be
                compressed.
        """
        refuse_wrong_target(keep, size, max_drop)
        if num_samples < 1:
            raise ConfigurationError(f"num_samples={num_samples} is out of range; pass at least 1.")
        _refuse_unwritable(out, ckpt_path)
        state = opened_checkpoint(ckpt_path, weights_only is not False)
        if structure_in(model, state["state_dict"]):
            raise ConfigurationError(f"{ckpt_path} is compressed already; compress the checkpoint that it was made of.")
        load_weights(model, state, ckpt_path)
        configured = list(self.callbacks)
        batches = self._batches(model, datamodule, num_samples)
        judge = _Judge(self, model, datamodule, max_drop, monitor, direction, configured)
        model.to(self.strategy.root_device)  # where the fit has taken it from
        evaluate = judge.score if judge.judges else None
        # The validation has Lightning's own bar, and the judge writes a line for each size.
        with told(None if self._shows_bars else untold, apart=[EVALUATING], lines=False) as progress:
            done = compress(
                model, batches, keep=keep, size=size, max_drop=max_drop, evaluate=evaluate, progress=progress
            )
        tested = judge.tested(done.module)
        done.module.cpu()  # as a checkpoint of a fit, it can be loaded anywhere
        self.compressed = CompressedCheckpoint(
            source=str(ckpt_path),
            out=out,
            compressed=done,
            monitored=judge.monitored,
            target=next(
                f"{name} {value:g}"
                for name, value in (("keep", keep), ("size", size), ("max_drop", max_drop))
                if value is not None
            ),
            num_samples=sum(map(sample_count, batches)),
            tested=tested,
        )
        if self.is_global_zero:
            _write(out, state, done)
        return self.compressed

    @property
    def _shows_bars(self) -> bool:
        bar = self.progress_bar_callback
        return self.is_global_zero and bar is not None and not getattr(bar, "is_disabled", False)

    def _batches(self, model: LightningModule, datamodule: LightningDataModule | None, num_samples: int) -> list[Batch]:
        """A random subset of the training samples, on the CPU."""
        reading = _Reading(num_samples)
        self.loggers = []
        self.log_every_n_steps = 1  # else Lightning warns that a short epoch logs nothing
        fit_without_step(self, model, datamodule, [reading])
        return reading.batches


class _Reading(Callback):
    """Reads training samples as the training would have received them.

    Args:
        num_samples: How many.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self.batches: list[Batch] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read them.

        Raises:
            ConfigurationError: If they cannot be read by index.
        """
        samples = fit_context(trainer, pl_module).samples
        if not samples.indexable(trainer):
            raise ConfigurationError(
                "A checkpoint is compressed with training samples that are read by index; give a data module with one "
                "map-style data set, or use compress() in Python with batches of your own."
            )
        found = samples.probe(trainer, self._num_samples, seed=0)
        self.batches = [map_batch(torch.Tensor.cpu, batch) for batch in found]


class _Judge:
    """Validation and test metrics of networks, by a Trainer without loggers and callbacks.

    Args:
        trainer: The Trainer.
        model: The network before.
        datamodule: Its data.
        max_drop: Whether the validation chooses; None if it only reports.
        monitor: The metric asked for, or None.
        direction: The direction asked for, or None.
        configured: The callbacks of the configuration.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        max_drop: float | None,
        monitor: str | None,
        direction: Direction | None,
        configured: list[Callback],
    ) -> None:
        self._trainer, self._model, self._datamodule = trainer, model, datamodule
        trainer.callbacks = [each for each in configured if isinstance(each, ProgressBar)]
        self.monitored: Monitored | None = None
        self._count = 0
        self._choosing = max_drop is not None
        self._before: float | None = None
        self._choose(monitor, direction, configured)
        self._tested_before = self._test(model)  # a mistake in it is told before the work

    def _choose(self, monitor: str | None, direction: Direction | None, configured: list[Callback]) -> None:
        """Validate the network before, and find the metric."""
        needed = self._choosing or monitor is not None
        if not self._has("validation_step", "val_dataloader"):
            if needed:
                raise ConfigurationError(
                    "max_drop and monitor need validation samples and a validation_step that logs the metric; add "
                    "them, or pass --size or --keep."
                )
            return
        logged = self._validate(self._model)
        try:
            self.monitored = chosen_metric(logged, monitor, direction, configured)
        except ConfigurationError:
            if needed:
                raise
        else:
            self._before = logged[self.monitored.name]

    @property
    def judges(self) -> bool:
        """Whether there is a metric."""
        return self.monitored is not None

    def score(self, module: nn.Module) -> float:
        """The validation metric of a network, larger is better."""
        assert self.monitored is not None
        self._count += 1
        if self._count == 1 and self._before is not None:
            return self.monitored.score(self._before)  # of the network before, which was just validated
        value = self._validate(module)[self.monitored.name]
        if self._choosing and self._trainer.is_global_zero:
            share = stored_numbers(module) / stored_numbers(self._model)
            count = f"{self._count} of at most {MOST_EVALUATIONS} evaluations"
            sys.stderr.write(f"  {100 * share:5.1f} % of the size: {self.monitored.name} {value:.4g} ({count})\n")
        return self.monitored.score(value)

    def tested(self, module: nn.Module) -> dict[str, tuple[float, float]]:
        """Test metrics before and after; empty without test samples."""
        after = self._test(module) if self._tested_before else {}
        return {name: (before, after[name]) for name, before in self._tested_before.items() if name in after}

    def _test(self, module: nn.Module) -> dict[str, float]:
        """Test metrics; empty without test samples."""
        if not self._has("test_step", "test_dataloader"):
            return {}
        try:
            return self._run("test", module)
        except ConfigurationError as error:
            if error.cause != NO_SUCH_PART:
                raise
            return {}

    def _has(self, step: str, loader: str) -> bool:
        originals = (getattr(LightningModule, loader), getattr(LightningDataModule, loader))
        loaders = [getattr(each, loader) for each in (self._model, self._datamodule) if each is not None]
        overridden = [getattr(each, "__func__", each) not in originals for each in loaders]
        return getattr(type(self._model), step) is not getattr(LightningModule, step) and any(overridden)

    def _validate(self, module: nn.Module) -> dict[str, float]:
        return self._run("validate", module)

    def _run(self, verb: str, module: nn.Module) -> dict[str, float]:
        results = getattr(self._trainer, verb)(module, datamodule=self._datamodule, verbose=False)
        return {name: float(value) for metrics in results for name, value in metrics.items()}


def _refuse_unwritable(out: str, ckpt_path: str | None) -> None:
    path = Path(out)
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{out} cannot be written; name a file in a folder that exists with --out.")
    if ckpt_path is not None and path.resolve() == Path(ckpt_path).resolve():
        raise ConfigurationError(f"--out {out} would overwrite the checkpoint itself; name another file.")


def _write(out: str, state: dict[str, Any], done: Compressed) -> None:
    """Write the checkpoint of the smaller network: as that of the larger one, without its optimiser and loops."""
    kept = {name: value for name, value in state.items() if name not in OF_A_TRAINING}
    made = {
        **kept,
        "state_dict": done.module.state_dict(),
        "callbacks": {STRUCTURE: {"structure": dict(done.structure)}},
    }
    part = Path(f"{out}.part")
    torch.save(made, part)
    part.replace(out)
