"""Conditions of a bound and statements about its prior, as sentences that the summary repeats."""

from __future__ import annotations

import math

from lightning_sloppy.certificate import Certificate

INDEPENDENT = "The {} examples are independent draws from the distribution to which the bound applies."
TOGETHER = (
    "All bounds of this run hold together: evaluation t uses the fraction 6/(pi^2 t^2) of each part of delta. If "
    "several runs or certificates start from one checkpoint, this holds for each of them, not for the best one."
)
PREDICTORS = {
    "pair_of_draws": "The bound is for the 0-1 error, in eval mode, of a classifier that picks one of the two drawn "
    "networks at random.",
    "single_draw": "The bound is for the 0-1 error, in eval mode, of the drawn network that was saved, as evaluated.",
}


def conditions(predictor: str, examples: str = "training") -> tuple[str, ...]:
    """Conditions under which a bound on drawn networks holds.

    Args:
        predictor: What is certified.
        examples: "training", or "certifying" for examples that were kept out of the training.
    """
    return (INDEPENDENT.format(examples), PREDICTORS[predictor], TOGETHER)


def spelled(prior: str) -> str:
    """The name of a prior, from either spelling.

    >>> spelled("initialisation")
    'initialization'
    """
    return "initialization" if prior == "initialisation" else prior


STATEMENTS = {
    "initialization": "the initial weights do not depend on the training examples.",
    "pretrained": "the initial weights were trained on other data than the training examples.",
}
FINAL_STATEMENTS = {
    **STATEMENTS,
    "curvature": "the initial weights, and the scales of the prior, which come from the curvature at these weights on "
    "held-out examples, do not depend on the training examples.",
    "split": "the prior's mean was trained on other examples, and nothing in its training or selection depends on the "
    "certifying examples.",
    "pretrained_split": "the initial weights were trained on other data than the certifying examples; the prior's "
    "mean was then trained on other examples, and nothing in its training or selection depends on the certifying "
    "examples.",
}
HOLD_OUT_CONDITION = (
    "The validation examples were not used to train the model, to control the training, or to select a checkpoint from "
    "which it was resumed."
)


def no_bound(n: int, delta: float, *reasons: str) -> Certificate:
    """A certificate without a bound, with the reasons."""
    return Certificate(
        kind="pac_bayes_pair",
        certified_predictor="pair_of_draws",
        value=math.nan,
        valid=False,
        n=n,
        delta=delta,
        reasons=reasons,
    )
