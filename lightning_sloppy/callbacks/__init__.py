"""When to measure, and whom to tell. No formula, no tensor algebra, no tag strings."""

from lightning_sloppy.callbacks.certifying_trainer import CertifyingTrainer
from lightning_sloppy.callbacks.compressing_trainer import CompressingTrainer
from lightning_sloppy.callbacks.curvature_instrument import CurvatureInstrument
from lightning_sloppy.callbacks.distance_to_init import DistanceToInit
from lightning_sloppy.callbacks.early_stopping import EffectiveDimensionEarlyStopping, StoppingReason
from lightning_sloppy.callbacks.final_certificate import FinalCertificate
from lightning_sloppy.callbacks.fisher_spectrum import FisherSpectrum
from lightning_sloppy.callbacks.hessian_spectrum import HessianSpectrum
from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
from lightning_sloppy.callbacks.instrument import Instrument
from lightning_sloppy.callbacks.jacobian_spectrum import JacobianSpectrum
from lightning_sloppy.callbacks.low_rank_layers import LowRank
from lightning_sloppy.callbacks.monitor import SloppyMonitor
from lightning_sloppy.callbacks.pac_bayes_bound import PACBayesBound
from lightning_sloppy.callbacks.spectrum_trainer import SpectrumTrainer
from lightning_sloppy.callbacks.validation_errors import ValidationErrors

__all__ = [
    "CertifyingTrainer",
    "CompressingTrainer",
    "CurvatureInstrument",
    "DistanceToInit",
    "EffectiveDimensionEarlyStopping",
    "FinalCertificate",
    "FisherSpectrum",
    "HessianSpectrum",
    "InputSpectrum",
    "Instrument",
    "JacobianSpectrum",
    "LowRank",
    "PACBayesBound",
    "SloppyMonitor",
    "SpectrumTrainer",
    "StoppingReason",
    "ValidationErrors",
]
