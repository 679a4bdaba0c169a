"""A certificate at the end of a fit: optimise a posterior for its bound, certify it with new draws, and save both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.bounds.concentration import require_probability
from lightning_sloppy.bounds.statements import FINAL_STATEMENTS, no_bound, spelled
from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.bound_quantities import FINAL_QUANTITIES, final_estimates
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.callbacks.pac_bayes_bound import PACBayesBound
from lightning_sloppy.certificate import Certificate, Reason, key_of
from lightning_sloppy.certifying.certificate_task import CertificateTask, RunState
from lightning_sloppy.certifying.certified_networks import folder_of, forget_files, learn_and_certify, save
from lightning_sloppy.certifying.classification import coupled, model_classifier, unlearnable
from lightning_sloppy.certifying.clean_samples import Clean, CleanSamples, checked_clean, require_clean
from lightning_sloppy.certifying.curvature_coordinates import coordinates_of, leading_pairs
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.certifying.examined import Examined
from lightning_sloppy.certifying.priors import Prior, is_split, require_samples, samples_for, trained_samples
from lightning_sloppy.certifying.repeats import Duplicates, require_duplicates
from lightning_sloppy.certifying.start_check import PRETRAINED, checked_start, start_reasons
from lightning_sloppy.display import at_most
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import Predict
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.posteriors.learning import Learnt
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.posteriors.posterior_certificate import FinalCertificates
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.loss_choice import LossArgument, LossChoice
from lightning_sloppy.records import Cost, Measurement, Status
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FinalCertificate(MeasuringCallback):
    """Optimise a Gaussian around the trained model for its PAC-Bayes bound, and certify two networks drawn from it.

    After the training, the inverted kl is minimised over the mean and a deviation for each weight
    (``lightning_sloppy.posteriors.learning``). Then an antithetic pair of networks is drawn and evaluated on all n
    examples. The two are saved as normal checkpoints together with their certificates: ``certificate.json`` is for a
    classifier that picks one of the two at random, ``certified_1.json`` for the first of them, to be deployed. The
    trained model itself is not changed.

    Priors:

    * "initialization": isotropic around the initial weights.
    * "pretrained": the same, with your statement that the initial weights were trained on other data than the
      certifying examples.
    * "curvature": around the initial weights, but wider in directions of larger curvature, measured there on samples
      of the first validation loader (``lightning_sloppy.posteriors.curvature_scales``).
    * "split": isotropic around the trained weights. A :class:`PriorSplit` keeps the certifying examples out of the
      training; n is their number, and the bound is usually several times smaller.
    * "pretrained_split": the same, if that training began with weights that were trained on other data.

    If there is a :class:`PACBayesBound` in the fit, this certificate is the next evaluation in its schedule, so that
    all bounds hold together.

    The initial weights are checked: they must not make fewer mistakes than new initialisations do, unless you state
    that they come from other data, nor far fewer than on the validation samples (docs/certificates.md).

    Args:
        delta: Failure probability of all bounds of the run together, including those of a PACBayesBound. None: that of
            the PACBayesBound in the fit, else 0.05.
        prior: The prior. By choosing it you state that it does not depend on the certifying examples.
        learning: Time limit, learning rates, and what gets a deviation of its own. None: the defaults of LearningPlan.
        loss_fn: Mean-reduced loss of (outputs, targets) to minimise. None: found from the module and checked.
        predict: The classifier, if the loss does not define it: ``predict(outputs)`` returns labels (N,), or
            ``predict(outputs, targets)`` booleans (N,), true for a mistake. None: the class with the largest score, or
            the sign of a single logit, if the loss treats the outputs as such.
        duplicates: Your statement about equal samples. "natural": independent draws that happen to be equal.
            "copies": copies of one draw, counted once. None: the larger of both bounds, valid in both cases.
        clean: The training samples in the same order without random transforms (augmentation), for learning and
            evaluation: a DataLoader, a data set, a function that returns one, or the name of such a method of the data
            module. With a PriorSplit: all samples that it splits. The certificate is then for the error on clean
            samples. None: the value of the SloppyMonitor, if any, else the samples as the training reads them.
        folder: Folder of the networks and certificates. None: ``certificate`` in the run's log folder.
        seed: Seed of the learning and the draws. None: that of the SloppyMonitor, if any, else 0.
        strict: Raise errors instead of warning. None: as in the SloppyMonitor, if any, else false.

    Attributes:
        certificates: Certificates of the pair and of the first network, after the fit.
        learnt: How the posterior was found.

    Raises:
        ConfigurationError: For arguments out of range. In ``setup``: for ``prior="split"`` without a PriorSplit, for
            ``prior="curvature"`` without validation samples, and if a PACBayesBound has another delta.

    Example:
        >>> FinalCertificate(learning=LearningPlan(seconds=60)).delta
        0.05
    """

    default_name = "certificate"
    title = "Certificate"
    quantities = FINAL_QUANTITIES
    cost_advice = "`learning.seconds` limits them."
    measures_once = True

    loss_fn: LossArgument | None
    clean: Clean | None

    def __init__(
        self,
        delta: float | None = None,
        *,
        prior: Prior = "initialization",
        learning: LearningPlan | None = None,
        loss_fn: Loss | None = None,
        predict: Predict | None = None,
        duplicates: Duplicates | None = None,
        clean: Clean | None = None,
        folder: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        super().__init__(seed=seed, strict=strict)
        self._given_delta = delta
        self.delta = 0.05 if delta is None else delta
        require_probability(self.delta, "delta")
        prior_name = spelled(prior)
        if prior_name not in FINAL_STATEMENTS:
            raise ConfigurationError(f"prior={prior!r} is no known prior; pass one of {', '.join(FINAL_STATEMENTS)}.")
        if learning is not None and learning.directions and prior_name == "curvature":
            raise ConfigurationError(
                "directions= are orthogonal only if the prior is isotropic, and prior='curvature' is not; use "
                "directions=0, or another prior."
            )
        self.prior = prior_name
        self.learning = learning or LearningPlan()
        self._settle(loss_fn=(loss_fn, None), clean=(checked_clean(clean), None))
        self.folder = folder
        self.predict = predict
        require_duplicates(duplicates)
        self.duplicates = duplicates
        self.certificates: tuple[Certificate, Certificate] | None = None
        self.learnt: Learnt | None = None
        self._given: RunState | None = None
        self._run_state = RunState()
        self._bound: PACBayesBound | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be certified. The state of an earlier fit is used only for the initial weights."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.certificates = self.learnt = None
        self._run_state = self._given or replace(self._run_state, split=None)
        self._given = None
        require_samples(trainer, self.prior, self.duplicates)
        require_clean(trainer, pl_module, self.clean)
        self._bound = next((peer for peer in peers(trainer) if isinstance(peer, PACBayesBound)), None)
        if self._given_delta is None:
            self.delta = 0.05 if self._bound is None else self._bound.delta
        if self._bound is not None and self._bound.delta != self.delta:
            raise ConfigurationError(
                f"FinalCertificate has delta={self.delta} and PACBayesBound delta={self._bound.delta}, but a run has "
                "only one failure probability; use the same value in both."
            )
        if self.learning.seconds > trainer_internals.process_group_seconds(trainer) / 2:
            raise ConfigurationError(
                f"Learning the posterior may take {self.learning.seconds:g} s while other processes wait, and they "
                f"time out after {trainer_internals.process_group_seconds(trainer):g} s; lower learning.seconds, or "
                "increase the strategy's timeout to more than twice as much."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the initial weights and the rest of the network's state, and check the samples."""
        try:
            context = fit_context(trainer, pl_module)
        except Exception:
            return  # the measurement at the end reports the error
        known: CleanSamples | None = None
        split = None
        with suppress(Exception), measuring(pl_module):
            known = context.ranks.together(lambda: trained_samples(trainer, context, self.prior, self.clean))
            split = context.samples.digests(known.source).fingerprint if is_split(self.prior) else None
        self._warn(() if known is None else known.reasons, trainer)
        if is_split(self.prior) and split is None:
            return
        origin = context.origin
        if origin.fresh or (self.prior in PRETRAINED and self._run_state.prior_mean is None and origin.begins):
            buffers = dict(pl_module.named_buffers()) if is_split(self.prior) else {}
            buffers = {name: buffer.detach().cpu().clone() for name, buffer in buffers.items()}
            self._run_state = RunState(origin.weights, 0, split, dict(origin.digests), buffers)
        elif self._run_state.split != split:
            self._run_state = replace(self._run_state, split=None)

    @property
    def needs_loss(self) -> bool:
        """Whether the loss that the training steps confirm is used at the end."""
        return self.loss_fn is None

    def after_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn, certify and save, except in a dry run."""
        if trainer.fast_dev_run:
            return
        step = max(trainer_internals.effective_batches(trainer) - 1, 0)
        self.run(trainer, pl_module, step=step, epoch=max(trainer.current_epoch - 1, 0))

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """The final certificates, or the reasons why there are none."""
        folder = folder_of(trainer, self.folder)
        if trainer.is_global_zero:
            forget_files(folder)
        choice = context.losses.choice(trainer, self.loss_fn)
        dtype = str(choice.objective.dtype)
        examined = self._examined(trainer, context, choice)
        if isinstance(examined, Certificate):
            return self._measurement(trainer, step, examined, None, dtype)
        task = self._task(trainer, context, choice, examined)
        final = save(trainer, context, folder, self._learnt_and_certified(trainer, context, task, folder))
        self.certificates = (final.pair, final.single)
        found = self._measurement(trainer, step, final.pair, final, dtype)
        return replace(found, notes=(f"Networks and certificates: {folder}.",))

    def _examined(self, trainer: Trainer, context: FitContext, choice: LossChoice) -> Examined | Certificate:
        """What the certificate needs, or a certificate without a bound if something forbids one."""
        classifier = unlearnable(choice) or model_classifier(trainer, context, choice, self.predict)
        if isinstance(classifier, Reason):
            return no_bound(context.samples.train_size(trainer) or 0, self.delta, classifier)
        samples = samples_for(
            trainer, context, self.prior, self._run_state, clean=self.clean, duplicates=self.duplicates
        )
        source = samples.rows.source
        reasons = samples.reasons or coupled(trainer, context, choice, source)
        if reasons:
            return no_bound(len(source), self.delta, *reasons)
        start = self._run_state.prior_mean
        assert start is not None
        check = checked_start(
            trainer,
            context,
            choice.objective,
            classifier,
            source,
            start=context.layout.table(start) | self._run_state.buffers,
            prior=self.prior,
            validation=trainer_internals.held_out_loaders(trainer),
        )
        reasons = start_reasons(check, self.prior)
        if reasons:
            return replace(no_bound(len(source), self.delta, *reasons), start_error=check.error)
        prior_mean = context.layout.vector(context.module) if is_split(self.prior) else start
        return Examined(classifier, samples, check, prior_mean)

    def _task(self, trainer: Trainer, context: FitContext, choice: LossChoice, examined: Examined) -> CertificateTask:
        """The task for the learning; it takes the next evaluation number."""
        samples, source = examined.samples, examined.samples.rows.source
        coordinates = coordinates_of(
            trainer,
            context,
            choice.objective,
            origin=examined.prior_mean,
            spread=self.learning.spread,
            certifying=source,
            held_out=samples.held_out,
        )
        counter = ErrorCounter(trainer, context, source, choice.objective, examined.classifier, coordinates)
        template = examined.template(
            trainer,
            context,
            prior=self.prior,
            spread=self.learning.spread,
            delta=self.delta,
            guess_error=counter.guess_error(),
            live_value=(self._run_state if self._bound is None else self._bound.run_state).value,
            seed=self.seed,
        )
        return CertificateTask(
            prior_mean=examined.prior_mean,
            counter=counter,
            n=len(source),
            delta=self.delta,
            evaluation=self._next_evaluation(),
            plan=self.learning,
            seed=self.seed,
            template=template,
            coordinates=coordinates,
            distinct=samples.rows.distinct,
            pairs=leading_pairs(trainer, context, choice.objective, source, self.learning.directions),
        )

    def _learnt_and_certified(
        self, trainer: Trainer, context: FitContext, task: CertificateTask, folder: Path
    ) -> FinalCertificates:
        """Learn the posterior with a progress bar, and evaluate the networks drawn from it."""
        rank_zero_info(
            f"Certificate: learning a posterior for at most {self.learning.seconds:g} s. Networks and certificates "
            f"will be saved in {folder}."
        )
        with progress(trainer, f"Certificate: learning a posterior, at most {self.learning.seconds:g} s", 100) as bar:
            shown = 0

            def tell(done: float) -> None:
                nonlocal shown
                trainer_internals.obey_sigterm(trainer)
                if int(100 * done) > shown:
                    bar.advance(int(100 * done) - shown)
                    shown = int(100 * done)

            self.learnt, final = learn_and_certify(context, task, tell)
        return final

    def _evaluations(self) -> int:
        """Evaluations of the run so far, including those of a PACBayesBound."""
        return max(self._run_state.evaluation, 0 if self._bound is None else self._bound.run_state.evaluation)

    def _next_evaluation(self) -> int:
        number = self._evaluations() + 1
        self._run_state = replace(self._run_state, evaluation=number)
        if self._bound is not None:
            self._bound.run_state = replace(self._bound.run_state, evaluation=number)
        return number

    def _measurement(
        self, trainer: Trainer, step: int, certificate: Certificate, final: FinalCertificates | None, dtype: str
    ) -> Measurement:
        self._warn(certificate.reasons, trainer)
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            group=self.name,
            spectrum=None,
            estimates={} if final is None else final_estimates(final.pair, final.single),
            cost=Cost(method="" if self.learnt is None else self.learnt.method),
            status=Status.CONVERGED if certificate.valid else Status.UNAVAILABLE,
            num_samples=certificate.risk_samples,
            precision=dtype.removeprefix("torch."),
            certificate=certificate,
        )

    def _warn(self, reasons: Sequence[str], trainer: Trainer) -> None:
        for reason in reasons:
            self.warn_once(
                f"There is no final certificate: {reason}",
                trainer=trainer,
                key=key_of(reason),
            )

    def paragraphs(self) -> list[str]:
        """The certificate of the pair in words, and the bound of the network to deploy."""
        event = phrases.last_reported(self.measurements)
        if event is None or event.certificate is None:
            return [phrases.why_nothing(self.measurements)]
        if not event.certificate.valid:
            return [phrases.no_bound_in_words("certificate", event.certificate), *event.notes]
        single = phrases.value(event, "single")
        deployable = (
            [] if single is None else [f"Bound for the first network alone, to be deployed: {at_most(single)}."]
        )
        return [*event.certificate.explain().splitlines(), *deployable, *event.notes]

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue an earlier run at the next ``setup``, before a fit that restores no callbacks.

        Args:
            state: The result of :meth:`state_dict`.
        """
        self._given = RunState.of(state)

    def settings(self) -> dict[str, Any]:
        """Failure probability and prior."""
        return {"delta": self.delta, "prior": self.prior, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Also the initial weights, the number of evaluations, and the split that was trained on."""
        return {**super().state_dict(), **replace(self._run_state, evaluation=self._evaluations()).state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._run_state = RunState.of(state_dict)
