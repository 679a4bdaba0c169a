"""One cause: one warning for all callbacks, at the user's line, and one place in the closing summary that says it."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from support.habits import OnceTanh
from support.tiny import FEATURES, Classifier, Manual, Regressor, blobs, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, Instrument, Quantity, SloppyMonitor

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

COUNT = 48


class Plain(Classifier):
    """Finds its loss by the guess."""

    def __init__(self):
        super().__init__()
        del self.loss_fn

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return None


class Smoothed(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)


class Penalised(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 1e-2 * sum(p.square().sum() for p in self.parameters())


class Mixed(Plain):
    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        other = torch.randperm(len(inputs))
        outputs = self(0.6 * inputs + 0.4 * inputs[other])
        return 0.6 * F.cross_entropy(outputs, targets) + 0.4 * F.cross_entropy(outputs, targets[other])


class Augmented(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0] + 0.3 * torch.randn_like(batch[0])), batch[1])


class Weighted(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0, 3.5]))


class Other(Plain):
    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()


class ActingOutside(Smoothed):
    def __init__(self):
        super().__init__()
        self.numbers = (number for number in range(100))

    def training_step(self, batch, batch_idx):
        next(self.numbers)
        return super().training_step(batch, batch_idx)


class NotANumber(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


class BrokenWeights(Plain):
    def __init__(self):
        super().__init__()
        self.net[0].weight.data[0, 0] = float("nan")


class TooLarge(Plain):
    def forward(self, inputs):
        if not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.net(inputs)


class TrainsOnly(Plain):
    def forward(self, inputs):
        if not self.training:
            raise RuntimeError("no weights for eval")
        return self.net(inputs)


class NoForward(Plain):
    """The step does not call forward, which fails in every mode."""

    def forward(self, inputs):
        raise RuntimeError("there is no forward")

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class FromTwo(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx)


class Normalised(Plain):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class OnceOnly(Plain):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), OnceTanh(), nn.Linear(8, 3))


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(blobs(COUNT))


class Noisy(TensorDataset):
    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        return inputs + 0.1 * torch.randn_like(inputs), targets


def holes() -> TensorDataset:
    inputs, targets = blobs(COUNT).tensors
    inputs = inputs.clone()
    inputs[5, 2] = float("nan")
    return TensorDataset(inputs, targets)


def numbers() -> TensorDataset:
    return TensorDataset(blobs(COUNT).tensors[0], torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0)))


def data(dataset=None) -> DataLoader:
    return DataLoader(blobs(COUNT) if dataset is None else dataset, 16)


# What is trained on which data; what the one warning says; how many sections refer to it.
CAUSES = {
    "label smoothing": (Smoothed, data, {}, r"Label smoothing of 0\.1 gives the same value", 4),
    "certificate": (Smoothed, data, {"certificate": True}, r"CrossEntropyLoss\(label_smoothing=0\.1\)", 5),
    "penalty": (Penalised, data, {}, "0.01 times the sum of the squares of all weights", 4),
    "mixup": (Mixed, data, {}, r"mixtures of two samples to the module \(mixup\)", 4),
    "augmentation": (Augmented, data, {}, r"other inputs to the module than those of the batch \(augmentation\)", 4),
    "class weights": (Weighted, data, {}, r"weight=torch.tensor\(\[1.0, 2.0, 3.5\]\)", 4),
    "another loss": (
        Other,
        data,
        {},
        "in this order: a penalty on the weights, label smoothing, augmentation, mixup",
        4,
    ),
    "three of a kind": (
        Smoothed,
        data,
        {"extra": (FisherSpectrum(kind="exact"), HessianSpectrum(parameters="net.4.*"))},
        "Label smoothing",
        6,
    ),
    "side effects": (ActingOutside, data, {}, "numbers .* cannot be copied", 3),
    "manual": (Manual, data, {}, "Under manual optimisation", 3),
    "asked for": (Smoothed, data, {"loss_fn": "training_step"}, "only training_step as a whole is known", 3),
    "broken loss_fn": (Plain, data, {"loss_fn": lambda outputs, targets: outputs.none}, "loss_fn= cannot be eval", 4),
    "stream": (
        Plain,
        lambda: data(Streamed()),
        {},
        "Streamed, is iterable; .* So there is no input spectrum and no bound",
        5,
    ),
    "two loaders": (
        FromTwo,
        lambda: [data(), data()],
        {},
        "the fit has 2 training loaders; .* So there is no input spectrum and no bound",
        5,
    ),
    "nan loss": (NotANumber, data, {}, r"returned is nan, not finite \(cross-entropy gives", 3),
    "nan weights": (BrokenWeights, data, {}, r"1 of \d+ weights .* are NaN or infinite \(first: net.0.weight\)", 4),
    "nan inputs": (Plain, lambda: data(holes()), {}, "1 of 288 numbers in the inputs of the 48 probe samples", 4),
    "memory": (TooLarge, data, {}, "does not have enough memory, even for 128 samples", 4),
    "eval mode": (TrainsOnly, data, {}, "no weights for eval .* in forward. .* pass mode='train'", 4),
    "regression": (Regressor, lambda: data(numbers()), {}, "mean squared error", 1),
    "batch statistics": (Normalised, data, {}, "layers store batch statistics", 1),
    "noisy data": (Plain, lambda: data(Noisy(*blobs(COUNT).tensors)), {}, "Two reads of the same sample differ", 1),
    "no double backward": (OnceOnly, data, {}, None, 0),
    "nothing wrong": (Plain, data, {}, None, 0),
}


def fitted(tmp_path, build, batches, caplog, **options) -> tuple[list[warnings.WarningMessage], str]:
    """The warnings of a fit, and its closing summary on one line."""
    torch.manual_seed(1)
    module, watcher = build(), SloppyMonitor(**options)
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer(tmp_path, callbacks=[watcher], max_epochs=2).fit(module, batches)
    ours = [each for each in seen if each.category is UserWarning and "does not have many workers" not in str(each)]
    (summary,) = [record.message for record in caplog.records if record.message.startswith("Summary")]
    return ours, summary


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
def test_one_warning_and_one_place(tmp_path, caplog, cause):
    build, batches, options, said, references = CAUSES[cause]
    found, summary = fitted(tmp_path, build, batches(), caplog, **options)
    text = " ".join(summary.split())
    assert text.count("(see Warnings)") == references, summary
    if said is None:
        assert not found
        assert "Warnings" not in summary
        return
    assert len(found) == 1, [str(each.message) for each in found]
    sentence = str(found[0].message)
    assert re.search(said, sentence), sentence
    assert Path(found[0].filename) == Path(__file__), "it points to the line with fit"
    assert ".fit(" in Path(__file__).read_text().splitlines()[found[0].lineno - 1]
    assert text.count(" ".join(sentence.split())) == 1, summary
    for part in re.split(r"(?<=[.;:]) ", sentence):
        if len(part) > 40:
            assert text.count(" ".join(part.split())) == 1, part


@pytest.mark.parametrize(
    "missing", [(), ("jacobian", "hessian"), ("jacobian", "bound"), ("hessian", "fisher", "bound")]
)
def test_a_forward_that_fails_is_one_cause_for_the_loss_and_for_what_needs_it(tmp_path, caplog, missing):
    found, summary = fitted(tmp_path, NoForward, data(), caplog, **dict.fromkeys(missing))
    assert len(found) == 1, [str(each.message) for each in found]
    sentence = str(found[0].message)
    assert "the forward of the module does not accept the inputs: RuntimeError: there is no forward" in sentence
    assert " ".join(summary.split()).count(sentence) == 1


@pytest.mark.slow
def test_a_bound_without_a_spectrum_says_so(tmp_path, caplog):
    _, summary = fitted(tmp_path, Manual, data(), caplog)
    assert "there was no spectrum of the Hessian or the Fisher matrix to build a" in summary


@pytest.mark.slow
def test_values_that_are_missing_for_one_reason_are_named_together(tmp_path, caplog):
    _, summary = fitted(tmp_path, OnceOnly, data(), caplog)
    text = " ".join(summary.split())
    assert "Without a double backward: net.1." in text
    assert text.count("which central differences do not give") <= 1
    assert not re.search(r"(effective_dimension|n90|participation_ratio): Unavailable", text)


class Hungry(Instrument):
    """Fits into memory with few samples only."""

    quantities = (Quantity("samples", "Number of samples."),)
    most = 256

    def measure(self, trainer, pl_module, probe):
        if self.size.num_samples > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return {"samples": float(self.size.num_samples)}


def test_a_lack_of_memory_that_fewer_samples_cure_is_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer(tmp_path, callbacks=[Hungry(strict=True)], max_epochs=2).fit(Plain(), data())
    said = [record.message for record in caplog.records if "instead of" in record.message]
    assert said == [
        "The hungry measurements use 256 samples instead of 1,024 samples, because the device does not have enough "
        "memory for 1,024 samples; pass these numbers."
    ]


def test_a_lack_of_memory_that_nothing_cures_announces_no_size(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    part = Hungry()
    part.most = 0
    with pytest.warns(UserWarning, match=r"even for 128 samples\. Lower num_samples") as caught:
        trainer(tmp_path, callbacks=[part], max_epochs=2).fit(Plain(), data())
    assert len([each for each in caught if "measurement failed" in str(each.message)]) == 1
    assert "instead of" not in caplog.text
