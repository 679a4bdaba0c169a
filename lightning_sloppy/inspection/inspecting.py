"""Look at a table: read it, find what its columns share, count directions with intervals, and say so in words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_sloppy.display import Progress, percent, untold
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.calibration import ITERATIONS, MOST_COLUMNS, calibrated_eigenvalues
from lightning_sloppy.inputs.column_groups import THRESHOLD, column_groups, hierarchical_order
from lightning_sloppy.inputs.encoded_table import EncodedTable, encoded_table
from lightning_sloppy.inputs.half_samples import Halves, half_eigenvalues, halves_of, halves_of_parts
from lightning_sloppy.inputs.moments import Moments
from lightning_sloppy.inputs.nearest_matrix import Repaired, repaired
from lightning_sloppy.inputs.noise_edge import Shrinkage, effective_rows, median_lag_one, shrunk_correlation
from lightning_sloppy.inputs.nulls import NULLS, isotropic_spectrum
from lightning_sloppy.inputs.pairwise import (
    MOST_UNDEFINED,
    Floats,
    PairwiseMoments,
    fewest_defined,
    fewest_linked,
)
from lightning_sloppy.inputs.row_influence import clipped_correlation, dominating_rows, rank_correlation
from lightning_sloppy.inputs.spectrum import moments_spectrum
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection.answers import TOO_FEW, answers_of
from lightning_sloppy.inspection.asked import codes_of, names_of, rows_read
from lightning_sloppy.inspection.column_facts import columns_kept, dependencies, duplicates, nearly_constant, shuffled
from lightning_sloppy.inspection.data_report import DataReport, MissingReport
from lightning_sloppy.inspection.missing_values import ratio_of, treated
from lightning_sloppy.inspection.reference import reference_of
from lightning_sloppy.inspection.rows_behind import departures
from lightning_sloppy.inspection.saved_arrays import kept_parts
from lightning_sloppy.inspection.spectrum_numbers import (
    Resamples,
    as_spectrum,
    participation_ratio,
    spectrum_report,
)
from lightning_sloppy.inspection.target_reports import target_reports
from lightning_sloppy.measures.verdict import sloppiness_verdict
from lightning_sloppy.records import SloppinessVerdict

Missing = Literal["pairwise", "em", "error"]

MOSTLY_MISSING = 0.5

FEWEST_PAIRS = 0.75
"""Independent rows for each column below which no interval is given: what the sample cannot show is not to be had."""

LATE = 0.5
"""Part of the rows over which a column has to be constant to be named as one that varies later."""


def inspect(
    data: Any,
    *,
    target: str | int | Sequence[str | int] = (),
    missing: Missing = "pairwise",
    missing_codes: str | float | Sequence[str | float] = (),
    header: bool | None = None,
    threshold: float = THRESHOLD,
    shrinkage: Shrinkage | None = None,
    intervals: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataReport:
    """What a table is like before any model: its columns, the directions in them, and how sure that is.

    Args:
        data: Path of a ``.csv``, ``.tsv`` or other text file, ``.parquet``, ``.npy``, ``.npz`` or IDX file; a pandas or
            polars frame, a tensor or array of shape (n, ...), a mapping of names to columns, a data set or a loader.
            Columns of text are one-hot encoded up to 20 categories or set aside, like dates and identifiers.
        target: Columns to keep apart and to report by themselves.
        missing: "pairwise": each correlation over the rows that both columns have, and the nearest positive
            semidefinite matrix to them. "em": the Gaussian model by expectation and maximisation. "error": refuse.
            Pairs take values as missing completely at random, the model as missing at random.
        missing_codes: Words or numbers that mean a missing value, beside empty cells, NaN, NA and "?".
        header: Whether the first line of a file of text names the columns. None: as it looks; a line of numbers is then
            a row, and the report says so (``report.reading``).
        threshold: Absolute correlation above which two columns carry the same information.
        shrinkage: "ledoit_wolf" or "oas": also the participation ratio of the correlation that is pulled towards the
            identity by scikit-learn's choice, with column means in place of missing values.
        intervals: Whether to compute them, which takes most of the time.
        seed: Of all draws.
        progress: Told how far the work is.

    Returns:
        The report; ``report.answers`` in words, ``report.to_json()`` with stable keys.

    Raises:
        ConfigurationError: A table that cannot be read or used, in one sentence.
        MissingExtraError: Text needs pandas, parquet pyarrow, shrinkage scikit-learn; it names the extra to install.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((200, 3))
        >>> table = {"a": rows[:, 0], "b": rows[:, 1], "c": rows[:, 2], "copy of a": rows[:, 0]}
        >>> report = inspect(table, intervals=False)
        >>> report.groups[0].names, report.drop
        (('a', 'copy of a'), ('copy of a',))
    """
    if missing not in get_args(Missing):
        raise ConfigurationError(f"missing={missing!r} is no way; choose one of {', '.join(get_args(Missing))}.")
    if not 0 < threshold < 1:
        raise ConfigurationError(f"threshold={threshold} is no absolute correlation; pass a number between 0 and 1.")
    if shrinkage is not None and shrinkage not in get_args(Shrinkage):
        raise ConfigurationError(f"shrinkage={shrinkage!r} is unknown; choose one of {', '.join(get_args(Shrinkage))}.")
    if seed < 0:
        raise ConfigurationError(f"seed={seed} is negative; pass 0 or more.")
    targets, codes, tell = names_of(target), codes_of(missing_codes), progress or untold
    source = table_source(data, codes, header)
    table = encoded_table(source, targets, codes, rows_read(tell))
    report = _Inspection(table, missing, threshold, shrinkage, intervals, seed, tell).report()
    reference = reference_of(table, targets, codes, report.autocorrelation)
    return replace(report, reading=source.note, reference=reference)


@dataclass
class _Inspection:
    """One table under inspection."""

    table: EncodedTable
    missing: Missing
    threshold: float
    shrinkage: Shrinkage | None
    intervals: bool
    seed: int
    tell: Progress

    def report(self) -> DataReport:
        """All of it."""
        table, values = self.table, self.table.values
        moments = table.moments
        counts, mean, variance = moments.of_columns()
        # What is said of two columns needs more rows than their part in a spectrum.
        linked, _ = moments.correlation(fewest_linked(table.rows))
        if table.rows < fewest_linked(table.rows):
            linked = np.eye(len(linked))
        pairwise, undefined = moments.correlation(fewest_defined(table.rows))
        seen, correlation, matrix = treated(table, self.missing, pairwise, undefined, self.tell)
        ratio = participation_ratio(matrix.eigenvalues)
        autocorrelation = median_lag_one(values)
        independent = effective_rows(table.rows, autocorrelation)
        groups = column_groups(linked, table.names, counts, self.threshold)
        kept = columns_kept(table.names, groups)
        reason = self._without_intervals(seen, autocorrelation)
        whole, fewer, drawn = (None, None, None) if reason else self._resamples(correlation, kept, autocorrelation)
        smaller = len(kept) < len(table.names)
        without = repaired(correlation[np.ix_(kept, kept)], rows=table.rows) if smaller else matrix
        heavy = self._heavy_rows()
        self.tell("ranks", 0, 0)
        report = DataReport(
            origin=table.origin,
            rows=table.rows,
            columns=len(table.columns),
            names=table.names,
            missing=seen,
            constant=table.constant,
            late=self._late(),
            nearly_constant=nearly_constant(table.names, values),
            mostly_missing=self._mostly_missing(),
            set_aside=table.set_aside,
            encoded=table.encoded,
            duplicates=duplicates(table, linked),
            groups=tuple(groups),
            threshold=self.threshold,
            order=tuple(table.names[index] for index in hierarchical_order(pairwise)),
            dependencies=dependencies(table, float(matrix.eigenvalues[-1])),
            spectrum=spectrum_report(matrix, table.rows, independent, whole),
            deduplicated=spectrum_report(without, table.rows, independent, fewer),
            dominating_rows=heavy,
            ranks=ratio_of(rank_correlation(values)),
            clipped=ratio_of(clipped_correlation(values)),
            shrunk=self._shrunk(),
            autocorrelation=autocorrelation,
            effective_rows=independent,
            resampled=reason or _resampled(drawn),
            half=None if whole is None else _mean_ratio(whole),
            sampled_rows=len(values),
            verdicts=self._verdicts(matrix, ratio, table.shift + table.scale * mean, table.scale * np.sqrt(variance)),
            targets=target_reports(table.targets),
            means=table.shift,
            deviations=table.scale,
            correlation=matrix.correlation,
            parts=tuple(kept_parts(table)),
            departures={} if table.sampled else departures(table.names, values, self._late()),
        )
        return replace(report, answers=tuple(answers_of(report)))

    def _mostly_missing(self) -> dict[str, float]:
        kinds = map(self.table.kinds.__getitem__, self.table.columns)
        return {kind.name: kind.missing / kind.rows for kind in kinds if kind.missing > MOSTLY_MISSING * kind.rows}

    def _heavy_rows(self) -> tuple[int, ...]:
        table = self.table
        self.tell("rows that dominate", 0, 0)
        found = dominating_rows(table.heavy[1] if table.sampled else table.values, table.moments)
        return tuple(int(table.heavy[0][row]) for row in found) if table.sampled else tuple(found)

    def _resamples(
        self, correlation: Floats, kept: npt.NDArray[np.intp], autocorrelation: float
    ) -> tuple[Resamples | None, Resamples | None, Halves | None]:
        """Of all columns and of those that stay."""
        table, d = self.table, len(self.table.names)
        drawn = (
            halves_of_parts(table.parts, self.seed, block=table.rows // max(len(table.parts), 1))
            if table.sampled
            else halves_of(table.values, autocorrelation, self.seed, fewest_defined(table.rows))
        )
        if drawn is None:
            return None, None, None
        repeats = 100 if d <= 128 else 60 if d <= 320 else 40
        every = np.arange(d)
        choices = [every] if len(kept) == d else [every, kept]
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self.tell("intervals", done, repeats + len(choices) * ITERATIONS)

        halves = half_eigenvalues(drawn, repeats, choices, advance)
        found = []
        for columns, half in zip(choices, halves, strict=True):
            own = np.isnan(table.values[:, columns])
            # The Gaussian model uses all that is observed: its errors are those of complete rows, fewer of them.
            rows, holes = table.rows, own if own.any() else None
            if self.missing == "em" and holes is not None:
                rows, holes = max(2, round(rows * (1 - float(own.mean())))), None
            population, samples = calibrated_eigenvalues(
                correlation[np.ix_(columns, columns)], rows, holes, autocorrelation, self.seed, advance
            )
            found.append(Resamples(half, drawn, population, samples, self._pairs(columns, autocorrelation)))
        return found[0], found[-1], drawn

    def _pairs(self, columns: npt.NDArray[np.intp], autocorrelation: float) -> float:
        """Rows that count as independent for a correlation: both observed, and the rest of a first-order process."""
        counts, _, _ = self.table.moments.of_columns()
        observed, squared = float(counts[columns].mean()) / self.table.rows, autocorrelation**2
        return self.table.rows * observed**2 * (1 - squared) / (1 + squared)

    def _shrunk(self) -> tuple[float, float] | None:
        if self.shrinkage is None:
            return None
        matrix, amount = shrunk_correlation(np.nan_to_num(self.table.values), self.shrinkage)
        return ratio_of(matrix), amount

    def _without_intervals(self, seen: MissingReport, autocorrelation: float) -> str | None:
        """Why none can be had, as far as that is known before halves are drawn."""
        d = len(self.table.names)
        undefined = 0.0 if seen.method == "em" or d < 2 else seen.undefined_pairs / (d * (d - 1) / 2)
        if not self.intervals:
            return "no intervals: none were asked for"
        if d == 1:
            return "no intervals: one column always is one direction"
        if d > MOST_COLUMNS:
            return f"no intervals: more than {MOST_COLUMNS:,} columns"
        if self._pairs(np.arange(d), autocorrelation) < FEWEST_PAIRS * d:
            return TOO_FEW
        if undefined > MOST_UNDEFINED:
            return f"no intervals: {percent(undefined)} of the pairs of columns have too few rows in common"
        return None

    def _late(self) -> dict[str, int]:
        kinds = [self.table.kinds[name] for name in dict.fromkeys(self.table.parents)]
        return {
            kind.name: kind.changed
            for kind in kinds
            if kind.verdict() == "number" and kind.changed is not None and kind.changed >= max(2, LATE * kind.rows)
        }

    def _verdicts(
        self, matrix: Repaired, ratio: float, mean: Floats, deviation: Floats
    ) -> dict[str, SloppinessVerdict]:
        """Correlation beside shuffled columns, second moment beside isotropic samples."""
        table, found = self.table, {}
        self.tell("comparison with shuffled columns", 0, 0)
        mixed = PairwiseMoments.of(shuffled(table.names, table.values, self.seed))
        null = repaired(mixed.correlation(fewest_defined(len(table.values)))[0], rows=len(table.values))
        found["correlation"] = sloppiness_verdict(
            as_spectrum(matrix.eigenvalues, table.rows, matrix.floor),
            as_spectrum(null.eigenvalues, table.rows, null.floor),
            NULLS["correlation"],
            dimensions=(ratio, participation_ratio(null.eigenvalues)),
        )
        with np.errstate(over="ignore"):
            scatter = matrix.correlation * deviation[:, None] * deviation * table.rows
        with suppress(ConfigurationError):  # squares may overflow
            second = moments_spectrum(
                Moments(table.rows, torch.from_numpy(mean), torch.from_numpy(scatter)), "second_moment"
            )
            isotropic = isotropic_spectrum(second, self.seed)
            found["second_moment"] = sloppiness_verdict(second, isotropic, NULLS["second_moment"])
        return found


def _resampled(drawn: Halves | None) -> str:
    if drawn is None:
        return "no intervals: too few rows"
    return "rows" if drawn.block == 1 else f"blocks of {drawn.block} rows"


def _mean_ratio(resamples: Resamples) -> float:
    """The mean participation ratio over random halves of the rows."""
    return float(np.mean([participation_ratio(np.maximum(half, 0.0)) for half in resamples.halves]))
