"""A fit that can be killed at any batch; run as a script it kills itself."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor
from support.tiny import Classifier, blobs, trainer


class Resumable(DataLoader):
    """A fixed order; goes on behind the batch that was given last."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        behind, self.given = self.given % len(self), 0
        for batch in super().__iter__():
            self.given += 1
            if self.given > behind:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class Kill(Callback):
    """The process, without any farewell, while a batch is trained on."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.batch - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(
    folder: Path, *, kill_at: int = 0, checkpoint: Path | None = None, logged: bool = False
) -> tuple[Trainer, SloppyMonitor]:
    """Four epochs of four batches, a checkpoint behind every batch."""
    seed_everything(0, verbose=False)
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=16),
        fisher=FisherSpectrum(num_samples=16),
        every_n_steps=2,
        strict=True,
    )
    keep = ModelCheckpoint(folder, filename="run", every_n_train_steps=1, save_last=True)
    callbacks = [watcher, keep, *([Kill(kill_at)] if kill_at else [])]
    logger = TensorBoardLogger(folder, name="logs", version="run") if logged else False
    host = trainer(folder, callbacks=callbacks, max_epochs=4, enable_checkpointing=True, logger=logger)
    host.fit(Classifier(), Resumable(blobs(64), 16), ckpt_path=checkpoint)
    return host, watcher


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fit(Path(sys.argv[1]).parent, kill_at=int(sys.argv[2]), logged="logged" in sys.argv)
