"""A valid PAC-Bayes bound at every Hessian or Fisher measurement, or the reasons why there is none."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_sloppy.bounds.concentration import require_probability
from lightning_sloppy.bounds.pair_inequality import spent_delta
from lightning_sloppy.bounds.statements import STATEMENTS, conditions, no_bound, spelled
from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.bound_quantities import QUANTITIES, bound_estimates
from lightning_sloppy.callbacks.fisher_spectrum import FisherSpectrum
from lightning_sloppy.callbacks.hessian_spectrum import HessianSpectrum
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber, MeasuringCallback
from lightning_sloppy.certificate import Certificate, Reason, key_of
from lightning_sloppy.certifying import validity
from lightning_sloppy.certifying.certificate_task import RunState
from lightning_sloppy.certifying.classification import coupled, model_classifier
from lightning_sloppy.certifying.clean_samples import Clean, checked_clean, clean_samples, require_clean
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.certifying.hold_out_set import HoldOut
from lightning_sloppy.certifying.repeats import Duplicates, Rows, certifying_rows, require_duplicates
from lightning_sloppy.certifying.start_check import PRETRAINED, StartCheck, checked_start, start_reasons
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.display import at_most
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import Classifier, Predict
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.posteriors import Evidence
from lightning_sloppy.posteriors.pair_certificate import certify
from lightning_sloppy.posteriors.posterior_search import Choice
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossChoice
from lightning_sloppy.probing.samples import SampleSource
from lightning_sloppy.records import Cost, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting import phrases

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class PACBayesBound(MeasuringCallback, MeasurementSubscriber):
    """Compute a PAC-Bayes bound on the true 0-1 error of two networks drawn around the model, from training data alone.

    The prior is ``N(w0, 1/epsilon)`` with w0 the initial weights, as a mixture over a fixed grid of epsilon. The
    posterior is a low-rank Gaussian from the latest spectrum; a pilot chooses its scale and mean. The bound is that of
    an antithetic pair: the mean of ``ln dQ/dP``, divided by all n training examples, and the risk on a new subsample
    (Rivasplata et al. 2020, theorem 1; Viallard et al. 2024). Of delta, 0.6 is for the PAC-Bayes event, 0.2 for the
    subsampled risk and 0.2 for the hold-out bound from the validation set.

    It uses the measurements of a :class:`HessianSpectrum` of all parameters in the same Trainer, or without one those
    of a :class:`FisherSpectrum`. It adds no products.

    Args:
        delta: Failure probability of all bounds of the run together.
        prior: Your statement about the initial weights. "initialization": they do not depend on the training examples.
            "pretrained": they were trained on other data. The summary repeats it. The weights are checked, too: if
            they make fewer mistakes than new initialisations, "pretrained" is required; if they make far fewer than on
            the validation samples, there is no bound.
        risk_samples: Number of training examples on which the drawn networks are evaluated, at most all.
        predict: The classifier, if the loss does not define it: ``predict(outputs)`` returns labels (N,), or
            ``predict(outputs, targets)`` booleans (N,), true for a mistake. null: the class with the largest score, or
            the sign of a single logit, if the loss treats the outputs as such.
        duplicates: Your statement about equal samples. "natural": independent draws that happen to be equal.
            "copies": copies of one draw, counted once. null: the larger of both bounds, valid in both cases.
        clean: The training samples in the same order without random transforms (augmentation), for evaluation: a
            DataLoader, a data set, a function that returns one, or the name of such a method of the data module. The
            bound is then on the error on clean samples. null: the value of the SloppyMonitor, if any, else the
            samples as the training reads them.
        seed: Seed of the draws and subsamples. null: that of the SloppyMonitor, if any, else 0.
        strict: Raise errors instead of warning. null: as in the SloppyMonitor, if any, else false.

    Attributes:
        run_state: The initial weights, the latest bound and the number of evaluations so far. A final certificate
            also counts as an evaluation.

    Raises:
        ConfigurationError: For delta outside (0, 1), or without a spectrum in the Trainer.

    Example:
        >>> PACBayesBound(delta=0.05).delta
        0.05
    """

    default_name = "bound"
    title = "Bound"
    quantities = QUANTITIES
    costs = ("seconds", "peak_bytes")
    needs_eigenvectors = True

    clean: Clean | None

    def __init__(
        self,
        delta: float = 0.05,
        *,
        prior: Literal["initialization", "initialisation", "pretrained"] = "initialization",
        risk_samples: int = 10_000,
        predict: Predict | None = None,
        duplicates: Duplicates | None = None,
        clean: Clean | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        super().__init__(seed=seed, strict=strict)
        prior_name = spelled(prior)
        require_probability(delta, "delta")
        if prior_name not in STATEMENTS:
            raise ConfigurationError(f"prior={prior!r} is no known statement; pass one of {', '.join(STATEMENTS)}.")
        if risk_samples < 2:
            raise ConfigurationError(f"risk_samples={risk_samples} is too small; pass at least 2 examples.")
        self.delta = delta
        self.prior = prior_name
        self.risk_samples = risk_samples
        self.predict = predict
        require_duplicates(duplicates)
        self.duplicates = duplicates
        self._settle(clean=(checked_clean(clean), None))
        self.run_state = RunState()
        self._choice: Choice | None = None
        self._hold_out = HoldOut()
        self._forget()

    def _forget(self) -> None:
        """Reset what belongs to one fit. The prior mean and the number of evaluations belong to the run."""
        self._resumed = False
        self._begun = False
        self._rows: Rows | None = None
        self._data_reasons: list[str] | None = None
        self._hold_out.start_fit()
        self._training: ErrorCounter | None = None
        self._start_check: StartCheck | None = None
        self._spectrum: Spectrum | None = None
        self._last_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a spectrum to use."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._forget()
        require_clean(trainer, pl_module, self.clean)
        if _followed(trainer) is None:
            raise ConfigurationError(
                "PACBayesBound builds its posterior from the Hessian or the Fisher matrix, but there is no "
                "HessianSpectrum or FisherSpectrum of all parameters among the callbacks; add HessianSpectrum()."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the weights: validation may change them in a way that depends on its samples."""
        self._hold_out.look(trainer, pl_module, remember=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare them before the first step."""
        self._hold_out.look(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record whether validation selected the checkpoint."""
        self._hold_out.resume(trainer, checkpoint)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the weights: changes before another fit may depend on validation samples."""
        self._hold_out.end_fit(trainer, pl_module)

    def listens_to(self, callback: MeasuringCallback, trainer: Trainer) -> bool:
        """Use the measurements of the Hessian, or those of the Fisher matrix if there is none."""
        return callback is _followed(trainer)

    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, measurement: Measurement) -> None:
        """Evaluate the bound at the step of the measurement, once for each step.

        A resumed run begins with a measurement that the previous run may or may not have made. It uses no part of
        delta, so that evaluations are numbered as in an uninterrupted run.
        """
        followed = _followed(trainer)
        if self._resumed and followed is not None and followed.measured_at == measurement.step:
            return
        if measurement.step == self._last_step or measurement.spectrum is None or not measurement.status.ok:
            return
        self._last_step = measurement.step
        self._spectrum = measurement.spectrum
        try:
            self.run(trainer, pl_module, step=measurement.step, epoch=measurement.epoch)
        finally:
            self._spectrum = None

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """One evaluation: posterior, new pair, new subsample, bound, and the hold-out bound."""
        known = self.run_state.prior_mean
        stated = self.prior in PRETRAINED and known is None and context.origin.begins
        if not self._begun and (context.origin.fresh or stated):
            # Weights that no fit has changed begin a new run. Otherwise the known prior, if any, is kept.
            self.run_state, self._choice = RunState(context.origin.weights, frozen=dict(context.origin.digests)), None
            if context.origin.fresh:
                self._hold_out.start_run()
        elif not self._begun and known is not None and torch.equal(known, context.origin.weights):
            # One tensor for all, in memory and in the next checkpoint.
            self.run_state = replace(self.run_state, prior_mean=context.origin.weights)
        self._begun = True
        followed = _followed(trainer)
        choice = context.losses.choice(trainer, None if followed is None else followed.loss_fn)
        classifier = model_classifier(trainer, context, choice, self.predict)
        if isinstance(classifier, Reason):
            certificate = no_bound(context.samples.train_size(trainer) or 0, self.delta, classifier)
            return self._measurement(trainer, choice, step, certificate, {})
        judged = clean_samples(trainer, context, self.clean, context.samples.source(trainer))
        if self._rows is None:
            self._rows = certifying_rows(context, judged.source, self.duplicates, judged.conditions)
        source, run = self._rows.source, self.run_state
        if self._data_reasons is None:
            self._data_reasons = list(judged.reasons) or coupled(trainer, context, choice, source)
        reasons = [*validity.module_reasons(context, run.prior_mean, run.frozen), *self._data_reasons]
        if not reasons:
            reasons = self._start_reasons(trainer, context, choice, classifier, source)
        if not reasons:
            self.run_state = replace(self.run_state, evaluation=self.run_state.evaluation + 1)
        if self._training is None:
            self._training = ErrorCounter(trainer, context, source, choice.objective, classifier)
        same = context.layout == ParameterLayout.of(context.module)
        if same and context.layout.vector(context.module).dtype in (torch.float32, torch.float64):
            certificate = self._certificate(context, self._rows, self._training, reasons)
            estimates = bound_estimates(certificate)
        else:
            certificate, estimates = no_bound(len(source), self.delta, *reasons), {}
        held_out = None
        if same:
            held_out = self._hold_out.certificate(
                trainer,
                context,
                choice.objective,
                classifier,
                delta=self.delta,
                step=step,
                trained=judged.source,
                duplicates=self.duplicates,
            )
        if held_out is not None:
            estimates["hold_out"] = Estimate(held_out.value)
            estimates["hold_out_error"] = Estimate(held_out.empirical_risk)
            estimates["hold_out_samples"] = Estimate(float(held_out.n))
        if certificate.valid or held_out is not None:
            spent = spent_delta(self.delta, self.run_state.evaluation, self._hold_out.evaluation)
            estimates["delta_spent"] = Estimate(spent)
        return self._measurement(trainer, choice, step, certificate, estimates)

    def _start_reasons(
        self,
        trainer: Trainer,
        context: FitContext,
        choice: LossChoice,
        classifier: Classifier,
        source: SampleSource,
    ) -> list[str]:
        """Check the initial weights, once per fit, and again when validation samples become available."""
        assert self.run_state.prior_mean is not None
        validation = trainer_internals.validation_loaders(trainer)
        if self._start_check is None or (validation and not self._start_check.looked_for_unseen):
            self._start_check = checked_start(
                trainer,
                context,
                choice.objective,
                classifier,
                source,
                start=context.layout.table(self.run_state.prior_mean),
                prior=self.prior,
                validation=validation,
            )
        return start_reasons(self._start_check, self.prior)

    def _measurement(
        self,
        trainer: Trainer,
        choice: LossChoice,
        step: int,
        certificate: Certificate,
        estimates: dict[str, Estimate],
    ) -> Measurement:
        for reason in certificate.reasons:
            self.warn_once(f"No PAC-Bayes bound from step {step} on: {reason}", trainer=trainer, key=key_of(reason))
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            group=self.name,
            spectrum=None,
            estimates=estimates,
            cost=Cost(method=certificate.kind),
            status=Status.CONVERGED if certificate.valid else Status.UNAVAILABLE,
            num_samples=certificate.risk_samples,
            precision=str(choice.objective.dtype).removeprefix("torch."),
            notes=(self._hold_out.note,) if self._hold_out.note else (),
            certificate=certificate,
        )

    def _certificate(self, context: FitContext, rows: Rows, counter: ErrorCounter, reasons: list[str]) -> Certificate:
        spectrum, weights = self._spectrum, context.layout.vector(context.module)
        assert spectrum is not None
        vectors = torch.zeros(len(weights), 0) if spectrum.eigenvectors is None else spectrum.eigenvectors
        known = self.run_state.prior_mean
        start = known if known is not None and len(known) == len(weights) else context.origin.weights
        # The evaluation number seeds the draws: new ones at each evaluation, the same ones on every rank.
        number = max(self.run_state.evaluation, 1)
        draws = generator((self.seed + 1) * 1_000_003 + number if not reasons else self.seed)
        evidence = Evidence(
            weights=weights,
            prior_mean=start.to(weights),
            eigenvalues=spectrum.eigenvalues[: vectors.shape[1]],
            eigenvectors=vectors,
            trace=None if spectrum.trace is None else spectrum.trace.value,
            n=len(rows.source),
            distinct=rows.distinct,
            risk=counter,
            risk_samples=self.risk_samples,
            # A full search at evaluations 1, 2, 4, 8, ... In between the choice changes little, and every second
            # evaluation reuses the previous one.
            start=self._choice if number & (number - 1) else None,
            search=number % 2 == 0,
        )
        check = self._start_check
        found = certify(
            evidence,
            delta=self.delta,
            evaluation=number,
            generator=draws,
            reasons=reasons,
            conditions=(
                *conditions("pair_of_draws"),
                *rows.conditions,
                *validity.module_conditions(context),
                *(() if check is None else check.open_questions),
            ),
            prior=STATEMENTS[self.prior],
        )
        self._choice = found.choice
        if found.certificate.valid:
            self.run_state = replace(self.run_state, value=found.certificate.value)
        bound = replace(found.certificate, guess_error=counter.guess_error(self.risk_samples, self.seed))
        if check is None:
            return bound
        return replace(bound, remarks=(*bound.remarks, check.words), start_error=check.error)

    def paragraphs(self) -> list[str]:
        """The bound with its conditions, or the reasons why there is none, and the hold-out bound."""
        event = phrases.last_reported(self.measurements)
        if event is None and not self.measurements:
            return ["Missing: there was no spectrum of the Hessian or the Fisher matrix to build a posterior from."]
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        certificate = event.certificate
        paragraphs = [f"{phrases.when(event)} {phrases.verdict(certificate)}"]
        if certificate is not None and certificate.valid:
            paragraphs.append("It holds under these conditions:")
            paragraphs += [f"- {condition}" for condition in certificate.conditions]
            if certificate.prior:
                paragraphs.append(f"- The user's statement about the prior: {certificate.prior}")
            paragraphs += [*certificate.remarks, *phrases.lowest_bound(self.measurements, certificate)]
        hold_out, error = phrases.value(event, "hold_out"), phrases.value(event, "hold_out_error")
        if hold_out is not None:
            on = "" if error is None else f" (error on them: {error:.4f})"
            paragraphs.append(
                f"Hold-out bound for the model itself, from samples it never saw: {at_most(hold_out)}{on}."
            )
        return [*paragraphs, *event.notes]

    def settings(self) -> dict[str, Any]:
        """Failure probability, statement about the prior, examples for evaluation."""
        return {"delta": self.delta, "prior": self.prior, "risk_samples": self.risk_samples, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Also initial weights and numbers of evaluations: without them a resumed run has no bound."""
        if self.run_state.prior_mean is None:
            return super().state_dict()
        return {
            **super().state_dict(),
            **self.run_state.state(),
            "choice": None if self._choice is None else asdict(self._choice),
            **self._hold_out.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the prior of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self.run_state = RunState.of(state_dict)
        choice = state_dict.get("choice")
        self._choice = None if choice is None else Choice(**choice)
        self._resumed = self.run_state.prior_mean is not None
        self._hold_out.load(state_dict)


def _followed(trainer: Trainer) -> HessianSpectrum | FisherSpectrum | None:
    """The spectrum of all parameters that the bound uses: of the Hessian if there is one, else of the Fisher matrix."""
    for kind in (HessianSpectrum, FisherSpectrum):
        for peer in peers(trainer):
            if isinstance(peer, kind) and peer.parameters is None:
                return peer
    return None
