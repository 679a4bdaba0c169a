"""The loss of one fit: chosen once, and confirmed by the first step of the training."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError, Note
from lightning_sloppy.evaluation.batches import Batch, BatchSize, as_pair, counted_by
from lightning_sloppy.evaluation.nests import map_tensors
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.evaluation.ranks import Ranks
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.first_step import StepCheck
from lightning_sloppy.probing.fit_samples import FitSamples
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.loss_choice import (
    LossArgument,
    LossChoice,
    Modes,
    choose_loss,
    compared_beside,
    instead_of,
)
from lightning_sloppy.probing.samples import located_by

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FitLosses:
    """The losses that the callbacks of a fit use: one choice for each ``loss_fn=`` and mode of measuring.

    A guess can be returned before a step of the training has confirmed it. ``on_a_guess`` is then True, and
    measurements with it must be held back until a step confirms it.

    Args:
        module: The module of the fit.
        ranks: This process and the others of the fit.
        modes: Every submodule with its training flag in the fit.
        samples: Samples of the fit, on which a loss is looked for.

    Attributes:
        on_a_guess: Whether a loss that no step has confirmed was returned since this was last set to False.
        note: The note of the latest confirmed loss that was returned; None if it has none.
    """

    def __init__(self, module: LightningModule, ranks: Ranks, modes: Modes, samples: FitSamples) -> None:
        self.on_a_guess = False
        self.note: Note | None = None
        self._module, self._ranks, self._modes, self._samples = module, ranks, modes, samples
        self._choices: dict[tuple[Any, Mode], LossChoice | ConfigurationError] = {}
        self._check = StepCheck()
        self._looked: set[Mode] = set()
        self._over = False

    def choice(
        self,
        trainer: Trainer,
        override: LossArgument | None,
        batch_size: BatchSize | None = None,
        mode: Mode = "eval",
    ) -> LossChoice:
        """Return the loss. It is looked for at the first call.

        Args:
            trainer: The Trainer of the fit.
            override: The ``loss_fn=`` of the user.
            batch_size: The ``batch_size=`` of the user, or None.
            mode: Mode of the measurements.

        Raises:
            ConfigurationError: If the loss cannot be determined; the message asks for ``loss_fn=``.
        """
        small_batch = partial(self._samples.small_batch, trainer, batch_size, mode)
        # Streamed batches are gathered even if the choice is known here, because another rank may have to choose again.
        streamed = None if self._samples.indexable(trainer) else small_batch()

        def batch() -> Batch:
            return small_batch() if streamed is None else streamed

        # Callables need not be hashable. The callback keeps a reference to it, so its id is not reused.
        key = (id(override) if callable(override) else override), mode
        if key not in self._choices:
            self._choices[key] = choose_loss(self._module, batch(), override, modes=self._modes, mode=mode)
        choice = self._choices[key]
        if isinstance(choice, LossChoice) and not choice.checked:
            if self._confirmed_in_the_other_mode(choice):
                choice = self._choices[key] = replace(choice, checked=True)
            elif self._over:
                # There was no step to compare with, because the Trainer only certifies or every step was skipped.
                choice = self._choices[key] = compared_beside(self._module, batch(), choice, modes=self._modes)
        if isinstance(choice, ConfigurationError):
            raise choice
        self.on_a_guess |= not choice.checked
        self.note = choice.note if choice.checked and isinstance(choice.note, Note) else None
        return choice

    def _confirmed_in_the_other_mode(self, guess: LossChoice) -> bool:
        """Whether a step has confirmed the same loss for measurements in the other mode. A step has only one mode."""
        known = (choice for (override, _), choice in self._choices.items() if override is None)
        return any(isinstance(each, LossChoice) and each.checked and each.source == guess.source for each in known)

    @property
    def guess(self) -> LossChoice | None:
        """The guessed loss that no step has confirmed yet, or None."""
        return next((choice for _, choice in self._guesses()), None)

    def _guesses(self) -> list[tuple[Mode, LossChoice]]:
        return [
            (mode, choice)
            for (override, mode), choice in self._choices.items()
            if override is None and isinstance(choice, LossChoice) and not choice.checked
        ]

    def is_confirmed(self, mode: Mode) -> bool:
        """Whether a step has confirmed the guess for measurements in this mode."""
        choice = self._choices.get((None, mode))
        return isinstance(choice, LossChoice) and choice.checked and choice.objective.has_outputs

    def before_step(
        self, trainer: Trainer, batch: Any, *, wanted: bool, batch_size: BatchSize | None = None, mode: Mode = "eval"
    ) -> bool:
        """Evaluate an unconfirmed guess on the batch that the step will receive.

        Args:
            trainer: The Trainer.
            batch: The batch as the training passes it.
            wanted: Whether to guess a loss from this batch if there is no guess yet.
            batch_size: The ``batch_size=`` of the user, or None.
            mode: Mode of the measurements that use a guess from this batch.

        Returns:
            Whether there was a guess to evaluate.
        """
        if wanted and (None, mode) not in self._choices and mode not in self._looked:
            self._looked.add(mode)
            with suppress(Exception):  # the measurement itself reports the error
                made = partial(self._guessed_from, batch, batch_size, mode)
                self._choices[None, mode] = self._ranks.together(made)
        guess = self.guess
        if guess is None:
            self._check.buffers = []
            return False
        number = trainer_internals.batch_number(trainer)
        self._check.begin(trainer, self._module, guess.objective, batch, number)
        return True

    def _guessed_from(self, batch: Any, batch_size: BatchSize | None, mode: Mode) -> LossChoice:
        with measuring(self._module, mode):
            own = map_tensors(torch.clone, batch)
            pair = as_pair(own, module=self._module, counted=counted_by(batch_size, own))
            (pair,) = located_by(self._module, [pair], mode)
            return choose_loss(self._module, pair, None, modes=self._modes, mode=mode)

    def see_loss(self, trainer: Trainer, loss: Tensor) -> None:
        """Record the loss of the step when its backward starts."""
        if self.guess is not None:
            self._check.see(trainer, loss)

    def after_backward(self, trainer: Trainer) -> None:
        """Confirm the guess by the loss of the step, or replace it by the whole step. All ranks decide the same."""
        guess, theirs = self.guess, self._check.loss
        if guess is None or theirs is None:
            return
        agrees = self._check.agrees(guess.objective)
        right = trainer.strategy.reduce_boolean_decision(agrees, all=True)
        instead = None if right else self._instead_of(guess, self._check.guesses[0], theirs, agrees)
        for mode, each in self._guesses():
            if each.source == guess.source:
                self._choices[None, mode] = replace(each, checked=True) if instead is None else instead
        self._check.forget()

    def _instead_of(
        self, guess: LossChoice, mine: float, theirs: float, agrees: bool
    ) -> LossChoice | ConfigurationError:
        try:
            with measuring(self._module):
                return instead_of(self._module, guess, mine, theirs, elsewhere=agrees, seen=self._check.seen)
        except ConfigurationError as error:
            return error

    def before_the_step(self) -> AbstractContextManager[None]:
        """Context with the buffers from before the step whose backward has just run. The weights are still the same."""
        return self._check.buffers_before()

    def training_is_over(self) -> None:
        """Declare that no further step can confirm a guess."""
        self._check.forget()
        self._over = True
