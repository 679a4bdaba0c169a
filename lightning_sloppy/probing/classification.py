"""What a fit's network says of a sample, and what is a mistake of it."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import torch

from lightning_sloppy.certificate import Reason
from lightning_sloppy.evaluation.batches import private
from lightning_sloppy.evaluation.classifiers import Classifier, Predict, classifier_of
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossChoice

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def model_classifier(
    trainer: Trainer, context: FitContext, choice: LossChoice, predict: Predict | None
) -> Classifier | Reason:
    """The model's own classifier, or why there is no error on n known examples to count.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        choice: The loss.
        predict: The user's own rule; None asks the loss what outputs are.

    Raises:
        ConfigurationError: For a ``predict`` that gives no label or boolean for each sample.
    """
    if not context.indexable(trainer):
        return Reason(
            "The training samples cannot be read by index (iterable data, several loaders), so no error on n known "
            "examples can be counted; use one map-style data set, or leave the bound out.",
            flag="no_sample",
        )
    key = (choice.objective, predict)
    if key not in context.classifiers:
        context.classifiers[key] = _found(trainer, context, choice, predict)
    return context.classifiers[key] or Reason(
        f"The bound is for classification with scores (N, C) of the classes (N,), or one logit for targets 0 and 1, "
        f"and the objective ({choice.source}) does not say that the outputs are that; pass predict=, a function from "
        "outputs to labels, or, where it is a loss of torch that was not found, that as loss_fn=; or leave the bound "
        "out (bound=None in SloppyMonitor).",
        flag="loss_not_bounded",
    )


def _found(trainer: Trainer, context: FitContext, choice: LossChoice, predict: Predict | None) -> Classifier | None:
    source = context.source(trainer)
    indices = torch.arange(min(len(source), source.batch_size))
    batch = choice.objective.prepare(context.read(trainer, source, indices, len(indices)))[0]
    table = context.layout.leaves(context.module, choice.objective.dtype)
    outputs = None
    with torch.no_grad(), nullcontext() if predict else suppress(Exception):
        outputs = choice.objective.outputs(table, private(batch)[0])
    return classifier_of(choice.objective.loss_fn, outputs, batch[1], predict)


def unlearnable(choice: LossChoice) -> Reason | None:
    """Why no posterior can be learnt, or None."""
    if choice.objective.has_outputs:
        return None
    return Reason(
        "A posterior is learnt by a loss of outputs and targets, and only the whole training_step is known; pass the "
        "loss as loss_fn=.",
        flag="loss_not_bounded",
    )
