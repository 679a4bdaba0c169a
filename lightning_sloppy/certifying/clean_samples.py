"""The samples of a certificate: those of the training, or the same ones without augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sloppy.certificate import Reason
from lightning_sloppy.certifying.validity import TWICE, reads_differ
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import as_pair, is_whole
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.preserve import random_streams
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.digests import LOOKED_AT
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Clean = str | DataLoader[Any] | Dataset[Any] | Callable[[], Any]
"""A loader, a data set, a function that gives either, or the name of a method of the data module that does."""

CLEAN_CONDITION = (
    "The examples are read from clean=, the same samples in the same order without random transforms. The bound is for "
    "the error on samples that are read in this way."
)


@dataclass(frozen=True)
class CleanSamples:
    """Samples as a certificate reads them.

    Attributes:
        source: The samples, each at its index in the training data. If ``clean`` cannot be used: those of the training.
        reasons: Why there is no bound; empty if there is one.
        conditions: Conditions of a bound that concern them.
    """

    source: SampleSource
    reasons: tuple[Reason, ...] = ()
    conditions: tuple[str, ...] = ()


def checked_clean(clean: Clean | None) -> Clean | None:
    """Return the argument if it can provide samples.

    Raises:
        ConfigurationError: For anything else.
    """
    indexed = hasattr(clean, "__len__") and hasattr(clean, "__getitem__")
    if clean is None or isinstance(clean, (str, DataLoader)) or indexed or callable(clean):
        return clean
    raise ConfigurationError(
        f"clean={clean!r} provides no samples; pass a DataLoader or a data set with length and index, a function that "
        "returns one, or the name of such a method of the data module."
    )


def require_clean(trainer: Trainer, module: LightningModule, clean: Clean | None) -> None:
    """Check at ``setup`` that a name is the name of a method.

    Raises:
        ConfigurationError: If neither the data module nor the module has it.
    """
    if isinstance(clean, str):
        _named(trainer, module, clean)


def clean_samples(
    trainer: Trainer, context: FitContext, clean: Clean | None, given: SampleSource, *, part: bool = False
) -> CleanSamples:
    """Samples as a certificate reads them, and what forbids that; looked at once in a fit.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        clean: The same samples in the same order without random transforms; None: as the training reads them.
        given: The samples as the training reads them.
        part: Whether they are a part of the samples that ``clean`` has, whatever their number: those of a split.
    """
    key = (clean if isinstance(clean, str) else id(clean), given, part)
    if key not in context.clean:
        found = _clean(trainer, context, clean, given, part=part)
        context.clean[key] = found if context.ranks.count == 1 else _agreed(found, given)
    known: CleanSamples = context.clean[key]
    return known


def _agreed(own: CleanSamples, given: SampleSource) -> CleanSamples:
    """The reasons of the first rank that has any, on every rank: perhaps only one of them reads at random."""
    said = gathered_over_ranks((own.reasons, own.conditions))
    reasons, conditions = next((found for found in said if found[0]), said[0])
    return CleanSamples(given if reasons else own.source, reasons, conditions)


def _clean(
    trainer: Trainer, context: FitContext, clean: Clean | None, given: SampleSource, *, part: bool
) -> CleanSamples:
    if clean is None:
        return CleanSamples(given, (_random_reads(),) if reads_differ(trainer, context, given) else ())
    opened = _opened(trainer, context, clean)
    if isinstance(opened, Reason):
        return CleanSamples(given, (opened,))
    places = given.places_in(len(opened), part=part)
    if places is None:
        return CleanSamples(
            given,
            (
                _other(
                    f"clean= has {len(opened):,} samples, but the training data "
                    f"{'are split from another number' if part else f'have {len(given):,}'}"
                ),
            ),
        )
    source = opened.in_place_of(given, places)
    if reads_differ(trainer, context, source):
        return CleanSamples(given, (_random_clean(),))
    found = _labels(context, given, source)
    if isinstance(found, Reason):
        return CleanSamples(given, (found,))
    return CleanSamples(source, (), (CLEAN_CONDITION, *found))


def _opened(trainer: Trainer, context: FitContext, clean: Clean) -> SampleSource | Reason:
    """The samples that the user's argument provides."""
    given = _named(trainer, context.module, clean) if isinstance(clean, str) else clean
    try:
        made: Any = given() if callable(given) and not hasattr(given, "__getitem__") else given
        # A data set uses the collate function of the training.
        collate = None if isinstance(made, DataLoader) else context.samples.source(trainer).loader.collate_fn
        loader = made if isinstance(made, DataLoader) else DataLoader(made, collate_fn=collate)
        return SampleSource(loader)
    except ConfigurationError as error:
        return Reason(f"clean= cannot be read by index: {error}", flag="no_sample")


def _named(trainer: Trainer, module: LightningModule, name: str) -> Any:
    for owner in (getattr(trainer, "datamodule", None), module):
        found = None if owner is None else getattr(owner, name, None)
        if found is not None:
            return found
    raise ConfigurationError(
        f"clean={name!r} is not the name of a method of the data module or the module; pass one that returns the "
        "training samples without random transforms, as a loader or a data set."
    )


def _labels(context: FitContext, given: SampleSource, clean: SampleSource) -> tuple[str, ...] | Reason:
    """Check that both have the same labels; returns a condition if this cannot be checked."""
    indices = probe_indices(len(given), LOOKED_AT, seed=2).sort().values
    readable = _steady(context, given)
    if not readable:
        return (
            "The labels of clean= and of the training data were not compared, because those of the training data "
            "cannot be identified or are random. It is the user's statement that they are the same samples in the same "
            "order.",
        )
    differ, kept = 0, ([], [])  # type: tuple[int, tuple[list[Tensor], list[Tensor]]]
    with random_streams(), given.untouched(), clean.untouched():
        for rows in torch.split(indices, READ_CHUNK):
            trained, judged = _targets(context, given, rows), _targets(context, clean, rows)
            unequal = torch.zeros(len(rows), dtype=torch.bool)
            for place in readable:
                first, second = trained[place], judged[place] if len(judged) == len(trained) else None
                if second is None or first.shape != second.shape:
                    return _other("The labels of clean= have another shape than those of the training data")
                found = _unequal(first, second)
                unequal |= found.reshape(len(rows), -1).any(1) if first.shape[:1] == (len(rows),) else found.any()
                for labels, tensor in zip(kept, (first, second), strict=True):
                    labels.append(tensor.reshape(-1))
            differ += int(unequal.sum())
    if not differ:
        return ()
    if len(readable) == 1 and not _unequal(*(torch.cat(labels).sort().values for labels in kept)).any():
        return _other("clean= has the labels of the training data in another order")
    return _other(f"clean= has other labels than the training data for {differ:,} of {len(indices):,} samples")


def _steady(context: FitContext, source: SampleSource) -> list[int]:
    """Places of the labels that two reads of the training data have alike, among the tensors of the targets.

    A batch that is no pair is its own target: labels are then whole numbers, one for each sample.
    """
    indices = probe_indices(len(source), TWICE, seed=1)
    with random_streams(), source.untouched():
        first = [tensor.clone() for tensor in _targets(context, source, indices)]
        second = _targets(context, source, indices)
        whole = is_whole(as_pair(source.read(indices), module=context.module, read=len(indices)))
    return [
        place
        for place, (one, two) in enumerate(zip(first, second, strict=True))
        if one.shape == two.shape
        and not _unequal(one, two).any()
        and not (whole and (one.is_floating_point() or one.numel() != len(indices)))
    ]


def _targets(context: FitContext, source: SampleSource, indices: Tensor) -> list[Tensor]:
    """As the collate function gives them, without the hooks of the module."""
    return tensors_of(as_pair(source.read(indices), module=context.module, read=len(indices))[1])


def _unequal(first: Tensor, second: Tensor) -> Tensor:
    """Where two labels differ; numbers that are none are alike."""
    return (first != second) & ~((first != first) & (second != second))


def _other(what: str) -> Reason:
    return Reason(
        f"{what}, so they are not the same samples in the same order; pass the data set of the training without its "
        "random transforms.",
        flag="other_samples",
    )


def _random_reads() -> Reason:
    return Reason(
        "Two reads of the same sample differ (augmentation), so the n examples are not fixed; pass clean=, the same "
        "samples in the same order without random transforms, or augment in training_step.",
        flag="augmentation_in_certification",
    )


def _random_clean() -> Reason:
    return Reason(
        "Two reads of the same sample of clean= differ, so the n examples are not fixed; remove its random transforms "
        "(a data set uses the collate_fn of the training, a DataLoader its own), and do not augment in a hook that "
        "runs on every batch (on_after_batch_transfer).",
        flag="augmentation_in_certification",
    )
