"""Train the runs of docs/you_see_this.md and draw their pictures: ``make pictures``, or this file with names of runs.

All runs use the handwritten digits of scikit-learn, fixed seeds and one thread, and measure at fixed steps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import TensorDataset

from lightning_sloppy import SloppyMonitor
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier
from lightning_sloppy.reporting.canvas import png
from lightning_sloppy.reporting.card import card
from lightning_sloppy.runs.run import Run

FOLDER = Path(__file__).parent / "pictures"


class RandomLabels(DigitsDataModule):
    """Training labels drawn at random; those of the validation samples are right."""

    def setup(self, stage: str) -> None:
        """Shuffle the labels of the training samples, once."""
        if self.train_set is None:
            super().setup(stage)
            assert self.train_set is not None
            inputs, targets = self.train_set.tensors
            order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
            self.train_set = TensorDataset(inputs, targets[order])


class RepeatedColumns(DigitsDataModule):
    """Every column three times."""

    def setup(self, stage: str) -> None:
        """Repeat the columns, once."""
        if self.train_set is None:
            super().setup(stage)
            assert self.train_set is not None
            assert self.val_set is not None
            self.train_set, self.val_set = (
                TensorDataset(inputs.repeat(1, 3), targets)
                for inputs, targets in (self.train_set.tensors, self.val_set.tensors)
            )


RUNS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "random_labels": {"widths": (64, 128, 10), "data": RandomLabels(64), "epochs": 60, "every": 4},
    "too_small": {"widths": (64, 2, 10)},
    "too_large_learning_rate": {"lr": 0.2},
    "repeated_columns": {"widths": (192, 48, 32, 10), "data": RepeatedColumns(64)},
    "vacuous_bound": {"widths": (64, 256, 10), "lr": 1e-2, "data": DigitsDataModule(32, val_fraction=0.85)},
}
"""What differs from the demo in each run."""


def fitted(
    widths: tuple[int, ...] = (64, 48, 32, 10),
    *,
    lr: float = 2e-3,
    data: DigitsDataModule | None = None,
    epochs: int = 15,
    every: int = 1,
) -> SloppyMonitor:
    """Train a network and measure it."""
    seed_everything(1, verbose=False)
    monitor = SloppyMonitor(every_n_epochs=every, max_overhead=None, picture=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=monitor,
            logger=CSVLogger(folder),
            log_every_n_steps=5,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(MLPClassifier(widths, lr=lr), data or DigitsDataModule(64))
    return monitor


def main() -> None:
    """Draw the pictures of all runs, or of those that are named."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        monitor = fitted(**RUNS[name])
        run: Run = monitor.record()
        (FOLDER / f"{name}.png").write_bytes(png(monitor.plot()))
        print(f"{name}\n{card(run).text()}\n", flush=True)


if __name__ == "__main__":
    main()
