"""A script as people write it: Lightning itself starts the second process."""

from __future__ import annotations

import atexit
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor
from support import ranks
from support.tiny import Classifier, blobs, trainer


class Writes(Callback):
    """Every rank writes what its monitors hold."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))
        if trainer.world_size > 1:
            atexit.register(ranks.leave)


def fit(folder: Path, **options: Any) -> None:
    """Every part but early stopping."""
    seed_everything(5, verbose=False)
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=32), fisher=FisherSpectrum(num_samples=32), strict=True
    )
    host = trainer(folder, callbacks=[watcher, Writes()], max_epochs=2, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(40), 8))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fit(Path(sys.argv[1]), strategy=sys.argv[2], devices=2)
    ranks.leave()
