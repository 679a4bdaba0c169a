"""Are memory and time per measurement constant over 1,000 epochs with measurements?"""

from __future__ import annotations

import gc
import logging
import resource
import statistics
import tempfile
import time
import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Small(LightningModule):
    """40-30-10, which records the memory of the process from time to time."""

    def __init__(self, every: int, monitor: SloppyMonitor) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 10))
        self.every = every
        self.monitor = monitor
        self.seen: list[dict[str, Any]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.net(inputs)

    def training_step(self, batch: Any) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_train_epoch_start(self) -> None:
        """Count, without the history of measurements, which is kept on purpose and would grow."""
        if self.current_epoch % self.every == 0:
            seconds = statistics.median(m.cost.seconds for found in self.monitor.measurements.values() for m in found)
            for found in self.monitor.measurements.values():
                found.clear()
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            with open("/proc/self/statm", encoding="ascii") as table:
                pages = int(table.read().split()[1])
            resident = pages * resource.getpagesize() / 2**20
            self.seen.append(
                {
                    "epochs": self.current_epoch,
                    "resident memory, MB": resident,
                    "live tensors": tensors,
                    "seconds per measurement": seconds,
                }
            )


def main() -> None:
    """Fit, report."""
    options = common.arguments(__doc__)
    epochs = 50 if options.quick else 1000
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(256, 40, generator=rng), torch.randint(0, 10, (256,), generator=rng))
    monitor = SloppyMonitor(
        input=None,
        hessian=HessianSpectrum(k=3, num_samples=128),
        fisher=FisherSpectrum(num_samples=128),
        bound=None,
        max_overhead=None,
    )
    module = Small(epochs // 10, monitor)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=epochs,
            callbacks=[monitor],
            default_root_dir=folder,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(module, DataLoader(data, 64, shuffle=True))
    remarks = [
        f"{2 * epochs + 2:,} measurements in {time.perf_counter() - start:.0f} s, logged to TensorBoard. The history "
        "of measurements is cleared at every row. Each measurement in it holds 10 small tensors, 20 kB in total."
    ]
    common.report("soak", __doc__, module.seen, remarks, options)


if __name__ == "__main__":
    main()
