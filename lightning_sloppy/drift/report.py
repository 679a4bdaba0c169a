"""What a comparison with a reference finds: plain records, their JSON, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_sloppy.display import Displayed, Shown, counted
from lightning_sloppy.inspection.data_report import as_json

DRIFT_VERSION = 1
"""Raised when a key of the JSON is renamed, removed or means something else; new keys do not raise it."""

Answer = Literal["same", "drift"]

WORDS = {"mean": "mean", "deviation": "deviation", "missing": "missing values", "correlations": "correlations"}
"""What differs of a column, in sentences."""


@dataclass(frozen=True)
class Statistic:
    """One number of the comparison.

    Attributes:
        name: Of its family: "mean", "deviation", "missing", "one_pair", "all_pairs", "distance", "overlap",
            "participation_ratio".
        value: What was found. Of a family with a number for each column that of the most conspicuous one.
        limit: The end of ``normal`` on the side of the value.
        column: The most conspicuous column, or "".
        score: The difference in standard deviations of the null; comparable between all numbers.
        drift: Whether the score is above the limit of all scores: the value is outside ``normal``.
        normal: From where to where the number goes without drift: what the reference, compared with itself, keeps to
            at the level alpha in all numbers together.
    """

    name: str
    value: float
    limit: float
    column: str
    score: float
    drift: bool
    normal: tuple[float, float]


@dataclass(frozen=True)
class ColumnChange:
    """A column that differs from the reference.

    Attributes:
        name: Its name.
        what: "mean", "deviation", "missing" (a rate), or "correlations" (root of the mean squared correlation with all
            other columns).
        before, after: In the reference and in the later rows, in the units of the table. Means and deviations are of
            values cut off far out; of the later values as they are, where more than 2 % of them are cut off.
        score: See :class:`Statistic`.
        cut_off: Part of the later values that is cut off.
    """

    name: str
    what: str
    before: float
    after: float
    score: float
    cut_off: float


@dataclass(frozen=True)
class PairChange:
    """A correlation that differs from that of the reference.

    Attributes:
        first, second: Names.
        before, after: The correlation.
        score: See :class:`Statistic`; of one pair, so that it may be below the limit.
    """

    first: str
    second: str
    before: float
    after: float
    score: float


@dataclass(frozen=True, repr=False)
class DriftReport(Displayed):
    """Whether later rows are like a reference: see :func:`drift_report`.

    Attributes:
        answer: "same" or "drift".
        origin, reference: What was read.
        rows, reference_rows: How many.
        alpha: Level: part of the tables of unchanged processes that are called drift.
        compared: Columns of which means, deviations and correlations were compared.
        blocks: Blocks of the reference.
        block_rows: Rows in one of them.
        resamples: Pairs of sets that were drawn.
        limit: Of all scores.
        top: Dimension of the spaces whose overlap was compared; 0 where the spectrum has no gap.
        gap: Eigenvalue before the gap by the one after it.
        participation_ratio: Before and after, without what sampling adds; see ``docs/drift.md``.
        statistics: The numbers with their limits.
        columns: Columns responsible, the most conspicuous first.
        pairs: Pairs responsible, likewise.
        lost: Columns of the reference that are not there.
        new: Columns that the reference does not have.
        newly_constant: Columns that vary in the reference and have one value now, by chance in fewer than alpha cases.
        constant_values: Of each of them its value, in the units of the table. A category is a column of 0 and 1.
        newly_varying: Columns with one value in the reference, or nearly so, that have others now, likewise.
        newly_missing: Columns that miss values in more, or fewer, blocks than chance explains, with both rates.
        new_categories: Categories that the reference does not have, of text columns where they are no single exception.
        too_slow: Columns of which the reference makes too few independent stretches: their correlations were not
            compared, nor what else of them changes as slowly.
        targets: Columns of the later rows that were left out: targets of the reference, and those named.
        notes: What else is to be known, in sentences.
    """

    answer: Answer
    origin: str
    reference: str
    rows: int
    reference_rows: int
    alpha: float
    compared: int
    blocks: float
    block_rows: float
    resamples: int
    limit: float
    top: int
    gap: float
    participation_ratio: tuple[float, float]
    statistics: tuple[Statistic, ...]
    columns: tuple[ColumnChange, ...] = ()
    pairs: tuple[PairChange, ...] = ()
    lost: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    newly_constant: tuple[str, ...] = ()
    constant_values: Mapping[str, float] = field(default_factory=dict)
    newly_varying: tuple[str, ...] = ()
    newly_missing: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    new_categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    too_slow: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_drift(self) -> bool:
        """Whether the answer is "drift"."""
        return self.answer == "drift"

    @property
    def responsible(self) -> tuple[str, ...]:
        """Names of all columns that differ, each once, those of the structure of the table first."""
        return tuple(self.reasons)

    @property
    def reasons(self) -> dict[str, tuple[str, ...]]:
        """What differs of each column responsible, in words."""
        said = [
            *((name, "lost") for name in self.lost),
            *((name, "new") for name in self.new),
            *((name, "constant now") for name in self.newly_constant),
            *((name, "other values") for name in self.newly_varying),
            *((name, "new categories") for name in self.new_categories),
            *((name, WORDS["missing"]) for name in self.newly_missing),
            *((change.name, WORDS[change.what]) for change in self.columns),
            *((name, WORDS["correlations"]) for pair in self.pairs for name in (pair.first, pair.second)),
        ]
        found: dict[str, dict[str, None]] = {}
        for name, word in said:
            found.setdefault(name, {})[word] = None
        return {name: tuple(words) for name, words in found.items()}

    def sentence(self, most: int = 5) -> str:
        """The answer in one sentence, with the first columns responsible and what differs of them.

        Args:
            most: Names at most.
        """
        if not self.is_drift:
            found = f"No drift from {inside(self.reference)} to {inside(self.origin)} beyond chance"
            if 2 * len(self.too_slow) <= self.compared:
                return f"{found}."
            count = f"{len(self.too_slow):,} of {counted(self.compared, 'column')}"
            return f"{found}, as far as can be said: {count} change too slowly to be compared in full."
        names = [f"{name} ({', '.join(words)})" for name, words in self.reasons.items()]
        more = f" and {len(names) - most:,} more" if len(names) > most else ""
        shown = f": {', '.join(names[:most])}{more}" if names else " in the spectrum as a whole"
        return f"Drift from {inside(self.reference)} to {inside(self.origin)}{shown}."

    def to_dict(self) -> dict[str, Any]:
        """The keys of the JSON; see ``docs/drift.md``."""
        found = asdict(self)
        found["participation_ratio"] = list(self.participation_ratio)
        return {"version": DRIFT_VERSION, **found, "responsible": list(self.responsible)}

    def to_json(self) -> str:
        """The report as JSON text; what is not finite is null."""
        return as_json(self.to_dict())

    def _shown(self) -> Shown:
        rows = [("answer", self.answer), ("rows", f"{self.rows:,} against {self.reference_rows:,}")]
        if self.responsible:
            names = self.responsible
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            rows.append(("responsible", ", ".join(names[:5]) + more))
        return Shown("DriftReport", self.origin, rows)


def inside(origin: str) -> str:
    """What was read, within a sentence: "the array", or the path."""
    return f"the {origin[4:]}" if origin.startswith("The ") else origin
