"""The split that is made before training."""

from __future__ import annotations

import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningDataModule
from tiny import blobs
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lightning_sloppy import ConfigurationError, PriorSplit


class Data(LightningDataModule):
    def __init__(self, make=None, count: int = 50) -> None:
        super().__init__()
        self.samples = blobs(count)
        self.make = make or (lambda samples: DataLoader(samples, batch_size=8, shuffle=True, drop_last=True))
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self):
        return self.make(self.samples)

    def val_dataloader(self):
        return "validation"

    def test_dataloader(self):
        return "test"

    def predict_dataloader(self):
        return "predict"

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return "after"

    def state_dict(self):
        return {"inner": 1}

    def load_state_dict(self, state_dict):
        self.calls.append(f"load {state_dict}")


def test_the_parts_are_disjoint_whole_seeded_and_like_the_inner_loader() -> None:
    split = PriorSplit(Data(), 0.4, seed=3)
    train, certifying = split.train_dataloader(), split.certification_dataloader()
    assert (len(train.dataset), len(certifying.dataset)) == (20, 30)
    assert sorted([*train.dataset.indices, *certifying.dataset.indices]) == list(range(50))
    assert train.batch_size == certifying.batch_size == 8
    assert train.drop_last
    assert not certifying.drop_last
    assert isinstance(train.sampler, torch.utils.data.RandomSampler)
    assert isinstance(certifying.sampler, torch.utils.data.SequentialSampler)
    assert split.gave(train.dataset)
    assert not split.gave(certifying.dataset)
    same, other = PriorSplit(Data(), 0.4, seed=3), PriorSplit(Data(), 0.4, seed=4)
    assert same.train_dataloader().dataset.indices == train.dataset.indices
    assert other.train_dataloader().dataset.indices != train.dataset.indices


def test_a_fit_that_asks_again_gets_the_same_part() -> None:
    split = PriorSplit(Data(lambda samples: DataLoader(torch.utils.data.Subset(samples, range(40)), batch_size=8)))
    split.setup("fit")
    first = split.train_dataloader().dataset
    assert split.train_dataloader().dataset is first
    split.setup("fit")
    assert split.train_dataloader().dataset is not first


def test_everything_else_is_the_inner_module() -> None:
    inner = Data()
    split = PriorSplit(inner)
    split.prepare_data()
    split.setup("fit")
    split.teardown("fit")
    split.load_state_dict(split.state_dict())
    assert inner.calls == ["prepare", "setup fit", "teardown fit", "load {'inner': 1}"]
    assert (split.val_dataloader(), split.test_dataloader(), split.predict_dataloader()) == (
        "validation",
        "test",
        "predict",
    )
    assert split.on_after_batch_transfer(None, 0) == "after"


def test_what_only_the_inner_module_has_is_found() -> None:
    inner = Data()
    inner.num_classes = 3
    split = PriorSplit(inner)
    assert split.num_classes == 3
    with pytest.raises(AttributeError):
        split.no_such_thing  # noqa: B018
    assert isinstance(split, pytorch_lightning.LightningDataModule)


def test_hooks_that_are_not_overridden_do_not_look_so() -> None:
    from lightning.pytorch.utilities.model_helpers import is_overridden

    split = PriorSplit(Data())
    assert is_overridden("on_after_batch_transfer", split, LightningDataModule)
    assert not is_overridden("on_before_batch_transfer", split, LightningDataModule)
    assert not is_overridden("transfer_batch_to_device", split, LightningDataModule)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda samples: [DataLoader(samples)], "one training DataLoader, but Data gives a list"),
        (lambda _: DataLoader(Stream(), batch_size=2), "a data set with length and index"),
        (
            lambda samples: DataLoader(samples, sampler=WeightedRandomSampler([1.0] * 50, 50)),
            "found WeightedRandomSampler in BatchSampler",
        ),
        (
            lambda samples: DataLoader(
                samples, sampler=torch.utils.data.RandomSampler(samples, replacement=True, num_samples=99)
            ),
            "found RandomSampler in BatchSampler",
        ),
        (lambda samples: DataLoader(samples, batch_size=30, drop_last=True), "a batch has 30"),
    ],
)
def test_loaders_that_cannot_be_split(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PriorSplit(Data(make)).train_dataloader()


def test_fractions_that_leave_nothing() -> None:
    with pytest.raises(ConfigurationError, match=r"must lie in \(0, 1\)"):
        PriorSplit(Data(), 1.0)
    with pytest.raises(ConfigurationError, match="leaves too few"):
        PriorSplit(Data(count=4), 0.1).train_dataloader()
