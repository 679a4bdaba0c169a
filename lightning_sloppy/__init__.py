"""Spectra, effective dimensions and PAC-Bayes bounds of a network while Lightning trains it.

The names below are loaded when first used, so that the functions and records work without importing Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_sloppy.version import __version__ as __version__

if TYPE_CHECKING:
    from lightning_sloppy.analysis import fisher_spectrum, hessian_spectrum, input_spectrum
    from lightning_sloppy.bounds.inversion import kl_inverse
    from lightning_sloppy.bounds.plan import LearningPlan
    from lightning_sloppy.callbacks.distance_to_init import DistanceToInit
    from lightning_sloppy.callbacks.early_stopping import EffectiveDimensionEarlyStopping, StoppingReason
    from lightning_sloppy.callbacks.final_certificate import FinalCertificate
    from lightning_sloppy.callbacks.fisher_spectrum import FisherSpectrum
    from lightning_sloppy.callbacks.hessian_spectrum import HessianSpectrum
    from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
    from lightning_sloppy.callbacks.monitor import (
        BoundOptions,
        CertificateOptions,
        FisherOptions,
        HessianOptions,
        InputOptions,
        SloppyMonitor,
        StoppingOptions,
    )
    from lightning_sloppy.callbacks.pac_bayes import PACBayesBound
    from lightning_sloppy.certificate import Certificate
    from lightning_sloppy.errors import ConfigurationError, MissingExtraError, SloppyError, UnsupportedError
    from lightning_sloppy.measures.effective_dimension import curvature_scale, effective_dimension
    from lightning_sloppy.probing.prior_split import PriorSplit
    from lightning_sloppy.records import Cost, Density, Estimate, Measurement, Spectrum, Status

_WHERE = {
    # callbacks
    "SloppyMonitor": "callbacks.monitor",
    "InputSpectrum": "callbacks.input_spectrum",
    "HessianSpectrum": "callbacks.hessian_spectrum",
    "FisherSpectrum": "callbacks.fisher_spectrum",
    "PACBayesBound": "callbacks.pac_bayes",
    "FinalCertificate": "callbacks.final_certificate",
    "EffectiveDimensionEarlyStopping": "callbacks.early_stopping",
    "DistanceToInit": "callbacks.distance_to_init",
    "StoppingReason": "callbacks.early_stopping",
    # options of the monitor
    "InputOptions": "callbacks.monitor",
    "HessianOptions": "callbacks.monitor",
    "FisherOptions": "callbacks.monitor",
    "BoundOptions": "callbacks.monitor",
    "CertificateOptions": "callbacks.monitor",
    "StoppingOptions": "callbacks.monitor",
    "LearningPlan": "bounds.plan",
    # data
    "PriorSplit": "probing.prior_split",
    # functions
    "hessian_spectrum": "analysis",
    "fisher_spectrum": "analysis",
    "input_spectrum": "analysis",
    "curvature_scale": "measures.effective_dimension",
    "effective_dimension": "measures.effective_dimension",
    "kl_inverse": "bounds.inversion",
    # records
    "Certificate": "certificate",
    "Cost": "records",
    "Density": "records",
    "Estimate": "records",
    "Measurement": "records",
    "Spectrum": "records",
    "Status": "records",
    # errors
    "SloppyError": "errors",
    "ConfigurationError": "errors",
    "UnsupportedError": "errors",
    "MissingExtraError": "errors",
}

__all__ = [  # noqa: RUF022 - grouped by what they are
    "SloppyMonitor",
    "InputSpectrum",
    "HessianSpectrum",
    "FisherSpectrum",
    "PACBayesBound",
    "FinalCertificate",
    "EffectiveDimensionEarlyStopping",
    "DistanceToInit",
    "StoppingReason",
    "InputOptions",
    "HessianOptions",
    "FisherOptions",
    "BoundOptions",
    "CertificateOptions",
    "StoppingOptions",
    "LearningPlan",
    "PriorSplit",
    "hessian_spectrum",
    "fisher_spectrum",
    "input_spectrum",
    "curvature_scale",
    "effective_dimension",
    "kl_inverse",
    "Certificate",
    "Cost",
    "Density",
    "Estimate",
    "Measurement",
    "Spectrum",
    "Status",
    "SloppyError",
    "ConfigurationError",
    "UnsupportedError",
    "MissingExtraError",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its room."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
