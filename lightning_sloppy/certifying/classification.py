"""The classifier of a fit's network, and checks that it classifies single samples."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_sloppy.certificate import Reason
from lightning_sloppy.certifying import validity
from lightning_sloppy.evaluation.batches import private
from lightning_sloppy.evaluation.classifiers import Classifier, Predict, classifier_of
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.sample_rows import moved
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossChoice
from lightning_sloppy.probing.samples import SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TOGETHER = 16
"""Number of samples that are evaluated in one batch and in two."""
APART = 1e-3
"""A larger difference of two evaluations, relative to the largest output, is not a rounding error."""


def model_classifier(
    trainer: Trainer, context: FitContext, choice: LossChoice, predict: Predict | None
) -> Classifier | Reason:
    """The classifier of the model, or the reason why errors on n known examples cannot be counted.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        choice: The loss.
        predict: The user's rule; None: derived from the loss.

    Raises:
        ConfigurationError: If ``predict`` does not return a label or boolean for each sample.
    """
    if not context.samples.indexable(trainer):
        return Reason(
            "The training samples cannot be read by index (iterable data, several loaders), so errors on n known "
            "examples cannot be counted; use one map-style data set, or disable the bound.",
            flag="no_sample",
            cause="samples",
        )
    key = (choice.objective, id(predict))  # callables need not have a hash
    if key not in context.classifiers:
        context.classifiers[key] = _found(trainer, context, choice, predict)
    if context.classifiers[key] is None and not choice.objective.has_outputs:
        return Reason(
            "The bound counts wrong outputs, but only training_step as a whole is known; pass loss_fn=, the "
            "mean-reduced loss of (outputs, targets), or predict=, a function from outputs to labels.",
            flag="loss_not_bounded",
            cause="loss",
        )
    return context.classifiers[key] or Reason(
        "The bound is for classification, with scores (N, C) and classes (N,), or one logit and targets 0 and 1, but "
        f"the loss ({choice.source}) does not show that the outputs are such scores; pass predict=, a function from "
        "outputs to labels, or a loss of torch for such scores as loss_fn=, or disable the bound (bound=None in "
        "SloppyMonitor).",
        flag="loss_not_bounded",
    )


def _found(trainer: Trainer, context: FitContext, choice: LossChoice, predict: Predict | None) -> Classifier | None:
    source = context.samples.source(trainer)
    indices = torch.arange(min(len(source), source.batch_size))
    batch = choice.objective.prepare(context.samples.read(trainer, source, indices, len(indices)))[0]
    table = context.layout.leaves(context.module, choice.objective.dtype)
    outputs = None
    with nullcontext() if predict else suppress(Exception):
        outputs = choice.objective.output_values(table, private(batch)[0])
    return classifier_of(choice.objective.loss_fn, outputs, batch[1], predict)


def unlearnable(choice: LossChoice) -> Reason | None:
    """Why no posterior can be learnt, or None."""
    if choice.objective.has_outputs:
        return None
    return Reason(
        "Learning a posterior needs a loss of outputs and targets, but only the whole training_step is known; pass the "
        "loss as loss_fn=.",
        flag="loss_not_bounded",
        cause="loss",
    )


def coupled(trainer: Trainer, context: FitContext, choice: LossChoice, source: SampleSource) -> list[str]:
    """The reason if the network is not a function of single samples: outputs depend on the other samples of the batch.

    This happens with batch statistics in eval mode and attention over the batch. To detect it, 16 samples are evaluated
    in one batch and in two. If two reads of a sample differ, this cannot be decided, and the random reads are a reason
    by themselves.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        choice: The loss, whose objective computes the outputs.
        source: The samples.
    """
    indices = probe_indices(len(source), TOGETHER, seed=6)
    if len(indices) < 4 or validity.reads_differ(trainer, context, source):
        return []
    # With noise on the weights: a head of zeros would hide the effect, and drawn networks have no such head.
    table = moved(choice.objective.copied_parameters())

    def rows(part: Tensor) -> list[Tensor]:
        batch = choice.objective.prepare(context.samples.read(trainer, source, part, len(part)))[0]
        found = tensors_of(choice.objective.output_values(table, private(batch)[0]))
        return [tensor.double() for tensor in found if tensor.shape[:1] == (len(part),)]

    whole = rows(indices)
    first, second = (rows(part) for part in indices.tensor_split(2))
    for tensor, *halves in zip(whole, first, second, strict=False):
        if halves[0].shape[1:] != tensor.shape[1:] or halves[1].shape[1:] != tensor.shape[1:]:
            continue  # padded to the longest of a batch
        if float((tensor - torch.cat(halves)).abs().nan_to_num().max()) > APART * float(
            tensor.abs().nan_to_num().max()
        ):
            return [
                Reason(
                    f"The outputs for a sample depend on the other samples in its batch ({len(indices)} samples in "
                    "one batch and in two differ), so the network does not classify single samples; look for batch "
                    "statistics in eval mode (track_running_stats=False) or attention over the batch.",
                    flag="batch_coupled_prediction",
                )
            ]
    return []
