"""One fit as plain data: measurements by instrument, and facts about the training.

The closing summary, the card, the picture, the report and the file of a run are all functions of a :class:`Run`. So
they show the same numbers, and they can be made again from the file without a Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_sloppy.display import Displayed, Shown, at_most, counted, number, number_with_error
from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement
from lightning_sloppy.runs.frame import frame

if TYPE_CHECKING:
    import pandas


_FIRST = ("effective_dimension", "participation_ratio")
"""The headlines that the short text of an instrument names first."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about a fit that no instrument measures.

    Attributes:
        module: Name of the module's class.
        num_parameters: Number of trainable parameters p; 0 if not known.
        num_training_samples: Number of training samples n, or None.
        epochs: Completed epochs.
        steps: Optimiser steps.
        epoch_steps: Effective batches of one epoch, the unit of the x-axis; None if not known.
        end: How the training ended: "ended", "was interrupted", "failed", or "" while it is running.
        end_sentences: Sentences about the end: why it stopped, and what an early stop saw.
        warnings: The warnings of this package in the fit, each once.
        measuring_seconds: Wall-clock seconds of measuring.
        earlier_seconds: Those of them before the run was resumed, whose measurements are in the record of that part.
        training_seconds: Wall-clock seconds of the fit without measuring.
        grace_seconds: Seconds of measuring that are not limited, or None.
        max_overhead: Limit on measuring beyond them, as a fraction of the training, or None.
        metrics: The latest value of each metric that the user's module logged, by name.
        loggers: For each logger the name of its class, and the folder or address of its values ("" if not known).
        prefix: What the first logger with a prefix puts before the names of scalars.
        folder: Folder of the run for files of this package; "" without a logger that has one.
        started: Local time at which the fit started, ISO 8601.
        software: Versions of Python, torch, Lightning and this package.
        resumed_at: Steps at which the run was resumed from a checkpoint; known only to a run that was read from its
            file.
    """

    module: str = ""
    num_parameters: int = 0
    num_training_samples: int | None = None
    epochs: int = 0
    steps: int = 0
    epoch_steps: int | None = None
    end: str = ""
    end_sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    measuring_seconds: float = 0.0
    earlier_seconds: float = 0.0
    training_seconds: float = 0.0
    grace_seconds: float | None = None
    max_overhead: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    loggers: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    folder: str = ""
    started: str = ""
    software: str = ""
    resumed_at: tuple[int, ...] = ()

    @property
    def overhead(self) -> float | None:
        """Seconds of measuring divided by seconds of training without measuring, as in ``sloppy_cost/overhead``."""
        return self.measuring_seconds / self.training_seconds if self.training_seconds > 0 else None


@dataclass(frozen=True, repr=False)
class InstrumentRun(Displayed):
    """The measurements of one instrument in a fit.

    Attributes:
        kind: What it measures, whatever its name: "input", "jacobian", "hessian", "fisher", "bound", "certificate", or
            the default name of an instrument from outside.
        declaration: Everything that it reports; ``declaration.name`` is its name.
        measurements: Its measurements in order, failed ones included, without eigenvectors.
        paragraphs: Its text in the closing summary.
    """

    kind: str
    declaration: Declaration
    measurements: tuple[Measurement, ...] = ()
    paragraphs: tuple[str, ...] = ()

    @property
    def latest(self) -> Measurement | None:
        """The latest measurement that did not fail, or None."""
        return next((m for m in reversed(self.measurements) if m.status.ok), None)

    def in_brief(self) -> str:
        """The headline of the latest measurement, and how many there are."""
        latest, count = self.latest, counted(len(self.measurements), "measurement")
        if latest is None:
            return f"without a value ({count})"
        said = [] if latest.certificate is None else [f"bound {latest.certificate.in_brief()}"]
        for each in sorted(self.declaration.headlines, key=lambda quantity: quantity.name not in _FIRST):
            estimate = latest.estimates.get(each.name)
            if estimate is None or not estimate.status.ok or each.name == "pac_bayes":  # that is the certificate's
                continue
            value, error = estimate.value, estimate.total_error
            said.append(f"{each.name} {at_most(value) if each.upper_bound else number_with_error(value, error)}")
        return f"{', '.join(said[:2]) or 'without a headline'} ({count})"

    def _shown(self) -> Shown:
        steps = [each.step for each in self.measurements]
        rows = [("latest:", self.in_brief())] + ([("steps", f"{steps[0]:,} to {steps[-1]:,}")] if steps else [])
        return Shown("InstrumentRun", self.declaration.name, rows)


@dataclass(frozen=True, repr=False)
class Run(Displayed):
    """One fit.

    Attributes:
        instruments: By name, in the order in which they run.
        facts: About the fit.
    """

    instruments: Mapping[str, InstrumentRun]
    facts: RunFacts = field(default_factory=RunFacts)

    @property
    def last_step(self) -> int:
        """Step of the latest measurement of all instruments; 0 without one."""
        return max((event.step for each in self.instruments.values() for event in each.measurements), default=0)

    def of_kind(self, kind: str) -> InstrumentRun | None:
        """The first instrument of a kind that has measured, else the first of the kind, else None."""
        found = [each for each in self.instruments.values() if each.kind == kind]
        return next((each for each in found if each.latest is not None), found[0] if found else None)

    def to_frame(self) -> pandas.DataFrame:
        """The numbers of the run as a pandas frame, in long form: a row for each quantity of each measurement.

        The values are those of the curves, in float64. A value that has no curve is NaN: it is not finite, its
        ``status`` (by its name) is not reliable, or it is only a ``lower_bound``. Spectra are in the measurements.

        Returns:
            Columns ``instrument``, ``measurement`` (its number, from 0), ``step``, ``epoch`` (from 0), ``quantity``,
            ``value``, ``standard_error``, ``truncation_error``, ``status``, ``lower_bound``, ``unit``, ``num_samples``,
            ``seconds`` (of the whole measurement).

        Raises:
            MissingExtraError: Without pandas: ``pip install 'lightning-sloppy[data]'``.
        """
        return frame((each.declaration, each.measurements) for each in self.instruments.values())

    def _shown(self) -> Shown:
        facts = self.facts
        size = f", {facts.num_parameters:,} parameters" if facts.num_parameters else ""
        done = f"{facts.end or 'not ended'}, {counted(facts.epochs, 'epoch')}, {counted(facts.steps, 'step')}"
        rows = [(f"{name}:", each.in_brief()) for name, each in self.instruments.items()]
        cost = f"{number(facts.measuring_seconds)} s, training {number(facts.training_seconds)} s"
        return Shown("Run", f"{facts.module or 'no fit'}{size}, {done}", [*rows, ("measuring", cost)], "; ")
