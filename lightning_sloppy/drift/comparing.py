"""Compare later rows with a reference: which columns can be, how far they differ, and what chance alone would do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.display import Progress, untold
from lightning_sloppy.drift.block_null import RESAMPLES, block_null
from lightning_sloppy.drift.comparable import Comparison
from lightning_sloppy.drift.differences import Columns, described, differences, top_space
from lightning_sloppy.drift.later_rows import LaterRows, read_later
from lightning_sloppy.drift.naming import Found, changes, constant_now, cut_off_in_words, seen_in_words, statistics_of
from lightning_sloppy.drift.neighbours import FEWEST_BLOCKS, Neighbours
from lightning_sloppy.drift.rare_events import rare_events
from lightning_sloppy.drift.report import DriftReport
from lightning_sloppy.drift.scoring import participation_ratios, scored
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.row_parts import MOST_COLUMNS
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection.asked import codes_of, names_of, rows_read
from lightning_sloppy.inspection.data_report import DataReport, arrays_beside
from lightning_sloppy.inspection.reference import Reference, read_reference

Mask = npt.NDArray[np.bool_]

ALPHA = 0.05

SHARE = 0.1
"""Part of alpha that is spent on what occurs now and never did; the rest is that of the null of blocks."""

MOST_RESAMPLES = 5_000


def drift_report(
    data: Any,
    against: str | Path | DataReport | Reference,
    *,
    alpha: float = ALPHA,
    target: str | int | Sequence[str | int] = (),
    missing_codes: str | float | Sequence[str | float] = (),
    header: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DriftReport:
    """Whether later rows are like those of a reference: their columns, correlations and spectrum.

    What differs is compared with what differs between two sets of blocks of the reference, one as long as the reference
    and one as long as the later rows, so that rows that follow one another in time are no drift of their own. The limit
    is that of the largest of all standardised differences (Westfall and Young 1993).

    Args:
        data: The later rows: a path, frame, array, tensor, mapping or data set, as for :func:`inspect`.
        against: Path of the JSON of a report, whose arrays are in the same folder, a report, or its reference.
        alpha: Level: part of the tables of an unchanged process that are called drift; above 0, at most 0.5.
        target: Columns of the later rows to leave out, beside the targets of the reference.
        missing_codes: Words or numbers that mean a missing value, beside those of the reference.
        header: Whether the first line of a file of text names the columns; None: as it looks.
        seed: Of the draws.
        progress: Told how far the work is.

    Returns:
        The report; ``report.is_drift``, and ``report.responsible`` by name.

    Raises:
        ConfigurationError: What cannot be read or compared, in one sentence.

    Example:
        >>> from lightning_sloppy import inspect
        >>> rng = np.random.default_rng(0)
        >>> first = {name: rng.standard_normal(400) for name in "abc"}
        >>> later = {name: rng.standard_normal(400) for name in "ab"} | {"c": rng.standard_normal(400) + 1}
        >>> report = drift_report(later, inspect(first, intervals=False))
        >>> report.answer, report.responsible
        ('drift', ('c',))
    """
    checked_alpha(alpha)
    if seed < 0:
        raise ConfigurationError(f"seed={seed} is negative; pass 0 or more.")
    tell = progress or untold
    reference = reference_from(against)
    targets, codes = names_of(target), codes_of(missing_codes)
    source = table_source(data, [*reference.codes, *codes], header)
    unknown = [name for name in targets if name not in source.names]
    if unknown:
        raise ConfigurationError(f"The target {unknown[0]!r} is no column of {source.inside}; look at its name.")
    later = read_later(source, reference, [*targets, *reference.targets], codes, rows_read(tell))
    return compared(later, reference, source.origin, source.names, targets, alpha=alpha, seed=seed, progress=tell)


def checked_alpha(alpha: float) -> float:
    """The level.

    Raises:
        ConfigurationError: Not above 0 and at most 0.5, or too small for so many resamples.
    """
    least = 1 / ((1 - SHARE) * MOST_RESAMPLES)
    if not isinstance(alpha, (int, float)) or not 0 < alpha <= 0.5:
        raise ConfigurationError(f"alpha={alpha!r} is no level; pass a number above 0, at most 0.5.")
    if alpha < least:
        raise ConfigurationError(
            f"alpha={alpha:g} is too small for {MOST_RESAMPLES:,} resamples; pass {least:.1g} or more."
        )
    return alpha


def reference_from(against: str | Path | DataReport | Reference) -> Reference:
    """What a report, or a file of one, keeps for comparing.

    Raises:
        ConfigurationError: It cannot be read, or cannot be compared with.
    """
    found = against if isinstance(against, Reference) else None
    if isinstance(against, DataReport):
        found = against.reference
        if found is None:
            raise ConfigurationError("The report given keeps no reference; make it with inspect().")
    if not isinstance(against, (DataReport, Reference, str, Path)):
        raise ConfigurationError(
            f"against is a {type(against).__name__}; pass the path of the JSON that lightning-sloppy inspect wrote, or "
            "a report of inspect()."
        )
    if isinstance(against, (str, Path)):
        path = Path(against).expanduser()
        found = read_reference(path, arrays_beside(path))
        if found.origin.startswith("The "):  # of an array or a frame; the file says more
            found = replace(found, origin=str(path))
    assert found is not None
    if found.parts is None:
        raise ConfigurationError(
            f"{found.origin} cannot be compared with: it has {len(found.names):,} columns, but at most "
            f"{MOST_COLUMNS:,} are compared; select columns first."
        )
    blocks = len(found.parts.moments.rows)
    if blocks < FEWEST_BLOCKS:
        raise ConfigurationError(
            f"{found.origin} cannot be compared with: its {found.rows:,} rows make {blocks} blocks, and "
            f"{FEWEST_BLOCKS} are needed; take more rows for the reference."
        )
    return found


def compared(
    later: LaterRows,
    reference: Reference,
    origin: str,
    names: Sequence[str],
    targets: Sequence[str] = (),
    *,
    alpha: float = ALPHA,
    seed: int = 0,
    progress: Progress | None = None,
) -> DriftReport:
    """Compare rows that were read.

    Args:
        later: The rows.
        reference: What they are compared with.
        origin: What was read.
        names: All columns of the later table.
        targets: Those that were left out, beside the targets of the reference.
        alpha: Level.
        seed: Of the draws.
        progress: Told how far the work is.

    Raises:
        ConfigurationError: Too few rows, or columns that change too slowly.
    """
    comparison = Comparison(later, reference, origin)
    null_rows, notes = comparison.length()
    chosen, alike, slow = comparison.columns()
    found = _measured(comparison, chosen, alike, null_rows, alpha, seed, progress or untold)
    columns, pairs = changes(found)
    statistics = statistics_of(found)
    rare = rare_events(comparison, chosen, SHARE * alpha)
    kept = {*reference.targets, *targets}
    lost = tuple(name for name in reference.columns if name not in names and name not in reference.set_aside)
    new = tuple(name for name in names if name not in reference.columns and name not in kept)
    is_drift = any(each.drift for each in statistics) or bool(lost or new or rare.any)
    before, after = participation_ratios(found.real, found.null, chosen)
    return DriftReport(
        answer="drift" if is_drift else "same",
        origin=origin,
        reference=reference.origin,
        rows=later.rows,
        reference_rows=reference.rows,
        alpha=alpha,
        compared=int(chosen.compared.sum()),
        blocks=found.null.blocks,
        block_rows=found.null.length,
        resamples=_resamples(alpha),
        limit=found.scores.limit,
        top=found.top.k,
        gap=found.top.gap,
        participation_ratio=(float(before), float(after)),
        statistics=statistics,
        columns=columns,
        pairs=pairs,
        lost=lost,
        new=new,
        newly_constant=rare.constant,
        constant_values=constant_now(reference, later.least, rare.constant),
        newly_varying=rare.varying,
        newly_missing=rare.missing,
        new_categories=rare.categories,
        too_slow=tuple(name for name, each in zip(reference.names, slow, strict=True) if each),
        targets=tuple(name for name in names if name in kept),
        notes=(
            *seen_in_words(found.scores),
            *notes,
            *cut_off_in_words(found, columns),
            *comparison.notes(chosen, slow, names),
            *rare.notes,
        ),
    )


def _measured(
    comparison: Comparison,
    chosen: Columns,
    alike: Neighbours,
    null_rows: float,
    alpha: float,
    seed: int,
    tell: Progress,
) -> Found:
    """The differences of both tables beside those of the reference with itself."""
    parts, later = comparison.parts, comparison.later
    assert later.moments is not None
    assert later.uncut is not None
    first, second = described(parts.whole, chosen), described(later.moments, chosen)
    top = top_space(first, chosen)
    null = block_null(
        parts, chosen, null_rows, comparison.block, alike, top, seed=seed, resamples=_resamples(alpha),
        advance=lambda done, total: tell("comparing the reference with itself", done, total),
    )  # fmt: skip
    real = differences(first, second, chosen, top)
    scores = scored(real, null, chosen, (1 - SHARE) * alpha)
    return Found(comparison.reference, chosen, first, second, real, null, scores, top, later.uncut)


def _resamples(alpha: float) -> int:
    """Pairs of sets: five of them beyond the limit, on average."""
    return min(MOST_RESAMPLES, max(RESAMPLES, math.ceil(5 / ((1 - SHARE) * alpha))))
