"""A Trainer that can also measure a checkpoint, for ``lightning-sloppy spectrum``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_module

from lightning_sloppy.callbacks.base import SloppyCallback, peers
from lightning_sloppy.callbacks.certifying_trainer import CertifyingTrainer
from lightning_sloppy.callbacks.checkpoints import fit_without_step, load_weights, opened_checkpoint
from lightning_sloppy.callbacks.curvature_instrument import CurvatureInstrument
from lightning_sloppy.callbacks.dimension_quantities import quantities_at_prior
from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
from lightning_sloppy.callbacks.instrument import Instrument
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.callbacks.monitor import SloppyMonitor
from lightning_sloppy.callbacks.periodic import PeriodicCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import fit_context
from lightning_sloppy.probing.loss_choice import LossChoice
from lightning_sloppy.probing.origin import notice_training
from lightning_sloppy.records import Measurement, Status

AT_PRIOR = frozenset(quantity.name for quantity in quantities_at_prior()) - {"num_parameters"} | {"converged_above_z"}
"""Quantities at a scale that depends on the initial weights."""

OF_A_TRAINING = frozenset({"displacement_fraction", "overlap", "sharpness"})
"""Quantities that compare a network with its start, with the measurement before, or with the learning rate."""


@dataclass(frozen=True)
class CheckpointSpectra:
    """What was measured at a checkpoint.

    Attributes:
        checkpoint: The file.
        model: Name of the module's class.
        num_parameters: Number of trainable parameters.
        num_training_samples: Number of training samples n; None if it is unknown.
        measurements: Measurements by the name of their instrument: "jacobian", "hessian", "fisher", "input", ...
        loss: Which loss was found, in words; empty if nothing measured needs a loss.
        loss_checked: Whether it is the loss that ``training_step`` returns.
        loss_value: Mean loss on the probe samples; None if it was not measured.
        left_out: What cannot be measured without a fit, as sentences.
    """

    checkpoint: str
    model: str
    num_parameters: int
    num_training_samples: int | None
    measurements: Mapping[str, Measurement]
    loss: str
    loss_checked: bool
    loss_value: float | None
    left_out: Sequence[str]

    @property
    def failed(self) -> bool:
        """Whether an instrument has measured nothing."""
        return not self.measurements or not all(each.status.ok for each in self.measurements.values())


class SpectrumTrainer(CertifyingTrainer):
    """Lightning's Trainer with the additional methods ``certify`` and ``spectrum``.

    Attributes:
        spectra: What the latest call of ``spectrum`` has measured, or None.
    """

    spectra: CheckpointSpectra | None = None

    def spectrum(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> CheckpointSpectra:
        """Measure a checkpoint without training: Jacobian, Hessian, Fisher matrix and inputs.

        The instruments are those of the configuration, with their settings; without any, those of a SloppyMonitor. They
        measure on the training samples, at full size: nothing limits the cost. The loss is compared with what
        ``training_step`` returns on a copy of the module. Nothing is trained or logged, and no other callback runs.

        Args:
            model: The module as configured for the training.
            datamodule: Its training samples are measured on.
            ckpt_path: The checkpoint.
            weights_only: Read plain values only. Pass false for a file that you trust and that contains more. null:
                true.

        Returns:
            The measurements, the loss, and what was left out.

        Raises:
            ConfigurationError: Without a checkpoint, for a checkpoint of another model, or if the training samples
                cannot be read by index.
        """
        state = opened_checkpoint(ckpt_path, weights_only is not False)
        load_weights(model, state, ckpt_path)
        notice_training(model)
        instruments = self._instruments(state.get("callbacks", {}))
        # The clock of the run and its limit do not matter here: there is no training to compare with.
        for each in instruments:
            if isinstance(each, PeriodicCallback):
                each.schedule = replace(each.schedule, max_overhead=None)
        known = {each.name for each in instruments if isinstance(each, CurvatureInstrument) and _has_scale(each)}
        beside = _Beside(instruments)
        self.loggers = []
        self.log_every_n_steps = 1  # else Lightning warns that a short epoch logs nothing
        with _without_summary():
            fit_without_step(self, model, datamodule, [beside.before, *instruments, beside])
        self.spectra = CheckpointSpectra(
            checkpoint=str(ckpt_path),
            model=type(model).__name__,
            num_parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
            num_training_samples=beside.train_size,
            measurements={each.name: _of_the_checkpoint(each, known) for each in instruments if each.measurements},
            loss="" if beside.choice is None else beside.choice.source,
            loss_checked=beside.choice is not None and beside.choice.checked,
            loss_value=_loss_of(instruments),
            left_out=_left_out(instruments, known),
        )
        return self.spectra

    def _instruments(self, states: Mapping[str, Any]) -> list[MeasuringCallback]:
        """The instruments of the configuration with their states in the checkpoint; without any, those of a monitor."""
        family: list[Callback] = [each for each in self.callbacks if isinstance(each, SloppyCallback)]
        if not any(isinstance(each, (Instrument, InputSpectrum)) for each in peers(self)):
            family = [SloppyMonitor(bound=None)]
        for each in family:
            if each.state_key in states:
                each.load_state_dict(states[each.state_key])
        parts = [part for each in family if isinstance(each, SloppyCallback) for part in each.parts]
        return [part for part in parts if isinstance(part, (Instrument, InputSpectrum))]


def _has_scale(instrument: CurvatureInstrument) -> bool:
    """Whether the prior precision was passed, or is in the checkpoint. The trained weights do not determine it."""
    return instrument.epsilon is not None or "epsilon" in instrument.state_dict()


def _of_the_checkpoint(instrument: MeasuringCallback, known: set[str]) -> Measurement:
    """The measurement without the quantities that need a fit."""
    measurement = instrument.measurements[-1]
    without = OF_A_TRAINING if instrument.name in known else OF_A_TRAINING | AT_PRIOR
    kept = {name: estimate for name, estimate in measurement.estimates.items() if name not in without}
    return replace(measurement, estimates=kept)


def _loss_of(instruments: Sequence[MeasuringCallback]) -> float | None:
    found = [each.measurements[-1].estimates.get("loss") for each in instruments if each.measurements]
    return next((estimate.value for estimate in found if estimate is not None), None)


def _left_out(instruments: Sequence[MeasuringCallback], known: set[str]) -> list[str]:
    sentences = [
        "PAC-Bayes and hold-out bounds: they need the initial weights; see `lightning-sloppy certify`.",
        "Overhead, sharpness, displacement and overlap: they compare with a training.",
    ]
    curved = [each.name for each in instruments if isinstance(each, CurvatureInstrument)]
    if any(name not in known for name in curved):
        sentences.append(
            "Dimensions at the scale of the prior: the checkpoint does not contain the scale of its run; pass epsilon "
            "to the instruments."
        )
    return sentences


class _Beside(Callback):
    """Finds the loss without a step, and reads the facts of the fit before its context is closed.

    Args:
        instruments: The instruments of the fit.
    """

    def __init__(self, instruments: Sequence[MeasuringCallback]) -> None:
        self.instruments = instruments
        self.before = _NoStepFollows()
        self.train_size: int | None = None
        self.choice: LossChoice | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read which loss was used."""
        context = fit_context(trainer, pl_module)
        self.train_size = context.samples.train_size(trainer)
        for each in self.instruments:
            measured = bool(each.measurements) and each.measurements[-1].status is not Status.FAILED
            if measured and isinstance(each, CurvatureInstrument):
                self.choice = context.losses.choice(trainer, each.loss_fn, each.batch_size, each.mode)
                return


class _NoStepFollows(Callback):
    """Before the instruments: no step will confirm a loss, so it is compared beside the training at once."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse samples that only a training would bring."""
        context = fit_context(trainer, pl_module)
        if not context.samples.indexable(trainer):
            loaders = len(trainer_internals.training_loaders(trainer))
            what = "an iterable data set" if loaders == 1 else f"{loaders} training loaders"
            raise ConfigurationError(
                f"A checkpoint is measured on training samples that are read by index, but there is {what}; give a "
                "data module with one map-style data set."
            )
        context.losses.training_is_over()


@contextmanager
def _without_summary() -> Iterator[None]:
    """Without the messages of a training, which this is not: its closing summary and its tips. Warnings remain."""
    log = rank_zero_module.log
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
