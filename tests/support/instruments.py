"""The instruments of the package, and what they say of measurements that a test made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning_sloppy
from lightning_sloppy import (
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    PACBayesBound,
    ValidationErrors,
)
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.summary import Length, summarise
from lightning_sloppy.runs.run import Run, RunFacts

MAKERS: Mapping[str, type[MeasuringCallback]] = {
    "jacobian": JacobianSpectrum,
    "input": InputSpectrum,
    "hessian": HessianSpectrum,
    "fisher": FisherSpectrum,
    "bound": PACBayesBound,
    "certificate": FinalCertificate,
    "validation": ValidationErrors,
}
DECLARED: Mapping[str, Declaration] = {name: maker().declaration for name, maker in MAKERS.items()}


def of_the_package() -> list[type[MeasuringCallback]]:
    """Every public class that measures and can be made without arguments."""
    public = [getattr(lightning_sloppy, name) for name in dir(lightning_sloppy)]
    classes = [each for each in public if isinstance(each, type) and issubclass(each, MeasuringCallback)]
    return [each for each in classes if not getattr(each, "__abstractmethods__", None)]


def record(groups: Mapping[str, Sequence[Measurement]], **facts: Any) -> Run:
    """The record of a fit with these measurements."""
    instruments = {}
    for name, events in groups.items():
        instrument = MAKERS[name]()
        instrument.measurements = list(events)
        instruments[name] = instrument.instrument_run()
    return Run(instruments, RunFacts(**facts))


def summary(groups: Mapping[str, Sequence[Measurement]], length: Length = "full", **facts: Any) -> str:
    """The closing summary of these measurements."""
    return summarise(record(groups, **facts), length)
