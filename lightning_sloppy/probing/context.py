"""What one fit knows and all callbacks share: the samples, the loss, the scale of the prior, the clock."""

from __future__ import annotations

import time
from collections.abc import Sized
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.curvature.partition import gathered_batches
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, BatchSize, as_pair, counted_by
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.evaluation.ranks import ALONE, all_ranks, together
from lightning_sloppy.evaluation.sample_rows import located
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.digests import SampleDigests, frozen_digests, sample_digests
from lightning_sloppy.probing.fit_losses import FitLosses
from lightning_sloppy.probing.loss_choice import LossArgument, LossChoice
from lightning_sloppy.probing.samples import SampleSource, located_by, probe_indices
from lightning_sloppy.probing.streamed_batches import StreamedBatches

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Result = TypeVar("Result")

MEASURING_BATCH = 1_024
"""Least size of a probe batch: the size of the default probe, for a product on one large batch is the fastest."""

_contexts: WeakKeyDictionary[Any, FitContext] = WeakKeyDictionary()
_fitted: WeakSet[Any] = WeakSet()
"""Modules that some fit in this process has trained, as far as can be seen: their weights depend on data."""


class FitContext:
    """The shared facts of one fit.

    Args:
        trainer: The running Trainer; not kept.
        module: The unwrapped module.

    Attributes:
        ranks: This process among those that train together.
        layout: Trainable parameters when the fit started.
        modes: Every submodule with its training flag when the fit started.
        begins: Whether the fit resumes nothing.
        fresh: Whether the weights have seen no optimiser step that we know of.
        start: The weights when the fit started, one vector (p,) on the CPU.
        start_digests: Digests of buffers and frozen parameters at that moment, by name.
        layout_written: Whether the custom-scalars layout was written.
        measuring_seconds: Time spent in measurements so far, also before a resume.
        decision: The latest step at which measurements were due, and whether they were taken.
        streamed: Copies of batches that went by, where they are needed.
        stretched: Whether it was said that measurements come less often than asked for.
        losses: The loss of the fit, and whether a step has confirmed it.
        classifiers: What the outputs say of a sample, by loss and rule; None where nobody knows.
        clean: The samples of certificates as they are read, by what was given for them.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.module = module
        self.ranks = ALONE if trainer.world_size == 1 else all_ranks()
        if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
            raise ConfigurationError(
                f"{type(module).__name__} has lazy layers whose shapes are not known yet; run one batch through it "
                "before the fit, or leave the sanity validation on."
            )
        # A sharded strategy leaves no process all parameters; what is measured then needs none of them.
        whole = trainer_internals.strategy_is_supported(trainer)
        self.layout = ParameterLayout.of(module) if whole else ParameterLayout((), ())
        self.modes = [(child, child.training) for child in module.modules()]
        if whole and self.layout.dim == 0:
            raise ConfigurationError(
                f"{type(module).__name__} has no trainable parameters, so there is nothing to measure; "
                "build the layers before the fit and leave requires_grad on."
            )
        self.begins = trainer.global_step == 0 and not trainer.ckpt_path
        self.fresh = self.begins and module not in _fitted
        _fitted.add(module)
        self.start = self.layout.vector(module).cpu() if whole else torch.zeros(0)
        self.start_digests = frozen_digests(module) if whole else {}
        self.measuring_seconds = 0.0
        self.decision: tuple[int, bool] | None = None
        self.stretched = False
        self._earlier = (0.0, 0.0)
        self.layout_written = False
        self._clock = time.perf_counter()
        self._source: SampleSource | ConfigurationError | None = None
        self.streamed = StreamedBatches()
        self._probes: dict[Any, list[Batch]] = {}
        self.losses = FitLosses(module, self.ranks, self.modes)
        self._digests: dict[SampleSource, SampleDigests] = {}
        self.classifiers: dict[Any, Classifier | None] = {}
        self.clean: dict[Any, Any] = {}

    def source(self, trainer: Trainer) -> SampleSource:
        """The training samples by index.

        Raises:
            ConfigurationError: When there is no single indexable training loader.
        """
        if self._source is None:
            loaders = trainer_internals.training_loaders(trainer)
            try:
                if len(loaders) != 1:
                    raise ConfigurationError(
                        f"Reading samples by index needs one training loader, but the fit has {len(loaders)}; combine "
                        "the data sets."
                    )
                self._source = SampleSource(loaders[0])
            except ConfigurationError as error:
                self._source = error
        if isinstance(self._source, ConfigurationError):
            raise self._source
        return self._source

    def indexable(self, trainer: Trainer) -> bool:
        """Whether samples can be read by index; if not, the batches that pass by are the probe."""
        with suppress(ConfigurationError):
            self.source(trainer)
        return isinstance(self._source, SampleSource)

    def train_size(self, trainer: Trainer) -> int | None:
        """Training samples n; None when nobody knows: several loaders, or an iterable data set without a length."""
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
        """The probe: batches on the device, as training would see them.

        They are read once for each (size, seed); where nothing can be read by index, they are the first batches of the
        training. With ``current_batch`` it is the one that is being trained on. Every rank gets the whole probe,
        streamed batches of all ranks included. Where the samples of a batch are is found with the module.

        Raises:
            ConfigurationError: Before the first batch, when it must be streamed; when the samples cannot be counted.
        """
        if current_batch or not self.indexable(trainer):
            batches = self.streamed.latest() if current_batch else self.streamed.first(self.own(num_samples))
            batches = gathered_batches(self.ranks, batches)
            if not batches:
                raise ConfigurationError("No batch was trained on yet, so there is nothing to measure on.")
            return located_by(self.module, batches, mode)
        key = (num_samples, seed, batch_size, mode)
        if key not in self._probes:
            source = self.source(trainer)
            indices = probe_indices(len(source), num_samples, seed)
            size = max(source.batch_size, MEASURING_BATCH)
            self._probes[key] = located_by(self.module, self.read(trainer, source, indices, size, batch_size), mode)
        return self._probes[key]

    @property
    def training_batch(self) -> int | None:
        """Samples of a batch of the training, where they are read by index; batches that pass by are such already."""
        return self._source.batch_size if isinstance(self._source, SampleSource) else None

    def own(self, num_samples: int) -> int:
        """How many of so many samples one rank keeps, where each has batches of its own."""
        return -(-num_samples // self.ranks.count)

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
        """Batches of these samples on the device.

        The global random streams and the module are the business of the guard around every measurement. Samples are
        where the shapes say; where these do not tell, whoever needs to know asks the module.

        Args:
            trainer: Of the fit.
            source: To read from.
            indices: Of the samples.
            size: Of the batches.
            batch_size: The user's count of the samples of a batch, or None.
            untouched: Whether generators of the data set itself stay where they are. False inside a larger reading that
                sees to it, and where two readings should differ if reading is random.
        """
        found = []
        with source.untouched() if untouched else nullcontext():
            for part in torch.split(indices, size):
                batch = trainer_internals.as_training_sees_it(trainer, self.module, source.read(part))
                counted = counted_by(batch_size, batch)
                found.append(as_pair(batch, module=self.module, counted=counted, read=len(part)))
        with suppress(ConfigurationError):
            return located(found)
        return found

    def loss_choice(
        self,
        trainer: Trainer,
        override: LossArgument | None,
        batch_size: BatchSize | None = None,
        mode: Mode = "eval",
    ) -> LossChoice:
        """The loss of the fit, found once for each mode of measuring; see :class:`FitLosses`.

        Raises:
            ConfigurationError: When the loss cannot be known; the message names ``loss_fn=``.
        """
        # Streamed batches are gathered every time, also when the choice is known: another rank may have to choose anew.
        streamed = None if self.indexable(trainer) else self.probe(trainer, 1, 0, batch_size=batch_size, mode=mode)[0]

        def small_batch() -> Batch:
            if streamed is not None:
                return streamed
            source = self.source(trainer)
            indices = torch.arange(min(len(source), source.batch_size))
            return located_by(self.module, self.read(trainer, source, indices, len(indices), batch_size), mode)[0]

        return self.losses.choice(override, mode, small_batch)

    def digests(self, source: SampleSource) -> SampleDigests:
        """What samples are, byte for byte; read once."""
        if source not in self._digests:
            self._digests[source] = sample_digests(source)
        return self._digests[source]

    def prior_precision(self) -> float | None:
        """``epsilon = p / ||w_0||^2``, a prior as wide as the weights at the start; None when they are all zero."""
        size = float(self.start.double().square().sum())
        return self.layout.dim / size if size > 0 else None

    def resume_clock(self, measuring: float, training: float) -> None:
        """Go on counting from these seconds of an earlier part of the run; the same ones told twice count once."""
        if (measuring, training) > self._earlier:
            self.measuring_seconds += measuring - self._earlier[0]
            self._earlier = (measuring, training)

    def started_from(self, earlier: Tensor | None) -> Tensor:
        """The weights at the start: those of the run that is resumed, when they are known and of this model."""
        if earlier is not None and not self.fresh and len(earlier) == len(self.start):
            self.start = earlier
        return self.start

    def start_of(self, layout: ParameterLayout) -> Tensor | None:
        """The weights at the start of these parameters, flat; None when some were not trained then."""
        table = self.layout.table(self.start)
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        if any(name not in table or table[name].shape != shape for name, shape in shapes.items()):
            return None
        return torch.cat([table[name].flatten() for name in layout.names])

    @property
    def fit_seconds(self) -> float:
        """Wall-clock seconds since this fit started."""
        return time.perf_counter() - self._clock

    @property
    def training_seconds(self) -> float:
        """Wall-clock seconds of the run without measuring, those before a resume included."""
        earlier_measuring, earlier_training = self._earlier
        here = self.fit_seconds - (self.measuring_seconds - earlier_measuring)
        return max(here + earlier_training, 1e-9)

    @property
    def overhead(self) -> float:
        """Seconds of measuring per second of training without it."""
        return self.measuring_seconds / self.training_seconds


def was_fitted(module: LightningModule) -> bool:
    """Whether a fit in this process has trained these weights, as far as can be seen."""
    return module in _fitted or any(p.grad is not None for p in module.parameters())


def notice_training(module: LightningModule) -> None:
    """The weights come from a training, whatever this process has seen of it."""
    _fitted.add(module)


def notice_earlier_fits(module: LightningModule) -> None:
    """For ``setup``: a fit or a tuner that nobody watched has left gradients, which Lightning clears next."""
    if any(p.grad is not None for p in module.parameters()):
        _fitted.add(module)


def fit_context(trainer: Trainer, module: LightningModule) -> FitContext:
    """The context of the running fit, made by the first callback that asks.

    Raises:
        ConfigurationError: When the module has no trainable parameters.
    """
    if trainer not in _contexts:
        made = partial(FitContext, trainer, module)
        _contexts[trainer] = made() if trainer.world_size == 1 else together(made)
    return _contexts[trainer]


def known_context(trainer: Trainer) -> FitContext | None:
    """The context of the running fit, if somebody has asked for it."""
    return _contexts.get(trainer)


def close_context(trainer: Trainer) -> FitContext | None:
    """Forget the context, for it holds the module, which holds the Trainer; returns it if there was one."""
    context = _contexts.pop(trainer, None)
    if context is not None:
        context.losses.training_is_over()  # a step that raised has left the hooks of its check in the module
    return context
