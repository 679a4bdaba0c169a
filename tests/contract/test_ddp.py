"""Two processes measure what one would, and stop together."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import seed_everything
from tiny import Classifier, blobs, trainer
from torch.utils.data import DataLoader

from lightning_sloppy import FisherOptions, HessianOptions, SloppyMonitor, StoppingOptions


def run(tmp_path, **options):
    seed_everything(5, verbose=False)
    watcher = SloppyMonitor(
        hessian=HessianOptions(k=2, num_samples=32),
        fisher=FisherOptions(num_samples=32),
        early_stopping=StoppingOptions(patience=1, rel_tol=0.9, warmup=0),
        strict=True,
    )
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=3, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(40), 8))
    return host


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*", "ignore:.*torch.distributed.*")
def test_two_processes_agree_with_one(tmp_path):
    alone = run(tmp_path / "one")
    together = run(tmp_path / "two", strategy="ddp_spawn", devices=2)
    tags = [tag for tag in alone.callback_metrics if tag.startswith("sloppy_") and "cost" not in tag]
    assert len(tags) > 50
    for tag in tags:
        mine, theirs = alone.callback_metrics[tag], together.callback_metrics[tag]
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6), tag
    # Both stopped after the first epoch: one evaluation at the start, one at its end.
    assert float(together.callback_metrics["sloppy_bound/evaluation"]) == 2
    assert alone.current_epoch == 1
