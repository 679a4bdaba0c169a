"""What one more forward could leave behind: each case trains bitwise the same with and without the monitor."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from support.tiny import FEATURES, Classifier, blobs, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor
from lightning_sloppy.evaluation.precision import full_precision


class ReboundBuffer(Classifier):
    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.zeros(FEATURES))

    def training_step(self, batch, batch_idx):
        self.mu = 0.9 * self.mu + 0.1 * batch[0].mean(0)
        return super().training_step((batch[0] - self.mu, batch[1]), batch_idx)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs * (1 + 0.01 * self.calls)


class CountingChild(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(Counting(), *self.net)


class WritesWeights(Classifier):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, FEATURES, max_norm=0.1)

    def forward(self, inputs):
        with torch.no_grad():
            self.net[0].weight.mul_(0.99)
        return super().forward(inputs + self.table((inputs[:, 0] > 0).long()))


class NestedState(Classifier):
    def __init__(self):
        super().__init__()
        self.by_name = defaultdict(list)
        self.totals = Counter()
        self.running = torch.zeros(())
        self.outer = {"inner": [0]}

    def training_step(self, batch, batch_idx):
        self.by_name["loss"].append(1.0)
        self.totals["steps"] += 1
        self.running += 1
        self.outer["inner"][0] += 1
        scale = 1 + 0.01 * (float(self.running) + self.outer["inner"][0] + self.totals["steps"])
        return super().training_step(batch, batch_idx) * scale


class OwnGenerator(Dataset):
    def __init__(self):
        self.inputs, self.targets = blobs(48).tensors
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        noise = torch.tensor(self.rng.normal(size=FEATURES), dtype=torch.float32)
        return self.inputs[index] + 0.1 * noise, self.targets[index]


def run(tmp_path, make, dataset, watch):
    seed_everything(7, verbose=False)
    model = make()
    watcher = SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24), fisher=FisherSpectrum(num_samples=24))
    host = trainer(tmp_path, callbacks=[watcher] if watch else [], max_epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(model, DataLoader(dataset() if dataset else blobs(48), 16, shuffle=True))
    return model, watcher


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dataset"),
    [
        (ReboundBuffer, None),
        (CountingChild, None),
        (WritesWeights, None),
        (NestedState, None),
        (Classifier, OwnGenerator),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_training_is_bitwise_the_same(tmp_path, make, dataset):
    plain, _ = run(tmp_path, make, dataset, False)
    watched, watcher = run(tmp_path, make, dataset, True)
    assert all(watcher.latest[name] is not None for name in ("input", "hessian"))
    for (name, mine), theirs in zip(watched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert watched.seen == plain.seen
    if make is NestedState:
        assert watched.by_name == plain.by_name
        assert watched.totals == plain.totals
        assert watched.outer == plain.outer
    if make is CountingChild:
        assert watched.net[0].calls == plain.net[0].calls


def flags():
    found = {}
    for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
        owner, part = name.split(".")
        operation = getattr(getattr(torch.backends, owner), part)
        found[name] = getattr(operation, "fp32_precision", None)
    return found


@pytest.mark.parametrize("setting", ["none", "allow_tf32", "high", "medium", "per operation"])
def test_flags_of_precision_come_back(setting):
    start = flags()
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if setting == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        elif setting in ("high", "medium"):
            torch.set_float32_matmul_precision(setting)
        elif setting == "per operation":
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        before = flags()
        with full_precision():
            assert not set(flags().values()) & {"tf32", "bf16"}
        assert flags() == before
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv
        for name, value in start.items():
            owner, part = name.split(".")
            if value is not None:
                getattr(getattr(torch.backends, owner), part).fp32_precision = value
    assert flags() == start
