"""What an instrument reports, declared once: names, explanations, units, charts. Data only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sloppy.errors import ConfigurationError

SUFFIXES = {
    "_sem": "Standard error of the curve of the same name, over the random probe vectors. If it is as large as the "
    "change that you want to detect, increase `probes`.",
    "_truncation": "Error from stopping Lanczos after finitely many steps: half the width of an interval that contains "
    "the value for the given probe vectors. If it dominates, increase `steps`.",
}
"""The two errors of an estimated quantity: ends of their tags, and what they mean."""

RESERVED = "cost"
"""Name of the group of costs, which is no instrument's."""

COSTS = ("seconds", "products", "peak_bytes")
"""What a measurement can cost, each a quantity of the group of costs: ``seconds_hessian``."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def require_name(name: str, what: str) -> str:
    """Return a name that can stand in a tag.

    Raises:
        ConfigurationError: For anything but small letters, digits and underscores.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} cannot stand in a tag; use small letters, digits and underscores, a letter first."
        )
    return name


@dataclass(frozen=True)
class Quantity:
    """One number that an instrument reports: a scalar in every logger, under ``sloppy_<instrument>/<name>``.

    Tags, columns of CSV files, charts, the closing summary and the tables of the documentation follow from it.

    Args:
        name: Last part of the tag: small letters, digits and underscores.
        explanation: What it means and what to do about it, in one or two sentences.
        unit: Unit, in the plural: "samples", "nats", "seconds". Empty: a pure number.
        chart: Title of its chart on TensorBoard's Custom Scalars page; quantities with the same title share a chart.
            Empty: none of its own.
        band: Two other quantities of the instrument, lower and upper: the chart shows the value within this band.
        estimated: It comes from random probe vectors, with a standard error and a truncation error: two more curves,
            with the endings ``_sem`` and ``_truncation``.
        headline: The closing summary reports it.
        whole_spectrum: It is a functional of the whole spectrum. A sum over a few eigenvalues is only a lower bound
            of it, and is not logged under its name.

    Raises:
        ConfigurationError: For a name that cannot stand in a tag or that ends like the tag of an error, and without
            an explanation.

    Example:
        >>> Quantity("noise_scale", "Batch size at which noise and gradient are equally large.", unit="samples").unit
        'samples'
    """

    name: str
    explanation: str
    unit: str = ""
    chart: str = ""
    band: tuple[str, str] | None = None
    estimated: bool = False
    headline: bool = False
    whole_spectrum: bool = False

    def __post_init__(self) -> None:
        """Check the name and the explanation."""
        require_name(self.name, "The quantity's name")
        if self.name.endswith(tuple(SUFFIXES)):
            raise ConfigurationError(
                f"The quantity {self.name!r} ends like the error of another one ({', '.join(SUFFIXES)}); rename it."
            )
        if not self.explanation.strip():
            raise ConfigurationError(f"The quantity {self.name!r} has no explanation; say what it means.")


@dataclass(frozen=True)
class SpectrumHistogram:
    """A spectrum as a histogram of ``log10 |lambda|``, for loggers that draw histograms.

    Args:
        name: Last part of the tag.
        explanation: What it shows.
        companion: Name of the spectrum in ``Measurement.companions``; empty: the measurement's own.
        negative: Magnitudes of the negative eigenvalues instead of the positive ones.
    """

    name: str
    explanation: str
    companion: str = ""
    negative: bool = False


@dataclass(frozen=True)
class Declaration:
    """All that an instrument reports.

    Attributes:
        name: Of the instrument: its tags begin with ``sloppy_<name>/``.
        title: The same in words, for headings and the closing summary.
        quantities: Scalars.
        histograms: Histograms.
        costs: What is logged of the cost of a measurement, names in ``COSTS``.
        cost_advice: What makes a measurement cheaper, one sentence.
    """

    name: str
    title: str
    quantities: Sequence[Quantity] = ()
    histograms: Sequence[SpectrumHistogram] = ()
    costs: Sequence[str] = ("seconds",)
    cost_advice: str = ""

    def __post_init__(self) -> None:
        """Check that every name is there once, and that bands lie between quantities that exist."""
        if require_name(self.name, "The instrument's name") == RESERVED:
            raise ConfigurationError(f"An instrument cannot be named {RESERVED!r}; choose another name.")
        names = [quantity.name for quantity in self.quantities] + [shown.name for shown in self.histograms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"{self.title} declares {', '.join(twice)} more than once; keep one of each.")
        scalars = {quantity.name for quantity in self.quantities}
        for quantity in self.quantities:
            missing = set(quantity.band or ()) - scalars
            if missing:
                raise ConfigurationError(
                    f"{self.title} declares no {' and no '.join(sorted(missing))}, but the band of {quantity.name!r} "
                    "needs it; declare it."
                )
        unknown = set(self.costs) - set(COSTS)
        if unknown:
            raise ConfigurationError(
                f"{self.title} declares the costs {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}."
            )

    def quantity(self, name: str) -> Quantity | None:
        """The quantity of this name, if it is declared."""
        return next((quantity for quantity in self.quantities if quantity.name == name), None)

    @property
    def headlines(self) -> list[Quantity]:
        """The quantities that the closing summary reports: those marked, else all."""
        marked = [quantity for quantity in self.quantities if quantity.headline]
        return marked or list(self.quantities)
