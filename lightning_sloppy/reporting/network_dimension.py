"""The effective dimension of the network in the record of a run: which instrument has it, and its latest value."""

from __future__ import annotations

from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting.phrases import value
from lightning_sloppy.runs.run import InstrumentRun, Run

MATRICES = {
    "jacobian": ("Jacobian", "JacobianSpectrum"),
    "fisher": ("Fisher matrix", "FisherSpectrum"),
    "hessian": ("Gauss-Newton part", "HessianSpectrum"),
}
"""Kinds of instruments with an effective dimension of the network, in order of preference: name and class."""


def last_of(instrument: InstrumentRun) -> Measurement | None:
    """The last measurement, whether it failed or not."""
    return instrument.measurements[-1] if instrument.measurements else None


def latest_with(instrument: InstrumentRun | None, quantity: str) -> Measurement | None:
    """The latest measurement with a usable value of a quantity."""
    events = () if instrument is None else instrument.measurements
    return next((event for event in reversed(events) if value(event, quantity) is not None), None)


def network_instrument(run: Run) -> InstrumentRun | None:
    """The instrument with the dimension to quote: the Jacobian's, or where it has none, another one's."""
    found = [each for kind in MATRICES if (each := run.of_kind(kind)) is not None]
    return next((each for each in found if latest_with(each, "effective_dimension")), found[0] if found else None)


def network_dimension(run: Run) -> tuple[float, float] | None:
    """The effective dimension of the network as the card quotes it, and the number of parameters; None without them."""
    event = latest_with(network_instrument(run), "effective_dimension")
    if event is None:
        return None
    parameters = value(event, "num_parameters") or float(run.facts.num_parameters)
    return (event.estimates["effective_dimension"].value, parameters) if parameters else None
