"""What a final certificate rests on, once nothing was found that forbids it, and the conditions that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_sloppy.bounds.statements import FINAL_STATEMENTS
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.certifying.priors import Samples, is_split
from lightning_sloppy.certifying.start_check import StartCheck
from lightning_sloppy.certifying.validity import module_conditions
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.posteriors.learning_plan import Spread
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import CURVATURE_SAMPLES

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Examined:
    """What a certificate rests on, when nothing forbids it.

    Attributes:
        classifier: Outputs and targets to mistakes.
        samples: Certifying ones, and those held out.
        check: Of the weights at the start.
        prior_mean: Weights around which the prior is, (p,).
    """

    classifier: Classifier
    samples: Samples
    check: StartCheck
    prior_mean: Tensor

    def template(
        self,
        trainer: Trainer,
        context: FitContext,
        *,
        prior: str,
        spread: Spread,
        delta: float,
        guess_error: float,
        live_value: float,
        seed: int,
    ) -> Certificate:
        """Conditions, statements and origins, to be copied into the certificates.

        Args:
            trainer: The Trainer.
            context: Of the fit.
            prior: Where the prior comes from.
            spread: What has a deviation of its own.
            delta: Failure probability of the run.
            guess_error: Error rate of calling every sample the most frequent class.
            live_value: The run's latest live bound.
            seed: Of the draws.
        """
        source, held_out = self.samples.rows.source, self.samples.held_out
        n_prior = 0 if held_out is None else min(len(held_out), CURVATURE_SAMPLES)
        if is_split(prior):
            n_prior = len(context.samples.source(trainer))
        return Certificate(
            kind="",
            certified_predictor="",
            value=math.nan,
            valid=True,
            n=len(source),
            delta=delta,
            n_prior=n_prior,
            examples="certifying" if is_split(prior) else "training",
            posterior={"weights": "diagonal"}.get(spread, spread),
            conditions=(*self.samples.rows.conditions, *module_conditions(context), *self.check.open_questions),
            remarks=(self.check.words,),
            prior=FINAL_STATEMENTS[prior],
            start_error=self.check.error,
            guess_error=guess_error,
            live_value=live_value,
            sample_hash=context.samples.digests(source).fingerprint,
            seed=seed,
        )
