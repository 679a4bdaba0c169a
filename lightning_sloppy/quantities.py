"""Declarations of what an instrument reports: names, explanations, units, charts. Data only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_sloppy.errors import ConfigurationError

SUFFIXES = {
    "_sem": "Standard error of the curve of the same name, over the random probe vectors. If it is as large as the "
    "change that you want to detect, increase `probes`.",
    "_truncation": "Error from stopping Lanczos after finitely many steps: half the width of an interval that contains "
    "the value for the given probe vectors. If it dominates, increase `steps`.",
}
"""The two errors of an estimated quantity: endings of their tags, and their explanations."""

RESERVED = "cost"
"""Name of the group of costs. No instrument may have this name."""

COSTS = ("seconds", "products", "peak_bytes")
"""Costs of a measurement. Each is a quantity of the group of costs, for instance ``seconds_hessian``."""

Detail = Literal["main", "all"]
"""Which scalars loggers get."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def require_name(name: str, what: str) -> str:
    """Return the name if it is valid in a tag.

    Raises:
        ConfigurationError: For anything but lower-case letters, digits and underscores.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not valid in a tag; use lower-case letters, digits and underscores, and begin with a "
            "letter."
        )
    return name


def name_of_class(name: str) -> str:
    """The name of a class as the name of an instrument.

    >>> name_of_class("GradientNoiseScale")
    'gradient_noise_scale'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def checked_detail(detail: object) -> Detail:
    """Return the argument if it is a level of detail.

    Raises:
        ConfigurationError: For anything else.
    """
    if detail == "main" or detail == "all":
        return detail
    raise ConfigurationError(f"detail={detail!r} is unknown; pass 'main' or 'all'.")


@dataclass(frozen=True)
class Quantity:
    """One number that an instrument reports: a scalar in every logger, under ``sloppy_<instrument>/<name>``.

    Tags, columns of CSV files, charts, the closing summary and the tables of the documentation are generated from it.

    Args:
        name: Last part of the tag: lower-case letters, digits and underscores.
        explanation: What it means and what to do about it, in one or two sentences.
        unit: Unit, in the plural: "samples", "nats", "seconds". Empty: a pure number.
        chart: Title of its chart on TensorBoard's Custom Scalars page. Quantities with the same title share a chart.
            Empty: no chart.
        band: Two other quantities of the instrument, lower and upper: the chart shows the value within this band.
        estimated: Whether it is estimated with random probe vectors. Its standard error and its truncation error are
            then logged, too, with the endings ``_sem`` and ``_truncation``.
        headline: Whether the closing summary reports it.
        whole_spectrum: Whether it is a functional of the whole spectrum. A sum over a few eigenvalues is then only a
            lower bound, and is not logged under its name.
        expert: Whether nobody would do anything differently if it changed, apart from somebody who studies it. It is
            then drawn only with ``detail="all"``.
        upper_bound: Whether it is a guarantee, such as "at most 0.25". Texts round it up, never down.
        once: Whether it does not change within a run. It is then drawn only with ``detail="all"``, too.

    All quantities are measured, recorded, and in ``trainer.callback_metrics``, also those that are not drawn.

    Raises:
        ConfigurationError: For a name that is not valid in a tag or ends like the tag of an error, and for an empty
            explanation.

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
    expert: bool = False
    upper_bound: bool = False
    once: bool = False

    def __post_init__(self) -> None:
        """Check the name and the explanation."""
        require_name(self.name, "The quantity's name")
        if self.name.endswith(tuple(SUFFIXES)):
            raise ConfigurationError(
                f"The name of quantity {self.name!r} ends like the error of another quantity ({', '.join(SUFFIXES)}); "
                "rename it."
            )
        if not self.explanation.strip():
            raise ConfigurationError(f"The quantity {self.name!r} has no explanation; explain what it means.")


@dataclass(frozen=True)
class SpectrumHistogram:
    """A spectrum as a histogram of ``log10 |lambda|``, for loggers that draw histograms.

    Args:
        name: Last part of the tag.
        explanation: What it shows.
        companion: Name of the spectrum in ``Measurement.companions``. Empty: the spectrum of the measurement.
        negative: Whether to show the magnitudes of the negative eigenvalues instead of the positive ones.
    """

    name: str
    explanation: str
    companion: str = ""
    negative: bool = False


@dataclass(frozen=True)
class Declaration:
    """Everything that an instrument reports.

    Attributes:
        name: Name of the instrument. Its tags begin with ``sloppy_<name>/``.
        title: Title for headings and the closing summary.
        quantities: Scalars.
        histograms: Histograms.
        costs: Which costs of a measurement are logged, names in ``COSTS``.
        cost_advice: One sentence on how to reduce the cost.
        once: Whether it measures once in a run, so that its scalars have a single value.
        detail: Which scalars loggers get: "main", those that show something that a person acts on, or "all".
    """

    name: str
    title: str
    quantities: Sequence[Quantity] = ()
    histograms: Sequence[SpectrumHistogram] = ()
    costs: Sequence[str] = ("seconds",)
    cost_advice: str = ""
    once: bool = False
    detail: Detail = "main"

    def __post_init__(self) -> None:
        """Check that names are unique, and that the quantities of every band exist."""
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
                f"{self.title} declares the unknown costs {', '.join(sorted(unknown))}; choose from {', '.join(COSTS)}."
            )

    def quantity(self, name: str) -> Quantity | None:
        """The quantity of this name, if it is declared."""
        return next((quantity for quantity in self.quantities if quantity.name == name), None)

    def draws(self, quantity: Quantity) -> bool:
        """Whether loggers get this quantity, so that there is a curve of it."""
        return self.detail == "all" or not (self.once or quantity.expert or quantity.once)

    @property
    def headlines(self) -> list[Quantity]:
        """The quantities that the closing summary reports: those marked as headlines, or all if none is marked."""
        marked = [quantity for quantity in self.quantities if quantity.headline]
        return marked or list(self.quantities)


def check_attributes(instrument: type) -> None:
    """Check what a class of instruments declares: ``quantities``, ``histograms`` and ``costs``.

    Raises:
        ConfigurationError: If one is not a tuple or list of its kind.
    """
    for attribute, kind in (("quantities", Quantity), ("histograms", SpectrumHistogram), ("costs", str)):
        found = getattr(instrument, attribute)
        if isinstance(found, property):
            continue
        if not isinstance(found, (tuple, list)) or not all(isinstance(each, kind) for each in found):
            raise ConfigurationError(
                f"{instrument.__name__}.{attribute} is {found!r}; use a tuple of {kind.__name__}, with a comma after a "
                "single one."
            )
