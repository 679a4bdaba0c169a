"""One fit with every part of the monitor; run as a script it is one rank of several, told by the environment."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

from lightning.pytorch import seed_everything
from tiny import Classifier, blobs, trainer
from torch.utils.data import DataLoader

from lightning_sloppy import FisherOptions, HessianOptions, SloppyMonitor, StoppingOptions


def fit(folder: Path, **options) -> dict[str, float]:
    """What the monitors hold after the fit, and the number of epochs."""
    seed_everything(5, verbose=False)
    watcher = SloppyMonitor(
        hessian=HessianOptions(k=2, num_samples=32),
        fisher=FisherOptions(num_samples=32),
        early_stopping=StoppingOptions(patience=1, rel_tol=0.9, warmup=0),
        strict=True,
    )
    host = trainer(folder, callbacks=[watcher], max_epochs=3, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(40), 8))
    return {**{tag: float(value) for tag, value in host.callback_metrics.items()}, "epochs": host.current_epoch}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    found = fit(target.parent, strategy="ddp", devices=2)
    target.write_text(json.dumps(found))
    # Not sys.exit: torch's own threads may still run then, and their end at exit is a race (SIGABRT, now and again).
    sys.stdout.flush()
    os._exit(0)
