"""With the callbacks on, the trained weights are bitwise what they are without."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from support.tiny import Classifier, blobs, trainer
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor
from lightning_sloppy.callbacks.measuring import MeasuringCallback


def monitor(**options):
    return SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=24), fisher=FisherSpectrum(num_samples=24), strict=True, **options
    )


def run(tmp_path, callbacks, *, workers=0, generator=False, **options):
    seed_everything(7, verbose=False)
    model = Classifier(batch_norm=True, dropout=0.3)
    own = torch.Generator().manual_seed(3) if generator else None
    train = DataLoader(
        blobs(),
        16,
        shuffle=True,
        generator=own,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    host = trainer(tmp_path, callbacks=callbacks, max_epochs=3, **options)
    host.fit(model, train, DataLoader(blobs(seed=1), 16))
    streams = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.random())  # noqa: NPY002
    return model, host, streams


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"generator": True},
        {"workers": 1},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*", "ignore:.*overfit_batches.*", "ignore:.*fork.*")
@pytest.mark.filterwarnings("ignore:You requested to overfit.*")
def test_training_is_bitwise_the_same(tmp_path, options):
    plain, plain_host, plain_streams = run(tmp_path, [], **options)
    watcher = monitor()
    watched, watched_host, watched_streams = run(tmp_path, [watcher], **options)
    assert all(len(found) >= (1 if name == "input" else 4) for name, found in watcher.measurements.items())
    for (name, mine), theirs in zip(watched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert watched.seen == plain.seen
    for one, other in zip(watched_streams, plain_streams, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    for name, value in plain_host.callback_metrics.items():
        assert torch.equal(watched_host.callback_metrics[name], value), name
    states = [host.optimizers[0].state_dict()["state"] for host in (plain_host, watched_host)]
    for index, entry in states[0].items():
        assert torch.equal(entry["momentum_buffer"], states[1][index]["momentum_buffer"])


class Failing(MeasuringCallback):
    """Draws random numbers, moves every flag and buffer, then raises."""

    default_name = "fisher"

    def on_train_batch_end(self, host, module, outputs, batch, batch_idx):
        self.run(host, module, step=batch_idx)

    def take(self, host, module, context, step):
        torch.rand(3)
        np.random.rand()  # noqa: NPY002
        module.train()
        module.seen.append(1.0)
        module.extra = 3
        module(torch.randn(4, 6))
        module.accuracy.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
        raise RuntimeError("broken on purpose")


def test_a_failing_measurement_changes_nothing_and_warns_once(tmp_path):
    plain, _, plain_streams = run(tmp_path, [])
    with pytest.warns(UserWarning, match="training continues. RuntimeError: broken on purpose") as caught:
        watched, _, watched_streams = run(tmp_path, [Failing()])
    assert len([w for w in caught if "broken on purpose" in str(w.message)]) == 1
    for mine, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert watched.seen == plain.seen
    assert not hasattr(watched, "extra")
    assert torch.equal(plain_streams[0], watched_streams[0])


def test_strict_raises(tmp_path):
    with pytest.raises(RuntimeError, match="broken on purpose"):
        run(tmp_path, [Failing(strict=True)])


@pytest.mark.slow
def test_modules_kept_in_eval_mode_stay_so(tmp_path):
    model = Classifier(batch_norm=True)
    flags = []

    class Look(Callback):
        def on_train_batch_end(self, host, module, *_):
            flags.append([child.training for child in module.modules()])

    class Freeze(Callback):
        def on_train_epoch_start(self, host, module):
            module.net[1].eval()

    host = trainer(tmp_path, callbacks=[Freeze(), monitor(bound=None), Look()])
    host.fit(model, DataLoader(blobs(), 16), DataLoader(blobs(seed=1), 16))
    assert not model.net[1].training
    assert flags
    assert all(row == flags[0] for row in flags)
    assert not all(flags[0])
