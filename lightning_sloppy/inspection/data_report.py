"""What :func:`inspect` finds of a table: plain records, and their JSON with stable keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_sloppy.display import Displayed, Shown
from lightning_sloppy.inputs.column_groups import ColumnGroup, natural
from lightning_sloppy.inputs.dependencies import Dependencies
from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments
from lightning_sloppy.inspection.reference import Reference
from lightning_sloppy.inspection.rows_behind import Departures, RowsBehind, groups_in_detail, rows_behind
from lightning_sloppy.inspection.saved_arrays import arrays_of
from lightning_sloppy.records import SloppinessVerdict

JSON_VERSION = 1
"""Raised when a key of the JSON is renamed, removed or means something else; new keys do not raise it."""


@dataclass(frozen=True)
class Interval:
    """A number and where it lies.

    Attributes:
        value: The plain estimate from the sample.
        low, high: For participation ratio, entropy rank and ridge degrees of freedom a 95 % interval of the value that
            the whole population of rows has. It is corrected for the bias of sampling, so the plain value may lie
            outside. For decades, slope and knee the spread over resamples. None where there are too few rows.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SpectrumReport:
    """The numbers of one correlation matrix.

    Attributes:
        columns: Columns in it.
        eigenvalues: Descending, negative ones of a pairwise matrix set to zero.
        intervals: A 95 % interval for each, or none at all.
        participation_ratio, entropy_rank: Numbers of directions.
        ridge_degrees_of_freedom: ``sum lambda / (lambda + strength)``, what a ridge regression of that strength (beside
            a mean eigenvalue of one) uses.
        ridge_strength: That strength.
        decades, slope, knee: The shape, above the floor.
        floor: Eigenvalues below are noise of the computation or of missing values.
        noise_edge: The largest eigenvalue that independent columns show in so many effective rows.
        above_noise_edge: Eigenvalues above it.
        above_noise_edge_interval: The same for eigenvalues at both ends of their errors of sampling.
        above_edge_of_all_rows: As if all rows were independent.
        condition_index: ``sqrt(lambda_1 / lambda_d)``; infinite where columns are exact combinations of others, NaN
            where missing values made eigenvalues negative.
    """

    columns: int
    eigenvalues: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    participation_ratio: Interval
    entropy_rank: Interval
    ridge_degrees_of_freedom: Interval
    ridge_strength: float
    decades: Interval
    slope: Interval
    knee: Interval
    floor: float
    noise_edge: float
    above_noise_edge: int
    above_noise_edge_interval: tuple[int, int] | None
    above_edge_of_all_rows: int
    condition_index: float


@dataclass(frozen=True)
class MissingReport:
    """What was done about missing values, and what it cost.

    Attributes:
        method: "none" for complete data, "pairwise" or "em".
        rate: Part of the cells of the columns used.
        negative_eigenvalues: Of the pairwise matrix, before the repair.
        smallest_eigenvalue: Of it.
        repair: Furthest that a correlation moved in the repair; 0 where nothing was repaired.
        undefined_pairs: Pairs of columns with too few rows in common, whose correlation is taken as zero.
        smallest_overlap: Fewest rows that two columns have in common.
        filled_with_means: Participation ratio with column means in place of missing values, for comparison.
        iterations: Of the Gaussian model.
        converged: Whether its tolerance was met.
    """

    method: Literal["none", "pairwise", "em"]
    rate: float
    negative_eigenvalues: int = 0
    smallest_eigenvalue: float = 0.0
    repair: float = 0.0
    undefined_pairs: int = 0
    smallest_overlap: int = 0
    filled_with_means: float | None = None
    iterations: int = 0
    converged: bool = True


@dataclass(frozen=True)
class TargetReport:
    """What is known of a target by itself.

    Attributes:
        name: Its column, or several indicator columns of one class each, joined.
        kind: "classes" or "numbers".
        missing: Cells without a value.
        rates: Part of each class, falling; empty for numbers.
        majority_error: Error of always naming the largest class; NaN for numbers.
        deviation: Root mean squared error of always naming the mean; NaN for classes.
        thirds: Rate of the rarest class (of two) or of the largest (of more), or the mean, in each third of the rows.
        followed: The class whose rate ``thirds`` follows.
        change: p-value of equal rates or means in all thirds, as if rows were independent.
    """

    name: str
    kind: Literal["classes", "numbers"]
    missing: int
    rates: Mapping[str, float]
    majority_error: float
    deviation: float
    thirds: tuple[float, ...]
    followed: str
    change: float


@dataclass(frozen=True)
class Answer:
    """A question, what the data say to it, and by which numbers.

    Attributes:
        question: As a user would ask.
        answer: In words.
        evidence: The numbers behind it.
    """

    question: str
    answer: str
    evidence: str


@dataclass(frozen=True, repr=False)
class DataReport(Displayed):
    """What a table is like, before any model: see :func:`inspect`.

    Attributes:
        origin: What was read.
        rows, columns: Size of the table, targets not counted.
        names: Columns used, after encoding, without constant ones and those set aside.
        missing: Missing values.
        constant: Columns with a single value.
        late: Columns that are constant over the first half of the rows at least, and the row where they first change.
        nearly_constant: Columns whose commonest value fills 99 % of the observed rows and more, with that part.
        mostly_missing: Columns of which more than half is missing, with that part.
        set_aside: Columns that are not used, with the reason.
        encoded: Text columns and the columns of 0 and 1 that stand for them.
        duplicates: Columns with the same values in the same rows.
        groups: Columns that carry the same information.
        threshold: Of the absolute correlation in them.
        order: Names in the order of a hierarchical tree.
        dependencies: Exact linear combinations.
        spectrum: Of the correlation matrix of all columns used.
        deduplicated: After leaving out what the groups list to drop.
        dominating_rows: Rows that rule the matrix, counted from 0.
        ranks, clipped: Participation ratio of ranks, and of values cut off at five deviations.
        shrunk: Participation ratio of the shrunk correlation, and the shrinkage (0 to 1); None unless asked for.
        autocorrelation: Median lag-1 autocorrelation of the columns.
        effective_rows: Rows that count as independent.
        resampled: "rows" or "blocks of k rows", or why there are no intervals.
        half: Participation ratio that half of the rows give on average.
        sampled_rows: Rows behind ranks, clipping and dominating rows.
        verdicts: Whether correlation and second moment are sloppy, beside a null.
        targets: What is known of them.
        answers: In words.
        means, deviations, correlation, parts: For comparing later data; see :meth:`save_arrays`.
        reading: What was decided while the table was read, in one sentence; empty for nothing.
        departures: Rows in which columns that hardly vary, or vary late, do; none where a part of the rows is kept.
        reference: What later rows are compared with: see :func:`drift_report`.
    """

    origin: str
    rows: int
    columns: int
    names: tuple[str, ...]
    missing: MissingReport
    constant: tuple[str, ...]
    late: Mapping[str, int]
    nearly_constant: Mapping[str, float]
    mostly_missing: Mapping[str, float]
    set_aside: Mapping[str, str]
    encoded: Mapping[str, tuple[str, ...]]
    duplicates: tuple[tuple[str, ...], ...]
    groups: tuple[ColumnGroup, ...]
    threshold: float
    order: tuple[str, ...]
    dependencies: Dependencies
    spectrum: SpectrumReport
    deduplicated: SpectrumReport
    dominating_rows: tuple[int, ...]
    ranks: float
    clipped: float
    shrunk: tuple[float, float] | None
    autocorrelation: float
    effective_rows: float
    resampled: str
    half: float | None
    sampled_rows: int
    verdicts: Mapping[str, SloppinessVerdict]
    targets: tuple[TargetReport, ...]
    means: Floats
    deviations: Floats
    correlation: Floats
    parts: tuple[PairwiseMoments, ...]
    reading: str = ""
    departures: Mapping[str, Departures] = field(default_factory=dict)
    answers: tuple[Answer, ...] = field(default=())
    reference: Reference | None = None

    def _shown(self) -> Shown:
        directions = self.spectrum.participation_ratio
        within = "" if directions.low is None else f" [{directions.low:.4g}, {directions.high:.4g}]"
        rows = [
            ("directions", f"{directions.value:.4g}{within} of {len(self.names):,} columns used"),
            ("groups of columns", f"{len(self.groups):,} ({len(self.drop):,} to drop)"),
            ("exact combinations", f"{len(self.dependencies.found):,}"),
            ("missing", f"{100 * self.missing.rate:.3g} %"),
            ("dominating rows", f"{len(self.dominating_rows):,}"),
        ]
        return Shown("DataReport", f"{self.origin}, {self.rows:,} rows, {self.columns:,} columns", rows)

    @property
    def drop(self) -> tuple[str, ...]:
        """Columns that say what another one says: members of groups above the threshold to one that stays."""
        return tuple(sorted((name for group in self.groups for name, _, _ in group.drop), key=natural))

    @property
    def rows_behind(self) -> tuple[RowsBehind, ...]:
        """What each group rests on."""
        return tuple(rows_behind(self.groups, self.names, self.parts, self.departures))

    def to_dict(self) -> dict[str, Any]:
        """The keys of the JSON; see ``docs/inspect.md``."""
        return {
            "version": JSON_VERSION,
            "rows": self.rows,
            "columns": self.columns,
            "missing_rate": self.missing.rate,
            "constant": list(self.constant),
            "groups": [list(group.names) for group in self.groups],
            "dependencies": [[found.column, *found.names] for found in self.dependencies.found],
            **_spectrum(self.spectrum),
            "deduplicated": {"columns": self.deduplicated.columns, **_spectrum(self.deduplicated)},
            "missing": {
                "method": self.missing.method,
                "negative_eigenvalues": self.missing.negative_eigenvalues,
                "smallest_eigenvalue": self.missing.smallest_eigenvalue,
                "repair": self.missing.repair,
            },
            "dominating_rows": list(self.dominating_rows),
            "effective_rows": self.effective_rows,
            "answers": [asdict(answer) for answer in self.answers],
            "details": self._details(),
        }

    def to_json(self) -> str:
        """The report as JSON text with the keys of :meth:`to_dict`; what is not finite is null."""
        return as_json(self.to_dict())

    def save(self, path: str | Path, *, comparison: Mapping[str, Any] | None = None) -> Path:
        """Write the JSON, and the arrays to a file of the same name with the ending ``.npz``.

        Args:
            path: Of the JSON.
            comparison: With another report, which becomes the key of this name.

        Returns:
            Path of the arrays.
        """
        path = Path(path)
        arrays = arrays_beside(path)
        found = self.to_dict() | ({} if comparison is None else {"comparison": comparison})
        text = as_json(found) + "\n"
        partial = [path.with_name(path.name + ".partial"), arrays.with_name(arrays.name + ".partial")]
        try:
            partial[0].write_text(text, encoding="utf-8")
            with partial[1].open("wb") as file:
                self.save_arrays(file)
            for written, wanted in zip(partial, (path, arrays), strict=True):
                written.replace(wanted)
        finally:
            for written in partial:
                written.unlink(missing_ok=True)
        return arrays

    def save_arrays(self, file: Any) -> None:
        """Write an ``.npz`` archive with the arrays of :func:`~lightning_sloppy.inspection.saved_arrays.arrays_of`.

        Args:
            file: Path or open binary file.
        """
        arrays = arrays_of(self.names, self.means, self.deviations, self.correlation, self.parts)
        kept = {} if self.reference is None else self.reference.arrays()
        np.savez_compressed(file, version=np.array(JSON_VERSION), **arrays, **kept)

    def _details(self) -> dict[str, Any]:
        """What is of use beside the stable keys, and may change."""
        return {
            "origin": self.origin,
            "names": list(self.names),
            "late": dict(self.late),
            "nearly_constant": dict(self.nearly_constant),
            "mostly_missing": dict(self.mostly_missing),
            "set_aside": dict(self.set_aside),
            "encoded": {name: list(new) for name, new in self.encoded.items()},
            "duplicates": [list(names) for names in self.duplicates],
            "threshold": self.threshold,
            "drop": list(self.drop),
            "groups": groups_in_detail(self.groups, self.rows_behind),
            "departures": {name: asdict(found) for name, found in self.departures.items()},
            "order": list(self.order),
            "dependencies": [found.in_words for found in self.dependencies.found],
            "ridge_degrees_of_freedom": asdict(self.spectrum.ridge_degrees_of_freedom),
            "ridge_strength": self.spectrum.ridge_strength,
            "condition_index": self.spectrum.condition_index,
            "floor": self.spectrum.floor,
            "noise_edge": self.spectrum.noise_edge,
            "above_edge_of_all_rows": self.spectrum.above_edge_of_all_rows,
            "missing": asdict(self.missing),
            "participation_ratio_of_ranks": self.ranks,
            "participation_ratio_clipped": self.clipped,
            "participation_ratio_of_half_the_rows": self.half,
            "participation_ratio_shrunk": None if self.shrunk is None else self.shrunk[0],
            "shrinkage": None if self.shrunk is None else self.shrunk[1],
            "autocorrelation": self.autocorrelation,
            "resampled": self.resampled,
            "verdicts": {kind: asdict(verdict) for kind, verdict in self.verdicts.items()},
            "targets": [asdict(target) for target in self.targets],
            "reference": None if self.reference is None else self.reference.details(),
        }


def arrays_beside(report: Path) -> Path:
    """The file of the arrays that belong to a report.

    >>> str(arrays_beside(Path("a.json"))), str(arrays_beside(Path("a.txt")))
    ('a.npz', 'a.txt.npz')
    """
    return report.with_suffix(".npz") if report.suffix == ".json" else Path(f"{report}.npz")


def _spectrum(found: SpectrumReport) -> dict[str, Any]:
    return {
        "spectrum": {"eigenvalues": list(found.eigenvalues), "intervals": [list(pair) for pair in found.intervals]},
        "participation_ratio": asdict(found.participation_ratio),
        "entropy_rank": asdict(found.entropy_rank),
        "decades": asdict(found.decades),
        "slope": asdict(found.slope),
        "knee": asdict(found.knee),
        "above_noise_edge": found.above_noise_edge,
        "above_noise_edge_interval": found.above_noise_edge_interval and list(found.above_noise_edge_interval),
    }


def as_json(found: Mapping[str, Any]) -> str:
    """JSON text; what is not finite is null."""
    return json.dumps(_plain(dict(found)), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    """Without NaN and infinities, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
