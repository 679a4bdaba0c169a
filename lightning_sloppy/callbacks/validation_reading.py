"""Read training inputs for bins of energy, and validation samples with what the network makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.callbacks.input_reading import are_numbers, inputs_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, BatchSize, private
from lightning_sloppy.evaluation.classifiers import LOGIT, PROBABILITY, SCORES, Classifier, Predict, classifier_of
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.rows import as_rows
from lightning_sloppy.metrics.energy_bins import EnergyBins, EnergyBinsReader
from lightning_sloppy.metrics.principal_directions import PrincipalDirections, principal_directions
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_sloppy.probing.context import FitContext

FEW = 32
"""Validation samples on which is looked what outputs and targets are."""

CACHE_BYTES = 256 * 1024**2
"""Validation samples up to this size stay in memory between measurements; more are read anew."""


@dataclass(frozen=True)
class Task:
    """What counts as the error of a sample.

    Attributes:
        classifier: The rule that mistakes are counted with; None for a regression.
        num_classes: Number of classes, at least 2; None for a regression.
        labelled: Whether the targets are class labels, so that there are errors of classes.
    """

    classifier: Classifier | None
    num_classes: int | None
    labelled: bool


def validation_source(trainer: Trainer) -> SampleSource:
    """The validation samples by index.

    Raises:
        ConfigurationError: If there is not exactly one validation loader, or it cannot be read by index.
    """
    loaders = trainer_internals.held_out_loaders(trainer)
    if len(loaders) != 1:
        found = f"{len(loaders)} validation loaders" if loaders else "no validation loader"
        raise ConfigurationError(
            f"Errors of validation samples were asked for, but the fit has {found}; pass one to trainer.fit, or remove "
            "this instrument."
        )
    try:
        return SampleSource(loaders[0])
    except ConfigurationError as error:
        raise ConfigurationError(f"The validation samples cannot be used: {error}") from error


def find_task(
    trainer: Trainer, context: FitContext, source: SampleSource, objective: Objective, predict: Predict | None
) -> Task:
    """What counts as an error, from outputs and targets of the first validation samples.

    Args:
        trainer: The Trainer.
        context: Its fit.
        source: The validation samples.
        objective: Gives outputs, and the loss if it is known.
        predict: The user's rule from outputs to labels or mistakes, or None.

    Raises:
        ConfigurationError: For outputs that are neither those of a classifier nor of a regression.
    """
    indices = torch.arange(min(FEW, len(source)))
    with source.untouched():
        batch = context.samples.as_seen(trainer, source.read(indices), len(indices))
    (batch,) = objective.prepare([batch])
    outputs = objective.output_values(objective.copied_parameters(), private(batch)[0])
    classifier = classifier_of(objective.loss_fn, outputs, batch[1], predict)
    if classifier is None:
        if _is_regression(outputs, batch[1]):
            return Task(None, None, labelled=False)
        shapes = ", ".join(str(tuple(each.shape)) for each in tensors_of(outputs)) or type(outputs).__name__
        if not isinstance(batch[1], Tensor):
            raise ConfigurationError(
                f"Errors of validation samples need targets that are one tensor, but they are a "
                f"{type(batch[1]).__name__}; pass predict=, a function of outputs and targets that returns booleans, "
                "true for a mistake, or, for a regression, let the data set return pairs (inputs, targets)."
            )
        raise ConfigurationError(
            f"Errors of validation samples need a classifier (scores (N, C) with classes (N,), or one logit with "
            f"targets 0 and 1, and a loss that treats them so) or a regression (outputs of the targets' shape), but "
            f"{type(context.module).__name__} gives {shapes} and its loss does not say what they are; pass predict=, a "
            "function from outputs to labels, or loss_fn=."
        )
    if classifier is SCORES:
        return Task(classifier, outputs.shape[1], labelled=True)
    if classifier is LOGIT or classifier is PROBABILITY:
        return Task(classifier, 2, labelled=True)
    largest = _largest_label(context, trainer, source, batch[1])
    return Task(classifier, 2 if largest is None else max(2, largest + 1), labelled=largest is not None)


def _is_regression(outputs: Any, targets: Any) -> bool:
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return both and bool(
        outputs.is_floating_point()
        and targets.is_floating_point()
        and outputs.ndim > 0
        and outputs.shape[:1] == targets.shape[:1]
        and outputs.numel() == targets.numel()
    )


def _largest_label(context: FitContext, trainer: Trainer, source: SampleSource, targets: Any) -> int | None:
    """The largest label of all validation samples; None where targets are no labels from 0."""
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        return None
    ends = []
    with source.untouched():
        for part in torch.split(torch.arange(len(source)), READ_CHUNK):
            found = context.samples.as_seen(trainer, source.read(part), len(part))[1]
            ends.append((int(found.min()), int(found.max())))
    return max(high for _, high in ends) if min(low for low, _ in ends) >= 0 else None


def read_training(
    trainer: Trainer,
    context: FitContext,
    *,
    bins: int,
    max_samples: int,
    seed: int,
    task: Task,
    seen: Callable[[tuple[int, ...]], object],
) -> tuple[EnergyBins, PrincipalDirections | None, tuple[int, ...]]:
    """Bins of the training inputs, principal directions of the targets of a regression, and the shape of an input.

    Every process reads a part of the samples.

    Args:
        trainer: The Trainer.
        context: Its fit.
        bins: Number of bins.
        max_samples: Samples at most, drawn at random.
        seed: Of the draw.
        task: Says whether the targets are those of a regression.
        seen: Told the shape of the inputs of one sample, as soon as it is known; may raise.

    Raises:
        ConfigurationError: For inputs that are not one tensor of numbers for each sample, missing values, or too few
            samples.
    """
    reader, targets = EnergyBinsReader(bins), InputMoments(sync_on_compute=False)
    source = context.samples.source(trainer)
    indices = probe_indices(len(source), max_samples, seed)
    places = torch.arange(len(indices))[trainer.global_rank :: trainer.world_size]
    shape: tuple[int, ...] = ()
    numbers: bool | None = None
    with source.untouched():
        for part in torch.split(places, READ_CHUNK):
            batch = source.read(indices[part])
            inputs = inputs_of(batch, context, len(part))
            if numbers is None:
                shape = tuple(inputs.shape[1:])
                seen(shape)
                numbers = are_numbers(trainer, context, inputs)
            reader.add(as_rows(inputs.double() if numbers else inputs), part)
            if task.classifier is None:
                targets.update(as_rows(context.samples.as_seen(trainer, batch, len(part))[1]))
    over_ranks = None if context.ranks.count == 1 else gathered_over_ranks
    if over_ranks is not None:
        targets_of_all = over_ranks(targets.packed)
        targets = InputMoments(sync_on_compute=False)
        for packed in targets_of_all:
            targets.merge_state({"packed": packed})
        shape = max(over_ranks(shape), key=len)  # a rank without samples knows none
    found = reader.finish(over_ranks)
    directions = None if task.classifier is not None else principal_directions(targets.compute(), what="targets")
    return found, directions, shape


class ValidationReader:
    """Gives the validation samples of this process: rows of inputs, and batches as the network gets them.

    Rows are those of the data set, as the training inputs are read: a hook of the module that normalises batches on the
    device changes neither.

    Args:
        source: The validation samples.
        batch_size: The user's function that returns the number of samples in a batch, or None.
    """

    def __init__(self, source: SampleSource, batch_size: BatchSize | None) -> None:
        self.source = source
        self._batch_size = batch_size
        self._held: dict[int, list[tuple[Tensor, Batch]]] = {}

    def batches(
        self, trainer: Trainer, context: FitContext, objective: Objective, count: int, seed: int
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Rows (n, d) and prepared batches of ``count`` samples of all processes.

        Args:
            trainer: The Trainer.
            context: Its fit.
            objective: Prepares batches.
            count: Number of samples, of all processes together.
            seed: Of their draw.
        """
        if count in self._held:
            yield from self._held[count]
            return
        indices = probe_indices(len(self.source), count, seed)[trainer.global_rank :: trainer.world_size]
        held, size = [], 0
        numbers: bool | None = None
        with self.source.untouched():
            for part in torch.split(indices, max(self.source.batch_size, 1)):
                raw = self.source.read(part)
                inputs = inputs_of(raw, context, len(part))
                if numbers is None:
                    numbers = are_numbers(trainer, context, inputs)
                # A hook of the module may change the batch in place.
                rows = as_rows(inputs.double() if numbers else inputs).clone()
                seen = context.samples.as_seen(trainer, raw, len(part), self._batch_size)
                (batch,) = objective.prepare([seen])
                size += sum(each.nbytes for each in [rows, *tensors_of(batch)])
                if size <= CACHE_BYTES:
                    held.append((rows, batch))
                else:
                    held.clear()
                yield rows, batch
        if size <= CACHE_BYTES:
            self._held = {count: held}
