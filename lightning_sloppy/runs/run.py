"""One fit as plain data: measurements by instrument, and facts about the training.

The closing summary, the card, the picture, the report and the file of a run are all functions of a :class:`Run`. So
they show the same numbers, and they can be made again from the file without a Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement


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
        training_seconds: Wall-clock seconds of the fit without measuring.
        grace_seconds: Seconds of measuring that are not limited, or None.
        max_overhead: Limit on measuring beyond them, as a fraction of the training, or None.
        metrics: The latest value of each metric that the user's module logged, by name.
        loggers: For each logger the name of its class, and the folder or address of its values ("" if not known).
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
    training_seconds: float = 0.0
    grace_seconds: float | None = None
    max_overhead: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    loggers: tuple[tuple[str, str], ...] = ()
    folder: str = ""
    started: str = ""
    software: str = ""
    resumed_at: tuple[int, ...] = ()

    @property
    def overhead(self) -> float | None:
        """Seconds of measuring divided by seconds of training without measuring, as in ``sloppy_cost/overhead``."""
        return self.measuring_seconds / self.training_seconds if self.training_seconds > 0 else None


@dataclass(frozen=True)
class InstrumentRun:
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


@dataclass(frozen=True)
class Run:
    """One fit.

    Attributes:
        instruments: By name, in the order in which they run.
        facts: About the fit.
    """

    instruments: Mapping[str, InstrumentRun]
    facts: RunFacts = field(default_factory=RunFacts)

    def of_kind(self, kind: str) -> InstrumentRun | None:
        """The first instrument of a kind that has measured, else the first of the kind, else None."""
        found = [each for each in self.instruments.values() if each.kind == kind]
        return next((each for each in found if each.latest is not None), found[0] if found else None)
