import importlib.util

import pytest
import torch

from lightning_sloppy.demo import DigitsDataModule
from lightning_sloppy.demo.data import split_indices
from lightning_sloppy.errors import ConfigurationError, MissingExtraError


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(10, 0.2, 2), (7, 0.5, 4), (1797, 0.2, 359)])
def test_split_is_a_partition_of_the_asked_sizes(count, fraction, held_out):
    train, val = split_indices(count, fraction, seed=3)
    assert len(val) == held_out
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(count))


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = split_indices(100, 0.3, seed=5)[0]
    torch.manual_seed(1)
    assert torch.equal(first, split_indices(100, 0.3, seed=5)[0])
    assert not torch.equal(first, split_indices(100, 0.3, seed=6)[0])


def test_split_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    split_indices(100, 0.3, seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_split_refuses_a_fraction_outside_its_range(fraction):
    with pytest.raises(ConfigurationError, match=r"val_fraction must lie in \(0, 1\)"):
        split_indices(10, fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_split_refuses_an_empty_part(fraction):
    with pytest.raises(ConfigurationError, match="of 1 samples leaves no samples for training or validation"):
        split_indices(1, fraction, seed=0)


def test_digits_are_the_1797_images_scaled_by_a_constant():
    data = DigitsDataModule(batch_size=64, val_fraction=0.2)
    data.setup("fit")
    train, val = data.train_set.tensors, data.val_set.tensors
    assert train[0].shape == (1438, 64)
    assert val[0].shape == (359, 64)
    pixels = torch.cat([train[0], val[0]]) * 16
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, pixels.round())
    assert (pixels.min(), pixels.max()) == (0, 16)
    assert torch.cat([train[1], val[1]]).bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_second_setup_keeps_the_data():
    data = DigitsDataModule()
    data.setup("fit")
    before = data.train_set
    data.setup("validate")
    assert data.train_set is before


def test_default_epoch_has_more_steps_than_the_default_logging_interval():
    data = DigitsDataModule()
    data.setup("fit")
    assert len(data.train_dataloader()) > 50


def test_train_loader_shuffles_and_validation_loader_does_not():
    data = DigitsDataModule(batch_size=2000)
    data.setup("fit")
    (_, shuffled), (_, again) = next(iter(data.train_dataloader())), next(iter(data.train_dataloader()))
    assert not torch.equal(shuffled, again)
    assert torch.equal(next(iter(data.val_dataloader()))[1], data.val_set.tensors[1])


def test_loaders_before_setup_say_what_to_do():
    with pytest.raises(ConfigurationError, match="call setup"):
        DigitsDataModule().train_dataloader()


def test_digits_have_no_test_part():
    data = DigitsDataModule()
    data.setup("test")
    with pytest.raises(ConfigurationError, match="use the test part only if there is one"):
        data.test_dataloader()


def test_batch_size_below_one_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1, but is 0"):
        DigitsDataModule(batch_size=0)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-sloppy\[demo\]'"):
        DigitsDataModule().setup("fit")
