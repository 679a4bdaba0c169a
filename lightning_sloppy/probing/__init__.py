"""The Trainer's side of a measurement: which samples, which loss, when, and how to leave no trace."""

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
