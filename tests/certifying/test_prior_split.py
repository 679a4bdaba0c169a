"""The split that is made before training."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningDataModule
from support.tiny import blobs
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

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
        (lambda _: DataLoader(Stream(), batch_size=2), "a data set with a length and an index"),
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
        (lambda samples: DataLoader(samples, batch_size=30, drop_last=True), "the batch size is 30"),
    ],
)
def test_loaders_that_cannot_be_split(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PriorSplit(Data(make)).train_dataloader()


def test_fractions_that_leave_nothing() -> None:
    with pytest.raises(ConfigurationError, match=r"must be in \(0, 1\)"):
        PriorSplit(Data(), 1.0)
    with pytest.raises(ConfigurationError, match="leaves too few"):
        PriorSplit(Data(count=4), 0.1).train_dataloader()


class Pairs(Dataset):
    """Texts, objects or tensors, each there twice, with one of two labels."""

    def __init__(self, content, count: int = 40) -> None:
        self.content, self.count = content, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.content(index // 2), index // 2 % 2


def as_lists(batch):
    return [part[0] for part in batch], torch.tensor([part[1] for part in batch])


def time_first(batch):
    return torch.stack([part[0] for part in batch], dim=1), torch.tensor([part[1] for part in batch])


@pytest.mark.parametrize(
    ("content", "collate"),
    [
        (lambda pair: torch.tensor([pair, 1.0]), None),
        (lambda pair: f"text {pair}", None),
        (lambda pair: f"text {pair}", as_lists),
        (lambda pair: np.array([pair, 2.0]), as_lists),
        (lambda pair: torch.arange(7.0) + pair, time_first),
        (lambda pair: {"ids": torch.tensor([pair]), "name": "same"}, None),
    ],
    ids=["tensors", "texts", "lists of texts", "arrays", "time first", "mappings"],
)
def test_equal_samples_of_any_kind_lie_on_one_side(content, collate) -> None:
    split = PriorSplit(Data(lambda _: DataLoader(Pairs(content), batch_size=4, collate_fn=collate)), 0.4, seed=2)
    train, rest = split.train_dataloader().dataset.indices, split.certification_dataloader().dataset.indices
    assert split.grouped
    assert (len(train), len(rest)) == (16, 24)
    assert not {index // 2 for index in train} & {index // 2 for index in rest}
    single = PriorSplit(
        Data(lambda _: DataLoader(Pairs(content), batch_size=4, collate_fn=collate)), 0.4, seed=2, duplicates="natural"
    )
    assert {i // 2 for i in single.train_dataloader().dataset.indices} & {
        i // 2 for i in single.certification_dataloader().dataset.indices
    }


def test_what_differs_in_objects_alone_is_not_equal() -> None:
    class Opaque:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self):
            raise TypeError("not to be pickled")

    for content in (Opaque, lambda pair: lambda: pair):
        split = PriorSplit(Data(lambda _, c=content: DataLoader(Pairs(c), batch_size=4, collate_fn=as_lists)))
        assert not split.grouped
        assert len(split.train_dataloader().dataset) == 20


def test_samples_that_are_read_at_random_are_split_one_by_one_and_no_stream_moves() -> None:
    class Flipped(Pairs):
        def __getitem__(self, index: int):
            return torch.randint(0, 2, (3,)).float(), 0

    plain, flipped = PriorSplit(Data(count=40)), PriorSplit(Data(lambda _: DataLoader(Flipped(None), batch_size=4)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert flipped.train_dataloader().dataset.indices == plain.train_dataloader().dataset.indices
    assert not flipped.grouped
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_word_on_equal_samples_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="duplicates='none' is no known statement"):
        PriorSplit(Data(), duplicates="none")
