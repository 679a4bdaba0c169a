"""The training samples of one fit: read by index if possible, else from streamed batches."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.curvature.partition import gathered_batches
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, BatchSize, as_pair, counted_by
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.evaluation.ranks import Ranks
from lightning_sloppy.evaluation.sample_rows import located
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.digests import SampleDigests, sample_digests
from lightning_sloppy.probing.samples import SampleSource, located_by, probe_indices
from lightning_sloppy.probing.streamed_batches import StreamedBatches

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

MEASURING_BATCH = 1_024
"""Smallest size of a probe batch: the size of the default probe, as a product on one large batch is the fastest."""

MISSING = (
    "So there is no input spectrum and no bound, and spectra are measured on the first batches of the training. There "
    "is no dimension at the scale of the prior, if the number of training samples is not known either (no __len__, "
    "several loaders)."
)
"""What a fit lacks whose training samples cannot be read by index."""


class FitSamples:
    """The samples that all callbacks of a fit share.

    Args:
        module: The unwrapped module.
        ranks: This process and the others of the fit.

    Attributes:
        streamed: Copies of training batches, where they are needed.
    """

    def __init__(self, module: LightningModule, ranks: Ranks) -> None:
        self.streamed = StreamedBatches()
        self._module, self._ranks = module, ranks
        self._source: SampleSource | ConfigurationError | None = None
        self._probes: dict[Any, list[Batch]] = {}
        self._digests: dict[SampleSource, SampleDigests] = {}

    def source(self, trainer: Trainer) -> SampleSource:
        """The training samples by index.

        Raises:
            ConfigurationError: If there is not exactly one training loader, or it cannot be indexed.
        """
        if self._source is None:
            loaders = trainer_internals.training_loaders(trainer)
            try:
                if len(loaders) != 1:
                    raise ConfigurationError(
                        f"Samples can be read by index from one training loader only, but the fit has {len(loaders)} "
                        "training loaders; combine the data sets in one loader.",
                        cause="index",
                    )
                self._source = SampleSource(loaders[0])
            except ConfigurationError as error:
                # Other loaders are read by index as well, so what is missing in a fit without one is said here.
                self._source = ConfigurationError(f"{error} {MISSING}", cause="samples") if error.cause else error
        if isinstance(self._source, ConfigurationError):
            raise self._source
        return self._source

    def indexable(self, trainer: Trainer) -> bool:
        """Whether samples can be read by index. If not, streamed batches are the probe."""
        with suppress(ConfigurationError):
            self.source(trainer)
        return isinstance(self._source, SampleSource)

    def train_size(self, trainer: Trainer) -> int | None:
        """Number of training samples n; None for several loaders, or for an iterable data set without a length."""
        if self.indexable(trainer):
            return len(self.source(trainer))
        loaders = trainer_internals.training_loaders(trainer)
        dataset = getattr(loaders[0], "dataset", None) if len(loaders) == 1 else None
        return len(dataset) if isinstance(dataset, Sized) else None

    def probe(
        self,
        trainer: Trainer,
        num_samples: int,
        seed: int,
        *,
        current_batch: bool = False,
        batch_size: BatchSize | None = None,
        mode: Mode = "eval",
    ) -> list[Batch]:
        """Return the probe: batches on the device, as the training receives them.

        They are read once for each (size, seed). If samples cannot be read by index, they are the first batches of the
        training. With ``current_batch``, the probe is the current training batch. Every rank receives the whole probe,
        including the streamed batches of all ranks. The module is used to find the samples in a batch.

        Raises:
            ConfigurationError: If batches must be streamed and there was none yet, or if samples cannot be counted.
        """
        if current_batch or not self.indexable(trainer):
            batches = self.streamed.latest() if current_batch else self.streamed.first(self.own(num_samples))
            batches = gathered_batches(self._ranks, batches)
            if not batches:
                raise ConfigurationError(
                    "There was no training batch yet, so there are no samples to measure on; train on at least one "
                    "batch."
                )
            return located_by(self._module, batches, mode)
        key = (num_samples, seed, batch_size, mode)
        if key not in self._probes:
            source = self.source(trainer)
            indices = probe_indices(len(source), num_samples, seed)
            size = max(source.batch_size, MEASURING_BATCH)
            self._probes[key] = located_by(self._module, self.read(trainer, source, indices, size, batch_size), mode)
        return self._probes[key]

    def small_batch(self, trainer: Trainer, batch_size: BatchSize | None = None, mode: Mode = "eval") -> Batch:
        """Return one batch of the size of the training batches, on which a loss is looked for.

        Raises:
            ConfigurationError: As for :meth:`probe`.
        """
        if not self.indexable(trainer):
            return self.probe(trainer, 1, 0, batch_size=batch_size, mode=mode)[0]
        source = self.source(trainer)
        indices = torch.arange(min(len(source), source.batch_size))
        return located_by(self._module, self.read(trainer, source, indices, len(indices), batch_size), mode)[0]

    @property
    def training_batch(self) -> int | None:
        """Size of a training batch if samples are read by index, else None; streamed batches have that size already."""
        return self._source.batch_size if isinstance(self._source, SampleSource) else None

    def own(self, num_samples: int) -> int:
        """Number of samples that each rank keeps if each has its own batches."""
        return -(-num_samples // self._ranks.count)

    def read(
        self,
        trainer: Trainer,
        source: SampleSource,
        indices: Tensor,
        size: int,
        batch_size: BatchSize | None = None,
        *,
        untouched: bool = True,
    ) -> list[Batch]:
        """Read batches of these samples to the device.

        The guard around every measurement restores the global random streams and the module. The samples in a batch are
        found from its shapes. If these do not determine them, the caller has to use the module.

        Args:
            trainer: The Trainer of the fit.
            source: Source to read from.
            indices: Indices of the samples.
            size: Size of the batches.
            batch_size: The ``batch_size=`` of the user, or None.
            untouched: Whether to restore the generators of the data set itself. False inside a larger reading that
                restores them, and where two readings should differ if reading is random.
        """
        with source.untouched() if untouched else nullcontext():
            parts = torch.split(indices, size)
            found = [self.as_seen(trainer, source.read(part), len(part), batch_size) for part in parts]
        with suppress(ConfigurationError):
            return located(found)
        return found

    def as_seen(self, trainer: Trainer, batch: Any, read: int, batch_size: BatchSize | None = None) -> Batch:
        """A collated batch of so many samples, as the training sees it: converted, moved, as inputs and targets."""
        batch = trainer_internals.as_training_sees_it(trainer, self._module, batch)
        return as_pair(batch, module=self._module, counted=counted_by(batch_size, batch), read=read)

    def digests(self, source: SampleSource) -> SampleDigests:
        """The hashes of the samples. They are read once."""
        if source not in self._digests:
            self._digests[source] = sample_digests(source)
        return self._digests[source]
