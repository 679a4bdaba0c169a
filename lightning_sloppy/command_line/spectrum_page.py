"""The page that ``lightning-sloppy spectrum`` prints: the answer first, then a table, then its conditions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightning_sloppy.callbacks.spectrum_trainer import CheckpointSpectra
from lightning_sloppy.records import Measurement
from lightning_sloppy.reporting import phrases

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100

TITLES = {
    "jacobian": "Jacobian of the outputs",
    "hessian": "Hessian",
    "fisher": "Fisher matrix",
    "input": "Inputs (correlation)",
}


def print_spectra(found: CheckpointSpectra, console: Console | None = None) -> None:
    """Print the page.

    Args:
        found: What was measured.
        console: Where to. None: the standard output, 100 columns wide if it is no terminal.
    """
    from rich.console import Console
    from rich.table import Table

    shown = console or Console(width=None if sys.stdout.isatty() else WIDTH)

    def say(text: str) -> None:
        shown.print(text, markup=False, highlight=False)

    for line in answers(found):
        say(line)
    table = Table(
        "Matrix", "N", "Effective dimension", "Largest eigenvalue", "Trace", "Seconds", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measurement in found.measurements.items():
        table.add_row(TITLES.get(name, name), *_cells(measurement))
    say("")
    shown.print(table)
    say("")
    for line in conditions(found):
        say(line)


def answers(found: CheckpointSpectra) -> list[str]:
    """How many directions the network and the data have, one line each."""
    lines = []
    for name, what in (("jacobian", "Network"), ("input", "Data")):
        measurement = found.measurements.get(name)
        if measurement is None:
            continue
        estimate = measurement.estimates.get("effective_dimension")
        if estimate is None or not phrases.usable(estimate):
            lines.append(f"{what}: the effective dimension is missing. {phrases.why_nothing([measurement])}")
            continue
        total = (found.num_parameters, "parameters")
        if name == "input":
            features = phrases.value(measurement, "num_features")
            total = (0 if features is None else int(features), "features")
        of = f" of {total[0]:,} {total[1]}" if total[0] else ""
        matrix = "Jacobian" if name == "jacobian" else "correlation matrix"
        lines.append(
            f"{what}: effective dimension {phrases.with_error(estimate)}{of} ({matrix}, "
            f"N = {measurement.num_samples:,}; an eigenvalue that is a thousandth of the trace counts 1/2)."
        )
    return lines or ["No effective dimension was measured; the lines below say why."]


def _cells(measurement: Measurement) -> list[str]:
    spectrum = measurement.spectrum
    if spectrum is None or not measurement.status.ok:
        return ["", "missing", "", "", f"{measurement.cost.seconds:.1f}"]
    dimension = measurement.estimates.get("effective_dimension")
    usable = dimension is not None and phrases.usable(dimension)
    trace = spectrum.trace
    residual = spectrum.largest_residual
    largest = phrases.number(spectrum.largest) + (f" +- {residual:.1g}" if residual > 0 else "")
    return [
        f"{measurement.num_samples:,}",
        phrases.with_error(dimension) if usable and dimension is not None else "missing",
        largest,
        "missing" if trace is None or not phrases.usable(trace) else phrases.with_error(trace),
        f"{measurement.cost.seconds:.1f}",
    ]


def conditions(found: CheckpointSpectra) -> list[str]:
    """The samples, the loss, notes, and what was left out."""
    of = "" if found.num_training_samples is None else f" of the {found.num_training_samples:,} training samples"
    lines = [
        f"{found.checkpoint}: {found.model} with {found.num_parameters:,} parameters. "
        f"N samples are a random subset{of}."
    ]
    if found.loss:
        checked = "it is the loss that training_step returns" if found.loss_checked else "it was not checked"
        value = "" if found.loss_value is None else f" {phrases.number(found.loss_value)} on the samples;"
        lines.append(f"Loss: {found.loss};{value} {checked}.")
    hessian = found.measurements.get("hessian")
    few = None if hessian is None else phrases.value(hessian, "gauss_newton_samples")
    if few is not None:
        lines.append(f"The dimension of the Hessian is that of its Gauss-Newton part, on {few:,.0f} samples.")
    for name, measurement in found.measurements.items():
        why = () if measurement.status.ok else (measurement.status.value,)
        lines += [f"{TITLES.get(name, name)}: {note}" for note in (*why, *measurement.notes)]
    return [*lines, "Left out:", *(f"- {sentence}" for sentence in found.left_out)]
