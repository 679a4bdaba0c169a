"""What a person must grant for a bound to hold, in sentences that the summary repeats."""

from __future__ import annotations

import math

from lightning_sloppy.certificate import Certificate

INDEPENDENT = "The {} examples are independent draws from the distribution that the bound speaks of."
TOGETHER = (
    "All bounds of this run hold together: evaluation t spends 6/(pi^2 t^2) of each part of delta. Of several runs "
    "resumed from one checkpoint, or certificates made of it, that is true for each, not for the best of them."
)
PREDICTORS = {
    "pair_of_draws": "It certifies the 0-1 error, in eval mode, of one of the two drawn networks picked at random.",
    "single_draw": "It certifies the 0-1 error, in eval mode, of the drawn network that was saved, as evaluated.",
}


def conditions(predictor: str, examples: str = "training") -> tuple[str, ...]:
    """Under which conditions a bound on drawn networks holds.

    Args:
        predictor: Who is certified.
        examples: "training", or "certifying" for those that were kept from it.
    """
    return (INDEPENDENT.format(examples), PREDICTORS[predictor], TOGETHER)


def spelled(prior: str) -> str:
    """The name of a prior, also where it was spelled the British way.

    >>> spelled("initialisation")
    'initialization'
    """
    return "initialization" if prior == "initialisation" else prior


STATEMENTS = {
    "initialization": "the weights at the start of training do not depend on the training examples.",
    "pretrained": "the weights at the start were trained on other data than the training examples.",
}
FINAL_STATEMENTS = {
    **STATEMENTS,
    "curvature": "the weights at the start of training, and the scales of the prior around them, which come from the "
    "curvature there on held-out examples, do not depend on the training examples.",
    "split": "the prior's mean was trained on other examples, and nothing in its training or choice depends on the "
    "certifying ones.",
    "pretrained_split": "the weights at the start were trained on other data than the certifying examples; the prior's "
    "mean was trained from there on other examples, and nothing in its training or choice depends on the certifying "
    "ones.",
}
HOLD_OUT_CONDITION = (
    "The validation examples were not used to train, to steer the training, or to choose a checkpoint that it resumes."
)


def no_bound(n: int, delta: float, *reasons: str) -> Certificate:
    """A certificate without a number, and the reasons why there is none."""
    return Certificate(
        kind="pac_bayes_pair",
        certified_predictor="pair_of_draws",
        value=math.nan,
        valid=False,
        n=n,
        delta=delta,
        reasons=reasons,
    )
