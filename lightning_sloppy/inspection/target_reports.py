"""What a target says by itself: base rates, the error of always naming the largest class, change over the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from lightning_sloppy.inputs.column_kinds import as_word
from lightning_sloppy.inspection.data_report import TargetReport

MOST_CLASSES = 20
"""Different values up to which numbers are taken for classes."""

PARTS = 3
"""Equal parts of the rows whose rates are compared."""


def target_reports(targets: Mapping[str, npt.NDArray[Any]]) -> tuple[TargetReport, ...]:
    """Reports of all targets; columns of 0 and 1 of which each row has exactly one are joined to one target.

    Args:
        targets: Cells by name, NaN or None where missing, in the order of the rows.
    """
    joined = _joined(targets) if len(targets) > 1 else None
    if joined is not None:
        return (_report("one of " + ", ".join(targets), joined),)
    return tuple(_report(name, cells) for name, cells in targets.items())


def _joined(targets: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    columns = list(targets.values())
    if any(cells.dtype == object for cells in columns):
        return None
    table = np.stack(columns, axis=1)
    if not (np.isin(table, (0.0, 1.0)).all() and (table.sum(1) == 1).all()):
        return None
    return np.asarray(np.array(list(targets), dtype=object)[table.argmax(1)])


def _report(name: str, cells: npt.NDArray[Any]) -> TargetReport:
    known = np.array([cell is not None and cell == cell for cell in cells])
    present = cells[known]
    words = [cell if isinstance(cell, str) else as_word(cell) for cell in present.tolist()]
    counts = Counter(words)
    missing = int((~known).sum())
    if len(counts) > MOST_CLASSES and cells.dtype != object:
        return _of_numbers(name, present.astype(float), missing)
    total = max(len(words), 1)
    rates = {word: count / total for word, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))}
    if len(rates) < 2:
        return TargetReport(name, "classes", missing, rates, 0.0, math.nan, (), "", math.nan)
    followed = list(rates)[-1] if len(rates) == 2 else next(iter(rates))
    hits = np.array([word == followed for word in words])
    parts = np.array_split(hits, PARTS)
    table = np.array([[part.sum(), len(part) - part.sum()] for part in parts])
    change = float(stats.chi2_contingency(table).pvalue) if table.sum(0).all() and table.sum(1).all() else math.nan
    thirds = tuple(float(part.mean()) for part in parts if len(part))
    return TargetReport(
        name, "classes", missing, rates, 1.0 - next(iter(rates.values())), math.nan, thirds, followed, change
    )


def _of_numbers(name: str, values: npt.NDArray[np.float64], missing: int) -> TargetReport:
    parts = np.array_split(values, PARTS)
    varies = len(values) > 2 * PARTS and float(values.std()) > 0
    change = float(stats.f_oneway(*parts).pvalue) if varies else math.nan
    means = tuple(float(part.mean()) for part in parts if len(part))
    return TargetReport(name, "numbers", missing, {}, math.nan, float(values.std()), means, "", change)
