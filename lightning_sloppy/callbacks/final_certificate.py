"""At the end of a fit: a posterior optimised for its bound, certified with fresh draws, saved with its certificate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lightning_sloppy.bounds.final import FinalCertificates
from lightning_sloppy.bounds.learning import Learnt
from lightning_sloppy.bounds.plan import LearningPlan
from lightning_sloppy.bounds.statements import CONDITIONS, FINAL_STATEMENTS, no_bound
from lightning_sloppy.callbacks.base import MeasuringCallback, peers
from lightning_sloppy.callbacks.pac_bayes import PACBayesBound
from lightning_sloppy.certificate import Certificate, Reason
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals, validity
from lightning_sloppy.probing.certification import Question, folder_of, learnt_and_certified, save
from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.probing.error_counts import ErrorCounter
from lightning_sloppy.probing.prior_split import PriorSplit
from lightning_sloppy.probing.samples import SampleSource
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Prior = Literal["initialisation", "split"]


class FinalCertificate(MeasuringCallback):
    """Optimise a Gaussian around the trained model for its PAC-Bayes bound, certify two networks drawn from it.

    When the training is over, the inverted kl is minimised over the mean and a deviation for each weight
    (``lightning_sloppy.bounds.learning``); then two opposite networks are drawn afresh, judged on all n examples, and
    written as normal checkpoints with their certificates beside them: ``certificate.json`` for picking one of the two
    at random, ``certified_1.json`` for the first of them, to be deployed. The model itself stays what the training made
    it.

    Two priors: "initialisation", the weights before the first step; "split", the trained weights, where a
    :class:`PriorSplit` has kept the certifying examples from the training: then n is their number, and the bound is
    usually several times smaller. Beside a :class:`PACBayesBound` it is the next evaluation of that run's schedule,
    so that all hold together.

    Args:
        delta: Failure probability of everything that this run calls a bound, a PACBayesBound's included.
        prior: Where the prior is centred; with it you state that those weights do not depend on the certifying
            examples.
        learning: Time limit, rates, and what has a deviation of its own; None for the defaults of LearningPlan.
        folder: Where networks and certificates go; None: ``certificate`` in the run's log folder.
        seed: Of the learning and the draws.
        strict: Raise errors instead of warning.

    Attributes:
        certificates: Of the pair and of the first network, once they are there.
        learnt: How the posterior was found.

    Raises:
        ConfigurationError: For arguments out of range; in ``setup`` for ``prior="split"`` without a PriorSplit, and
            beside a PACBayesBound of another delta.

    Example:
        >>> FinalCertificate(learning=LearningPlan(seconds=60)).delta
        0.05
    """

    group = "certificate"

    def __init__(
        self,
        delta: float = 0.05,
        *,
        prior: Prior = "initialisation",
        learning: LearningPlan | None = None,
        folder: str | None = None,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__(strict=strict)
        if not 0 < delta < 1:
            raise ConfigurationError(f"delta={delta} is no failure probability; pass a number between 0 and 1.")
        if prior not in FINAL_STATEMENTS:
            raise ConfigurationError(f"prior={prior!r} is no known prior; pass 'initialisation' or 'split'.")
        self.delta = delta
        self.prior = prior
        self.learning = learning or LearningPlan()
        self.folder = folder
        self.seed = seed
        self.certificates: tuple[Certificate, Certificate] | None = None
        self.learnt: Learnt | None = None
        self._prior_mean: Tensor | None = None
        self._evaluation = 0
        self._trained_on: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be certified."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.certificates = self.learnt = None
        if self.prior == "split" and not isinstance(getattr(trainer, "datamodule", None), PriorSplit):
            raise ConfigurationError(
                "FinalCertificate(prior='split') was asked for, but the fit's data module is no PriorSplit, so no "
                "examples are kept for certifying; pass datamodule=PriorSplit(your_datamodule)."
            )
        live = self._live(trainer)
        if live is not None and live.delta != self.delta:
            raise ConfigurationError(
                f"FinalCertificate has delta={self.delta} and PACBayesBound delta={live.delta}, but one run has one "
                "failure probability; give both the same."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights before the first step, and which samples are trained on."""
        try:
            context = fit_context(trainer, pl_module)
        except ConfigurationError:
            return  # the measurement says what is wrong
        split = getattr(trainer, "datamodule", None)
        now = split.fingerprint() if isinstance(split, PriorSplit) else None
        if context.fresh:
            self._prior_mean, self._evaluation, self._trained_on = context.start, 0, now
        elif self._trained_on != now:
            self._trained_on = None

    def after_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn, certify, save."""
        self.take(trainer, pl_module, step=max(trainer_internals.effective_batches(trainer) - 1, 0))

    def measure(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """The final certificates, or why there are none."""
        choice = context.objective(trainer, None)
        if not context.indexable(trainer) or not choice.classification:
            certificate = no_bound(
                context.train_size(trainer) or 0,
                self.delta,
                Reason(
                    "A certificate needs a classification loss with (N, C) scores and (N,) class indices, and samples "
                    f"that can be read by index; the objective found is {choice.source}.",
                    flag="loss_not_bounded",
                ),
            )
            return self._measurement(trainer, step, certificate, None, str(choice.objective.dtype))
        source, reasons = self._sample(trainer, context)
        prior_mean = context.layout.vector(context.module) if self.prior == "split" else self._prior_mean
        if prior_mean is None or len(prior_mean) != context.layout.dim or any(_fatal(reason) for reason in reasons):
            certificate = no_bound(len(source), self.delta, *reasons)
            return self._measurement(trainer, step, certificate, None, str(choice.objective.dtype))
        question = Question(
            prior_mean=prior_mean,
            counter=ErrorCounter(trainer, context, source, choice.objective),
            n=len(source),
            delta=self.delta,
            evaluation=self._next_evaluation(trainer) if not reasons else 1,
            plan=self.learning,
            seed=self.seed,
            reasons=reasons,
            template=self._template(trainer, context, source),
        )
        with progress(trainer, f"Certificate: learning a posterior, at most {self.learning.seconds:g} s", 100) as bar:
            shown = 0

            def tell(done: float) -> None:
                nonlocal shown
                if int(100 * done) > shown:
                    bar.advance(int(100 * done) - shown)
                    shown = int(100 * done)

            self.learnt, final = learnt_and_certified(context, question, tell)
        folder = folder_of(trainer, self.folder)
        final = save(trainer, context, folder, final)
        self.certificates = (final.pair, final.single)
        found = self._measurement(trainer, step, final.pair, final, str(choice.objective.dtype))
        return replace(found, notes=(f"Networks and certificates: {folder}.",))

    def _sample(self, trainer: Trainer, context: FitContext) -> tuple[SampleSource, list[str]]:
        """The samples that certify, and what forbids a bound on them."""
        source = context.source(trainer)
        if self.prior == "initialisation":
            reasons = validity.module_reasons(context, self._prior_mean)
            return source, [*reasons, *validity.data_reasons(trainer, context, source)]
        split = trainer.datamodule
        certifying = SampleSource(split.certification_dataloader())
        reasons = validity.split_reasons(trainer, context, certifying)
        if not context.fresh and self._trained_on is None:
            reasons.append(
                Reason(
                    "The weights were trained before this fit, or on another split, so they may have seen the "
                    "certifying examples; train on this PriorSplit from fresh weights, or resume with this callback.",
                    flag="prior_depends_on_sample",
                )
            )
        return certifying, reasons

    def _template(self, trainer: Trainer, context: FitContext, source: SampleSource) -> Certificate:
        split = self.prior == "split"
        return Certificate(
            kind="",
            certified_predictor="",
            value=math.nan,
            valid=True,
            n=len(source),
            delta=self.delta,
            conditions=CONDITIONS,
            n_prior=len(context.source(trainer)) if split else 0,
            posterior={"weights": "diagonal", "layers": "layers"}[self.learning.spread],
            prior=FINAL_STATEMENTS[self.prior],
            sample_hash=validity.sample_fingerprint(source),
            seed=self.seed,
        )

    def _live(self, trainer: Trainer) -> PACBayesBound | None:
        return next((peer for peer in peers(trainer) if isinstance(peer, PACBayesBound)), None)

    def _next_evaluation(self, trainer: Trainer) -> int:
        live = self._live(trainer)
        self._evaluation = self._evaluation + 1 if live is None else live.count_evaluation()
        return self._evaluation

    def _measurement(
        self, trainer: Trainer, step: int, certificate: Certificate, final: FinalCertificates | None, dtype: str
    ) -> Measurement:
        for reason in certificate.reasons:
            self.warn_once(f"There is no final certificate: {reason}", trainer=trainer, key=reason[:40])
        estimates = {}
        if final is not None:
            estimates = {
                "gibbs_error": Estimate(certificate.empirical_risk),
                "log_ratio": Estimate(certificate.log_ratio),
                "kl_displacement": Estimate(certificate.kl_displacement),
                "kl_covariance": Estimate(certificate.kl_covariance),
            }
        if final is not None and certificate.valid:
            estimates |= {"pair": Estimate(final.pair.value), "single": Estimate(final.single.value)}
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            matrix=self.group,
            spectrum=None,
            estimates=estimates,
            cost=Cost(method="optimised"),
            status=Status.CONVERGED if certificate.valid else Status.UNAVAILABLE,
            num_samples=certificate.risk_samples,
            precision=dtype.removeprefix("torch."),
            certificate=certificate,
        )

    def go_on_from(self, *, prior_mean: Tensor | None, evaluation: int, trained_on: str | None) -> None:
        """Take up an earlier run.

        Args:
            prior_mean: Weights before its first step, flat.
            evaluation: Evaluations of its schedule so far.
            trained_on: Fingerprint of the split that it trained on.
        """
        self._prior_mean, self._evaluation, self._trained_on = prior_mean, evaluation, trained_on

    def settings(self) -> dict[str, Any]:
        """Failure probability and prior."""
        return {"delta": self.delta, "prior": self.prior, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Also the initial weights, the evaluations so far, and which split was trained on."""
        known = {} if self._prior_mean is None else {"prior_mean": self._prior_mean}
        return {**super().state_dict(), **known, "evaluation": self._evaluation, "trained_on": self._trained_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the prior of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self.go_on_from(
            prior_mean=state_dict.get("prior_mean"),
            evaluation=int(state_dict.get("evaluation", 0)),
            trained_on=state_dict.get("trained_on"),
        )


def _fatal(reason: str) -> bool:
    """Whether there is not even a posterior to learn."""
    return getattr(reason, "flag", "") in ("low_precision", "parameters_changed")
