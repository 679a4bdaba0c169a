"""Data sets in memory: a seeded split into training and validation, and the handwritten digits."""

from __future__ import annotations

import importlib.util

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.errors import NO_SUCH_PART, ConfigurationError, MissingExtraError

Loader = DataLoader[tuple[Tensor, ...]]


def split_indices(count: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation part, from one seeded permutation.

    Args:
        count: Samples to split.
        val_fraction: Fraction that is held out, in (0, 1). The number of samples is rounded.
        seed: Seed of the permutation. The same seed gives the same split on every machine.

    Returns:
        Two disjoint int64 tensors that together contain every index once.

    Raises:
        ConfigurationError: If the fraction is outside (0, 1) or leaves one of the parts empty.

    Example:
        >>> train, val = split_indices(10, 0.2, seed=0)
        >>> len(train), len(val), sorted(torch.cat([train, val]).tolist()) == list(range(10))
        (8, 2, True)
    """
    if not 0.0 < val_fraction < 1.0:
        raise ConfigurationError(f"val_fraction must lie in (0, 1), but is {val_fraction}; pass for instance 0.2.")
    held_out = round(count * val_fraction)
    if not 0 < held_out < count:
        raise ConfigurationError(
            f"val_fraction={val_fraction} of {count} samples leaves no samples for training or validation; change it or"
            " add data."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:], order[:held_out]


class InMemoryDataModule(LightningDataModule):
    """Data module for tensors in memory, which a subclass sets in ``setup``.

    Args:
        batch_size: Number of samples per batch.
        num_workers: Worker processes of the loaders. 0, because indexing a tensor is faster than sending it.
    """

    def __init__(self, batch_size: int, *, num_workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, but is {batch_size}; pass for instance 64.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_set: TensorDataset | None = None
        self.val_set: TensorDataset | None = None
        self.test_set: TensorDataset | None = None

    def train_dataloader(self) -> Loader:
        """Batches of the training part, reshuffled every epoch."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> Loader:
        """Batches of the validation part, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> Loader:
        """Batches of the test part, in order."""
        return self._loader(self.test_set)

    def _split(self, inputs: Tensor, targets: Tensor, val_fraction: float, seed: int) -> None:
        train, val = split_indices(len(targets), val_fraction, seed)
        self.train_set = TensorDataset(inputs[train], targets[train])
        self.val_set = TensorDataset(inputs[val], targets[val])

    def _loader(self, dataset: TensorDataset | None, *, shuffle: bool = False) -> Loader:
        if dataset is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no such data; call setup('fit') or let a Trainer do so, and use the test"
                " part only if there is one.",
                cause=NO_SUCH_PART,
            )
        workers = self.num_workers
        return DataLoader(dataset, self.batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0)


class DigitsDataModule(InMemoryDataModule):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn bundles; nothing is downloaded.

    Inputs are float32 of shape (64,), divided by the largest possible pixel value, 16. This is a constant, not a
    statistic of the data, so the inputs of one sample do not depend on the others, as a bound over the draw of the
    samples requires. Targets are the classes 0 to 9.

    Args:
        batch_size: Number of samples per batch. 16 gives more steps per epoch than Lightning's logging interval of 50.
        val_fraction: Fraction held out for validation. 0.2 leaves 1,438 samples for training.
        seed: Seed of the split.
        num_workers: Worker processes of the loaders.

    Raises:
        ConfigurationError: If an argument is out of range.
        MissingExtraError: In ``setup``, if scikit-learn is not installed.
    """

    def __init__(self, batch_size: int = 16, val_fraction: float = 0.2, *, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers=num_workers)
        self.val_fraction = val_fraction
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Read the digits and split them, once."""
        if self.train_set is None:
            self._split(*_digits(), self.val_fraction, self.seed)


def _digits() -> tuple[Tensor, Tensor]:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            "DigitsDataModule reads the digits that scikit-learn bundles, but scikit-learn is not installed; run"
            " pip install 'lightning-sloppy[demo]'."
        )
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.as_tensor(images, dtype=torch.float32) / 16, torch.as_tensor(classes, dtype=torch.int64)
