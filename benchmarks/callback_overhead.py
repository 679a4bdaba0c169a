"""What do the callbacks cost? Seconds of a fit with and without them, and the share of each part.

The digits demo, and 784-600-600-10 when --data names a folder with the four IDX files of MNIST. Run:

    python benchmarks/callback_overhead.py [--data FOLDER] [--repeats 3] [--epochs-digits 15] [--epochs-mnist 3]
        [--epochs-budget 8]

Fits with and without are run in turn in one process; printed are medians and their ratio. Then, on MNIST, the share
that `max_overhead` lets measuring take: (seconds of measuring - grace) / seconds of training.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from lightning_sloppy import SloppyMonitor
from lightning_sloppy.demo import DigitsDataModule, IDXDataModule, MLPClassifier


def fit(
    make_data: Callable[[], LightningDataModule], widths: list[int], epochs: int, watch: bool
) -> tuple[float, dict]:
    """Seconds of one fit, and the seconds of each part of the monitor."""
    seed_everything(1, verbose=False)
    monitor = SloppyMonitor()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[monitor] if watch else [],
            default_root_dir=folder,
            accelerator="auto",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        data = make_data()
        start = time.perf_counter()
        trainer.fit(MLPClassifier(widths), datamodule=data)
        seconds = time.perf_counter() - start
    return seconds, {name: sum(m.cost.seconds for m in found) for name, found in monitor.measurements.items()}


def compare(
    name: str, make_data: Callable[[], LightningDataModule], widths: list[int], epochs: int, repeats: int
) -> None:
    """Fit in turn with and without, print medians."""
    plain, watched, parts = [], [], []
    for _ in range(repeats):
        plain.append(fit(make_data, widths, epochs, False)[0])
        seconds, part = fit(make_data, widths, epochs, True)
        watched.append(seconds)
        parts.append(part)
    without, with_them = statistics.median(plain), statistics.median(watched)
    print(f"{name}: without {without:.2f} s, with {with_them:.2f} s, ratio {with_them / without:.2f}")
    for part in parts[0]:
        seconds = statistics.median(found[part] for found in parts)
        print(f"  {part}: {seconds:.2f} s, {seconds / with_them:.1%} of the fit with callbacks")


def realised(
    make_data: Callable[[], LightningDataModule], widths: list[int], epochs: int, asked: float, grace: float
) -> str:
    """One fit within a budget, measured behind every fifth batch as far as the budget goes, and its realised share."""
    seed_everything(1, verbose=False)
    monitor = SloppyMonitor(every_n_steps=5, max_overhead=asked, grace_seconds=grace, bound=None, input=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[monitor],
            default_root_dir=folder,
            accelerator="auto",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(MLPClassifier(widths), datamodule=make_data())
    clock = monitor.parts[-1].state_dict()
    share = (clock["measuring_seconds"] - grace) / clock["training_seconds"]
    return (
        f"  max_overhead={asked}, grace {grace:g} s: realised {share:.4f}, {share / asked:.2f} of it; "
        f"{len(monitor.measurements['hessian'])} rounds, {clock['measuring_seconds']:.1f} s of measuring, "
        f"{clock['training_seconds']:.1f} s of training; {clock['work']['num_samples']} samples at the end"
    )


def main() -> None:
    """Run both comparisons, and the budgets when there are data whose training lasts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs-digits", type=int, default=15)
    parser.add_argument("--epochs-mnist", type=int, default=3)
    parser.add_argument("--epochs-budget", type=int, default=8)
    options = parser.parse_args()
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}; median of {options.repeats}, in turn, measuring after every epoch")
    compare(
        "digits 64-48-32-10", lambda: DigitsDataModule(64), [64, 48, 32, 10], options.epochs_digits, options.repeats
    )
    if options.data is not None:
        compare(
            "MNIST 784-600-600-10",
            lambda: IDXDataModule(options.data),
            [784, 600, 600, 10],
            options.epochs_mnist,
            options.repeats,
        )
        for asked in (0.02, 0.05, 0.1):
            print(realised(lambda: IDXDataModule(options.data), [784, 600, 600, 10], options.epochs_budget, asked, 1.0))


if __name__ == "__main__":
    main()
