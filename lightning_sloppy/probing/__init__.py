"""The part of a measurement that concerns the Trainer: samples, loss, schedule, and restoring all state."""

from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.loss_choice import LossChoice
from lightning_sloppy.probing.probe import Probe
from lightning_sloppy.probing.samples import SampleSource
from lightning_sloppy.probing.schedule import Schedule

__all__ = [
    "FitContext",
    "LossChoice",
    "Probe",
    "SampleSource",
    "Schedule",
    "fit_context",
    "measuring",
]
