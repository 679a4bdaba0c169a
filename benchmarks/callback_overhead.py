"""How much time and memory do the callbacks add to a training, with their defaults?"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import SloppyMonitor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import zoo


class Classifier(zoo.Trained):
    """A network with Adam and cross-entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores."""
        return self.net(inputs)


WEIGHED = ("mlp", "lenet", "resnet", "gpt")
"""Networks whose memory is measured. The others are smaller."""

Problem = tuple[LightningModule, DataLoader[Any], Any, int]
"""Module, loader, objective, epochs."""


def problem(name: str, options: Any) -> Problem:
    """A fresh one."""
    seed_everything(1, verbose=False)
    if name in zoo.ZOO:
        zoo.COUNT = 80 if options.quick else 2400
        module, loader, objective = zoo.made(name)
        return module, loader, objective, 2 if options.quick else EPOCHS[name]
    count = 1_000 if options.quick else 20_000
    data = TensorDataset(*common.mnist(options.data, count, "cpu"))
    net = common.mlp() if name == "mlp" else common.lenet()
    return Classifier(net), DataLoader(data, 128, shuffle=True), None, 2 if options.quick else EPOCHS[name]


EPOCHS = {
    "mlp": 12,
    "lenet": 8,
    "resnet": 4,
    "gpt": 4,
    "lstm": 4,
    "autoencoder": 8,
    "gan": 3,
    "dict batches": 8,
    "lora": 8,
    "multi-label": 8,
    "segmentation": 5,
}
"""Some ten seconds of training each, a minute for the first."""


def fit(
    name: str, options: Any, make: Callable[[Any], SloppyMonitor] | None, epochs: int | None = None
) -> tuple[float, SloppyMonitor | None]:
    """Seconds of one fit, and its monitor."""
    module, loader, objective, usual = problem(name, options)
    monitor = None if make is None else make(objective)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs or usual,
            callbacks=[] if monitor is None else [monitor],
            default_root_dir=folder,
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        start = time.perf_counter()
        trainer.fit(module, loader)
        return time.perf_counter() - start, monitor


def default(objective: Any) -> SloppyMonitor:
    """All parts, after every epoch."""
    return SloppyMonitor(loss_fn=objective)


def peak(name: str, options: Any, watched: bool) -> float:
    """Highest resident memory of a process that does one fit, in MB."""
    quiet()
    fit(name, options, default if watched else None)
    # Not getrusage, which passes on the peak of the process that started this one.
    with open("/proc/self/status", encoding="ascii") as table:
        return next(int(line.split()[1]) for line in table if line.startswith("VmHWM")) / 1024


def quiet() -> None:
    """No advice from Lightning."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main() -> None:
    """One row for each network."""
    options = common.arguments(__doc__)
    quiet()
    rows = []
    for name in EPOCHS:
        plain, watched = [], []
        for _ in range(options.repeats):
            plain.append(fit(name, options, None)[0])
            watched.append(fit(name, options, default)[0])
        row: dict[str, Any] = {
            "network": name,
            "without callbacks, s": statistics.median(plain),
            "with defaults, s": statistics.median(watched),
        }
        if name in WEIGHED:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                without, with_all = (pool.apply(peak, (name, options, watch)) for watch in (False, True))
            row["additional peak memory, MB"] = with_all - without
        rows.append(row)
        print(row, flush=True)
        common.report("callback_overhead", __doc__, rows, remarks(options), options)


def remarks(options: Any) -> list[str]:
    """What the numbers mean."""
    return [
        f"Trainings without and with the callbacks alternate, {options.repeats} of each. With the defaults, every "
        "callback measures after every epoch, and the first 60 s of measuring do not count against max_overhead. "
        "Most of these trainings are shorter than that.",
        "Peak memory is measured in a separate process per fit.",
    ]


if __name__ == "__main__":
    main()
