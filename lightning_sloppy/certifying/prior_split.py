"""A split made before training: one part builds the prior, the other certifies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from lightning_sloppy.certifying.repeats import Duplicates, require_duplicates
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.preserve import random_streams
from lightning_sloppy.probing.digests import LOOKED_AT, groups_of_equals
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
"""Methods that are taken from the inner data module, because the Trainer checks whether they are overridden."""


class PriorSplit(LightningDataModule):
    """A data module that uses a random part of another one's training samples for training, and the rest to certify.

    The trained network depends on the first part only and can therefore be the mean of a prior. With
    ``FinalCertificate(prior="split")`` the posterior is learnt around it and evaluated on the samples that were not
    used for training; ``n`` is their number (Ambroladze et al., NeurIPS 2006; Perez-Ortiz et al., JMLR 2021). The split
    is uniform and seeded. A split by class would use the labels of the certifying samples. Equal samples (inputs and
    targets) are on the same side, because copies of a draw that the prior has seen cannot certify. Equal samples are
    searched for among any number of tensors, and among up to 60,000 samples of other data sets, unless these are read
    with random transforms.

    Args:
        datamodule: Data module whose ``train_dataloader`` returns one loader with an indexable data set and a plain
            sampler.
        prior_fraction: Fraction of the samples that is used for training, in (0, 1); 0.5 is usual.
        seed: Seed of the split.
        duplicates: Your statement about equal samples, the same as for the certificate. "natural": independent draws,
            which are split one by one. "copies" (of one draw) or None: they are split together, and the fraction is
            that of different samples.

    Raises:
        ConfigurationError: For a fraction out of range or an unknown statement. When the loader is requested: if its
            samples cannot be split.

    Example:
        >>> from lightning_sloppy.demo import DigitsDataModule
        >>> split = PriorSplit(DigitsDataModule(), prior_fraction=0.5)
        >>> split.setup("fit")
        >>> len(split.train_dataloader().dataset), len(split.certification_dataloader().dataset)
        (719, 719)
    """

    def __init__(
        self,
        datamodule: lightning.pytorch.LightningDataModule,
        prior_fraction: float = 0.5,
        *,
        seed: int = 0,
        duplicates: Duplicates | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 < prior_fraction < 1.0:
            raise ConfigurationError(f"prior_fraction={prior_fraction} must be in (0, 1); pass for instance 0.5.")
        require_duplicates(duplicates)
        self.datamodule = datamodule
        self.duplicates = duplicates
        self._split: tuple[DataLoader[Any], Subset[Any], Subset[Any]] | None = None
        self._grouped = False
        self.prior_fraction = prior_fraction
        self.seed = seed
        for name in PASSED_ON:
            setattr(self, name, getattr(datamodule, name))

    def __getattr__(self, name: str) -> Any:
        """Attributes of the inner data module, such as its number of classes or its transforms."""
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
        """The part that is used for training; the same at every call in a fit."""
        loader, part, _ = self._parts()
        return _like(loader, part, shuffle=isinstance(loader.sampler, RandomSampler), drop_last=loader.drop_last)

    def certification_dataloader(self) -> DataLoader[Any]:
        """The certifying samples, in order of their indices."""
        loader, _, rest = self._parts()
        return _like(loader, rest, shuffle=False, drop_last=False)

    def gave(self, dataset: Any) -> bool:
        """Whether this data set is the part that is used for training."""
        return self._split is not None and dataset is self._split[1]

    @property
    def grouped(self) -> bool:
        """Whether there are equal samples that were kept on the same side."""
        self._parts()
        return self._grouped

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
            source = SampleSource(loader)
            places = source.same_places()
            groups = self._groups(source, places)
            self._grouped = int(groups.max()) < int(places.max())
            part, rest = self._indices(groups, loader)
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
                f"PriorSplit needs a loader with shuffle=True or False, but found {type(sampler).__name__} in "
                f"{type(loader.batch_sampler).__name__}; with weights, quotas or replacement the samples are not "
                "independent."
            )
        return loader

    def _groups(self, source: SampleSource, places: Tensor) -> Tensor:
        """A group number for each sample, (n,). Samples of one group are on the same side."""
        if self.duplicates == "natural" or not (source.in_memory or len(source) <= LOOKED_AT):
            return places
        with random_streams():
            groups = groups_of_equals(source)
            if int(groups.max()) >= int(places.max()):
                return places
            # Samples that are read with random transforms may be equal by chance.
            return groups if torch.equal(groups, groups_of_equals(source)) else places

    def _indices(self, groups: Tensor, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
        total = int(groups.max()) + 1
        chosen = torch.zeros(total, dtype=torch.bool)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        chosen[order[: round(total * self.prior_fraction)]] = True
        inside = chosen[groups]
        part, rest = inside.nonzero().flatten(), (~inside).nonzero().flatten()
        least = int(loader.batch_size or 1) if loader.drop_last else 1
        if len(part) < least or len(rest) < 2:
            raise ConfigurationError(
                f"prior_fraction={self.prior_fraction} of {total:,} different samples leaves too few for one of the "
                f"parts ({len(part):,} for training and {len(rest):,} to certify; the batch size is "
                f"{loader.batch_size})."
            )
        return part, rest


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
