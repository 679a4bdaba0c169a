"""The numbers of a run as one pandas frame, in long form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_sloppy.errors import MissingExtraError
from lightning_sloppy.quantities import Declaration, Quantity
from lightning_sloppy.records import Estimate, Measurement, Status

if TYPE_CHECKING:
    import pandas

COLUMNS = {
    "instrument": "str",
    "measurement": "int64",
    "step": "int64",
    "epoch": "int64",
    "quantity": "str",
    "value": "float64",
    "standard_error": "float64",
    "truncation_error": "float64",
    "status": "str",
    "lower_bound": "bool",
    "unit": "str",
    "num_samples": "int64",
    "seconds": "float64",
}
"""Columns of the frame and their types."""

WORTHLESS = (Status.FAILED, Status.NON_FINITE)
"""With these statuses, no value of a measurement is reliable, even if it is finite."""


def frame_of(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pandas.DataFrame:
    """A frame of pandas.

    Args:
        rows: Values by name.
        columns: Names, in their order.

    Raises:
        MissingExtraError: Without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError(
            "to_frame needs pandas, which is not installed: pip install 'lightning-sloppy[data]'."
        ) from error
    return pandas.DataFrame(list(rows), columns=list(columns))


def frame(instruments: Iterable[tuple[Declaration, Iterable[Measurement]]]) -> pandas.DataFrame:
    """One row for each declared quantity of each measurement.

    Args:
        instruments: Declaration and measurements of each instrument.

    Raises:
        MissingExtraError: Without pandas.
    """
    rows = [
        {"instrument": declaration.name, "measurement": number, **row}
        for declaration, measurements in instruments
        for number, measurement in enumerate(measurements)
        for row in _rows(measurement, declaration)
    ]
    return frame_of(rows, list(COLUMNS)).astype(COLUMNS)


def _rows(measurement: Measurement, declaration: Declaration) -> Iterator[dict[str, Any]]:
    for name, estimate in measurement.estimates.items():
        quantity = declaration.quantity(name)
        if quantity is not None:
            # Of a measurement that failed, no value is reliable.
            status = measurement.status if measurement.status in WORTHLESS else estimate.status
            yield {
                "step": measurement.step,
                "epoch": measurement.epoch,
                "quantity": name,
                "value": float(estimate.value) if has_curve(measurement, quantity, estimate) else math.nan,
                "standard_error": float(estimate.standard_error),
                "truncation_error": float(estimate.truncation_error),
                "status": status.name,
                "lower_bound": estimate.lower_bound,
                "unit": quantity.unit,
                "num_samples": measurement.num_samples,
                "seconds": measurement.cost.seconds,
            }


def has_curve(measurement: Measurement, quantity: Quantity, estimate: Estimate) -> bool:
    """Whether a value is logged: a sum over a few eigenvalues is not the functional of the whole spectrum."""
    if measurement.status in WORTHLESS or (estimate.lower_bound and quantity.whole_spectrum):
        return False
    return estimate.status.ok and math.isfinite(estimate.value)
