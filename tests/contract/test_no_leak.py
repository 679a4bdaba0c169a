"""Measuring for ever takes no more memory than measuring once."""

from __future__ import annotations

import gc
import resource
import warnings

import torch
from tiny import Classifier, loader, trainer

from lightning_sloppy import FisherOptions, HessianOptions, SloppyMonitor


def live_tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects of torch answer isinstance with advice
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as table:
        return int(table.read().split()[1]) * resource.getpagesize()


def test_two_hundred_measurements_leave_nothing(tmp_path):
    """The history keeps k + N numbers of each measurement, and nothing else grows."""
    seen: dict[int, tuple[int, int]] = {}

    class Looking(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch in (20, 100, 199):
                seen[self.current_epoch] = (live_tensors(), resident_bytes())

    before = set(vars(torch.nn.Module)), torch.utils.checkpoint.CheckpointFunction
    watcher = SloppyMonitor(
        input=None, hessian=HessianOptions(k=2, num_samples=16), fisher=FisherOptions(num_samples=16), max_overhead=None
    )
    module = Looking()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(module, loader())
    assert len(watcher.measurements["hessian"]) == 201
    # What the history holds of one round is constant, so two stretches of the run grow alike, and little.
    first, second = (seen[100][0] - seen[20][0]) / 80, (seen[199][0] - seen[100][0]) / 99
    assert first == second
    held = sum(
        isinstance(value, torch.Tensor)
        for group in ("hessian", "fisher")
        for value in vars(watcher.measurements[group][-1].spectrum).values()
    )
    assert second <= held + 8  # companions and densities besides
    assert seen[199][1] - seen[100][1] < 20 * 1024**2
    assert (set(vars(torch.nn.Module)), torch.utils.checkpoint.CheckpointFunction) == before
    assert not {"log", "log_dict"} & vars(module).keys()
