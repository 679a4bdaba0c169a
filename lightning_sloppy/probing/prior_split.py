"""A split made before training: one part builds the prior, the other certifies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.samples import SampleSource

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
else:
    import pytorch_lightning

    class LightningDataModule(lightning.pytorch.LightningDataModule, pytorch_lightning.LightningDataModule):
        """Accepted by both copies of Lightning."""


PASSED_ON = (
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
)
"""What the Trainer must find here exactly where the inner data module overrides it."""


class PriorSplit(LightningDataModule):
    """Wraps a data module: training sees a random part of its training samples, the rest certifies.

    So the trained network may be the mean of a prior: it depends on the part alone. With
    ``FinalCertificate(prior="split")`` the posterior is then learnt around it, and judged on the samples that were left
    out: ``n`` is their number (Ambroladze et al., NeurIPS 2006; Perez-Ortiz et al., JMLR 2021). The split is uniform
    and seeded; one by classes would use the labels of the samples that certify.

    Args:
        datamodule: Its ``train_dataloader`` gives one loader with an indexable data set and a plain sampler.
        prior_fraction: Part that training sees, in (0, 1); 0.5 is usual.
        seed: Of the split.

    Raises:
        ConfigurationError: For a fraction out of range; when the loader is asked for, if its samples cannot be split.

    Example:
        >>> from lightning_sloppy.demo import DigitsDataModule
        >>> split = PriorSplit(DigitsDataModule(), prior_fraction=0.5)
        >>> split.setup("fit")
        >>> len(split.train_dataloader().dataset), len(split.certification_dataloader().dataset)
        (719, 719)
    """

    def __init__(
        self, datamodule: lightning.pytorch.LightningDataModule, prior_fraction: float = 0.5, *, seed: int = 0
    ) -> None:
        super().__init__()
        if not 0.0 < prior_fraction < 1.0:
            raise ConfigurationError(f"prior_fraction={prior_fraction} must lie in (0, 1): give for instance 0.5.")
        self.datamodule = datamodule
        self._split: tuple[DataLoader[Any], Subset[Any], Subset[Any]] | None = None
        self.prior_fraction = prior_fraction
        self.seed = seed
        for name in PASSED_ON:
            setattr(self, name, getattr(datamodule, name))

    def __getattr__(self, name: str) -> Any:
        """What only the inner data module has: its number of classes, its transforms."""
        inner = self.__dict__.get("datamodule")
        if inner is None:
            raise AttributeError(name)
        return getattr(inner, name)

    def prepare_data(self) -> None:
        """Pass on, with the Trainer."""
        self.datamodule.trainer = self.trainer
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        """Pass on, with the Trainer."""
        self.datamodule.trainer = self.trainer
        self.datamodule.setup(stage)
        if stage == "fit":
            self._split = None

    def teardown(self, stage: str) -> None:
        """Pass on."""
        self.datamodule.teardown(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """The part that training sees; the same however often a fit asks for it."""
        loader, part, _ = self._parts()
        return _like(loader, part, shuffle=isinstance(loader.sampler, RandomSampler), drop_last=loader.drop_last)

    def certification_dataloader(self) -> DataLoader[Any]:
        """The samples that certify, in order of their indices."""
        loader, _, rest = self._parts()
        return _like(loader, rest, shuffle=False, drop_last=False)

    def gave(self, dataset: Any) -> bool:
        """Whether this data set is the part that training sees."""
        return self._split is not None and dataset is self._split[1]

    def state_dict(self) -> dict[str, Any]:
        """The inner state."""
        return self.datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Pass on."""
        self.datamodule.load_state_dict(state_dict)

    def _parts(self) -> tuple[DataLoader[Any], Subset[Any], Subset[Any]]:
        """The inner loader and the two parts of its data set, once for a fit."""
        if self._split is None:
            loader = self._checked(self.datamodule.train_dataloader())
            part, rest = self._indices(len(SampleSource(loader)), loader)
            self._split = (loader, Subset(loader.dataset, part.tolist()), Subset(loader.dataset, rest.tolist()))
        return self._split

    def _checked(self, loader: Any) -> DataLoader[Any]:
        if not isinstance(loader, DataLoader):
            raise ConfigurationError(
                f"PriorSplit needs one training DataLoader, but {type(self.datamodule).__name__} gives a "
                f"{type(loader).__name__}; combine the data sets into one."
            )
        total = len(SampleSource(loader))  # says in a sentence what cannot be indexed
        sampler = loader.sampler
        random = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == total
        if type(loader.batch_sampler) is not BatchSampler or not (random or type(sampler) is SequentialSampler):
            raise ConfigurationError(
                f"PriorSplit needs a loader that shuffles or not, but found {type(sampler).__name__} in "
                f"{type(loader.batch_sampler).__name__}; weights, quotas and replacement spoil the independence of the "
                "samples."
            )
        return loader

    def _indices(self, total: int, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
        size = round(total * self.prior_fraction)
        least = int(loader.batch_size or 1) if loader.drop_last else 1
        if not least <= size < total - 1:
            raise ConfigurationError(
                f"prior_fraction={self.prior_fraction} of {total} samples leaves too few for one of the parts (a batch "
                f"has {loader.batch_size})."
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        return order[:size].sort().values, order[size:].sort().values


def _like(loader: DataLoader[Any], dataset: Subset[Any], *, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
    workers = loader.num_workers
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor if workers else None,
        persistent_workers=loader.persistent_workers,
    )
