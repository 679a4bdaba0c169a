"""The validation samples as a hold-out set: whether they can be used for a bound, and with which delta."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_sloppy.bounds import hold_out_certificate
from lightning_sloppy.bounds.statements import HOLD_OUT_CONDITION
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.certifying import validity
from lightning_sloppy.certifying.chosen_checkpoints import chosen_by
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.certifying.repeats import Duplicates, Rows, certifying_rows
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.posteriors.pair_certificate import weights_hash
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, known_context
from lightning_sloppy.probing.samples import SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LARGEST = 10_000
"""Maximum number of validation samples: enough for an error rate to half a percent; more would slow a fit."""


class HoldOut:
    """Hold-out bounds of a run: its own count of evaluations, and what was trained on.

    Attributes:
        evaluation: Hold-out bounds issued so far in the run.
        note: Why there is no bound, or on what it rests; empty without validation samples.
    """

    def __init__(self) -> None:
        self.evaluation = 0
        self._trained_on: str | None = None
        self._chosen = ""
        self._left = ""
        self.start_fit()

    def start_fit(self) -> None:
        """Drop what belongs to one fit; the count and the training samples belong to the run."""
        self.note = ""
        self._opened = False
        self._counter: ErrorCounter | None = None
        self._rows: Rows | None = None
        self._last: tuple[int, Certificate] | None = None
        self._validated: tuple[int, tuple[float, ...]] | None = None
        self._evaluated: tuple[int, str] | None = None

    def start_run(self) -> None:
        """Begin with weights that no sample has touched."""
        self.evaluation, self._trained_on, self._chosen = 0, None, ""

    def resume(self, trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Look at the checkpoint that the fit goes on from, before :meth:`load`."""
        monitor = chosen_by(trainer, checkpoint)
        self._chosen = monitor and (
            f"No hold-out bound: the fit resumes from a checkpoint that was selected by {monitor}, so the weights may "
            "depend on the validation samples; resume from the latest one (ModelCheckpoint(save_last=True))."
        )

    def end_fit(self, trainer: Trainer, module: nn.Module) -> None:
        """Remember the weights of the last step, to be compared with those at the start of a next fit."""
        self.look(trainer, module)
        context = known_context(trainer)
        self._left = ""
        with suppress(Exception):  # parameters that are no longer there: no reason to lose a fit at its end
            if self._evaluated is not None and self._evaluated[0] == trainer.global_step:
                self._left = self._evaluated[1]  # what was written since then is not the training's
            elif context is not None:
                self._left = weights_hash(context.layout.vector(module))

    def certificate(
        self,
        trainer: Trainer,
        context: FitContext,
        objective: Objective,
        classifier: Classifier,
        *,
        delta: float,
        step: int,
        trained: SampleSource,
        duplicates: Duplicates | None = None,
    ) -> Certificate | None:
        """The bound of the model as it is now, or None.

        The steps at which it is evaluated must be fixed before the fit: where something has ended the training, that
        may have been the validation samples, so the step of the end is not one of them, and the last evaluation before
        it stands.

        Args:
            trainer: The Trainer.
            context: Of the fit.
            objective: Gives outputs.
            classifier: What is a mistake.
            delta: Failure probability of the run.
            step: Of the measurement.
            trained: Samples that were trained on, as a certificate reads them.
            duplicates: The user's statement about equal samples. None: the larger of the bounds on all and on the
                different ones.
        """
        if not self._opened:
            if not trainer_internals.validation_loaders(trainer):
                return None  # validation loaders may come later, with the first validation
            self._opened = True
            self.note = self._open(trainer, context, objective, classifier, trained, duplicates)
        self.look(trainer, context.module)
        if self._counter is None or self._rows is None:
            return None
        if trainer.should_stop and trainer_internals.effective_batches(trainer) > step:
            if self._last is None:
                self.note = "No hold-out bound: the training was stopped before the first evaluation."
            else:
                self.note = (
                    f"The hold-out bound is that of step {self._last[0]}: the training was stopped, and the validation "
                    "samples may have determined the last step."
                )
            return None if self._last is None else self._last[1]
        self.evaluation += 1
        weights, conditions = context.layout.vector(context.module), (HOLD_OUT_CONDITION, *self._rows.conditions)
        self._evaluated = (trainer.global_step, weights_hash(weights))
        self.note = f"Conditions of the hold-out bound: {' '.join(conditions)}"
        counted = [probe_indices(len(self._rows.source), LARGEST, seed=3)]
        if self._rows.distinct is not None:
            counted.append(self._rows.distinct[probe_indices(len(self._rows.distinct), LARGEST, seed=3)])
        # One evaluation: the larger of the two is reported.
        found = max(
            (
                hold_out_certificate(
                    self._counter(weights, indices),
                    len(indices),
                    delta=delta,
                    evaluation=self.evaluation,
                    conditions=conditions,
                )
                for indices in counted
            ),
            key=lambda certificate: certificate.value,
        )
        self._last = (step, found)
        return found

    def look(self, trainer: Trainer, module: nn.Module, *, remember: bool = False) -> None:
        """Whether somebody has written weights since the validation began: they may be what it has chosen.

        Args:
            trainer: The Trainer.
            module: Whose weights.
            remember: At the beginning of a validation; else they are compared, where no step lies in between.
        """
        if not remember and self._validated is None:
            return
        with torch.no_grad():
            sums = tuple(float((p.abs() if p.is_complex() else p).double().sum()) for p in module.parameters())
        if remember:
            self._validated = (trainer.global_step, sums)
        elif self._validated is not None:
            (at, before), self._validated = self._validated, None
            if at == trainer.global_step and before != sums:
                self._opened, self._counter = True, None
                self._chosen = self.note = (
                    "No hold-out bound: the weights were changed during a validation (was the best checkpoint "
                    "restored, or an average swapped in?), so they may depend on the validation samples."
                )

    def _open(
        self,
        trainer: Trainer,
        context: FitContext,
        objective: Objective,
        classifier: Classifier,
        trained: SampleSource,
        duplicates: Duplicates | None,
    ) -> str:
        """Look at the validation samples once; returns why they cannot serve."""
        loaders = trainer_internals.validation_loaders(trainer)
        if len(loaders) != 1:
            return f"No hold-out bound: there are {len(loaders)} validation loaders; use one."
        try:
            source = SampleSource(loaders[0]).each_once()
        except ConfigurationError as error:
            return f"No hold-out bound: {error}"
        reason = self._refusal(trainer, context, source, trained, natural=duplicates == "natural")
        if not reason:
            self._rows = certifying_rows(context, source, duplicates)
            self._counter = ErrorCounter(trainer, context, self._rows.source, objective, classifier)
        return reason

    def _refusal(
        self, trainer: Trainer, context: FitContext, source: SampleSource, trained: SampleSource, *, natural: bool
    ) -> str:
        origin = context.origin
        if not origin.fresh and not trainer.ckpt_path and self._left not in ("", weights_hash(origin.weights)):
            self._chosen = (
                "No hold-out bound: the weights were changed between two fits (was the best checkpoint restored?), so "
                "they may depend on the validation samples."
            )
        if self._chosen:
            return self._chosen
        if trainer_internals.steers_by_validation(trainer):
            return "No hold-out bound: a learning-rate schedule reacts to a monitored value."
        if trainer_internals.reloads_loaders(trainer):
            return "No hold-out bound: the loaders are created again during the fit, so the split may change."
        if validity.reads_differ(trainer, context, source):
            return "No hold-out bound: two reads of one validation sample differ."
        training = context.samples.digests(trained)
        if not context.origin.fresh and self._trained_on != training.fingerprint:
            return "No hold-out bound: the weights were trained before on unknown samples."
        self._trained_on = training.fingerprint
        shared = validity.shared_samples(context, trained, source, natural=natural)
        if shared:
            return f"No hold-out bound: {shared:,} validation samples are also training samples."
        return ""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"hold_out_evaluation": self.evaluation, "trained_on": self._trained_on, "chosen": self._chosen}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the count of the run that wrote the checkpoint."""
        self.evaluation = int(state.get("hold_out_evaluation", 0))
        self._trained_on = state.get("trained_on")
        self._chosen = self._chosen or state.get("chosen", "")
