"""Measuring for ever takes no more memory than measuring once."""

from __future__ import annotations

import dataclasses
import gc
import resource
import warnings
from collections.abc import Mapping

import pytest
import torch
from support.tiny import Classifier, loader, trainer

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor


def live_tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects of torch answer isinstance with advice
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def held(thing: object) -> int:
    """Tensors in a record and the records in it."""
    if isinstance(thing, torch.Tensor):
        return 1
    if dataclasses.is_dataclass(thing):
        return sum(held(value) for value in vars(thing).values())
    if isinstance(thing, Mapping):
        return sum(held(value) for value in thing.values())
    return sum(map(held, thing)) if isinstance(thing, (list, tuple)) else 0


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as table:
        return int(table.read().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_fifty_measurements_leave_nothing(tmp_path):
    """The history keeps k + N numbers of each measurement, and nothing else grows."""
    seen: dict[int, tuple[int, int]] = {}

    class Looking(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch in (10, 30, 49):
                seen[self.current_epoch] = (live_tensors(), resident_bytes())

    before = set(vars(torch.nn.Module)), torch.utils.checkpoint.CheckpointFunction
    watcher = SloppyMonitor(
        input=None,
        hessian=HessianSpectrum(k=2, num_samples=16),
        fisher=FisherSpectrum(num_samples=16),
        max_overhead=None,
    )
    module = Looking()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(module, loader())
    assert len(watcher.measurements["hessian"]) == 51
    # What the history holds of one round is constant, so two stretches of the run grow alike.
    first, second = (seen[30][0] - seen[10][0]) / 20, (seen[49][0] - seen[30][0]) / 19
    assert first == second
    assert second <= sum(held(watcher.measurements[group][-1]) for group in ("jacobian", "hessian", "fisher", "bound"))
    assert seen[49][1] - seen[30][1] < 10 * 1024**2
    assert (set(vars(torch.nn.Module)), torch.utils.checkpoint.CheckpointFunction) == before
    assert not {"log", "log_dict"} & vars(module).keys()
