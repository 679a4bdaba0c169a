"""How much time does PACBayesBound add to an epoch, with its defaults?"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import certificates
import common
from lightning.pytorch import Trainer, seed_everything

from lightning_sloppy import HessianSpectrum, PACBayesBound, Schedule
from lightning_sloppy.demo import IDXDataModule


def main() -> None:
    """One row for each network: seconds of an evaluation against those of an epoch without measuring, in one fit."""
    options = common.arguments(__doc__, epochs=10)
    certificates.quiet()
    rows = []
    networks = {"784-600-600-10": certificates.fully_connected, "LeNet": certificates.lenet}
    for name, make in networks.items():
        seed_everything(1, verbose=False)
        epochs = 1 if options.quick else options.epochs
        # A cheap Hessian: what the bound costs does not depend on how its ten pairs were found.
        hessian = HessianSpectrum(schedule=Schedule(max_overhead=None), num_samples=256, probes=2, steps=5)
        bound = PACBayesBound(strict=True)
        net = make(784, 600, 600, 10) if name != "LeNet" else make()
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                max_epochs=epochs, callbacks=[hessian, bound], default_root_dir=scratch, **certificates.PLAIN
            )
            trainer.fit(certificates.Network(net), datamodule=IDXDataModule(str(options.data / "mnist")))
        clock = hessian.state_dict()
        epoch = clock["training_seconds"] / epochs
        seconds = [m.cost.seconds for m in bound.measurements[1:]]
        row: dict[str, Any] = {
            "network": name,
            "seconds per epoch": epoch,
            "seconds per evaluation, median": statistics.median(seconds),
            "longest": max(seconds),
            "fraction of an epoch": statistics.median(seconds) / epoch,
        }
        rows.append(row)
        print(row, flush=True)
    common.report(
        "live_bound", __doc__, rows, ["n = 55,000, batches of 128, one evaluation after each epoch."], options
    )


if __name__ == "__main__":
    main()
