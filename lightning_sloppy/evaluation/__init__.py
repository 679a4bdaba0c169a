"""Compute outputs and losses of a module on batches without changing the module. Torch only."""

from lightning_sloppy.evaluation.batches import Batch, as_pair, sample_count
from lightning_sloppy.evaluation.classifiers import Classifier, classifier_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.preserve import is_measuring, preserved
from lightning_sloppy.evaluation.weights import known_loss, sample_weights

__all__ = [
    "Batch",
    "Classifier",
    "Objective",
    "as_pair",
    "classifier_of",
    "is_measuring",
    "known_loss",
    "preserved",
    "sample_count",
    "sample_weights",
]
