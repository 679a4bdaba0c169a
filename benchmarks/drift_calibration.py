"""How often the gate calls drift: python benchmarks/drift_calibration.py [--seeds 200] [--processes 2] [--quick].

False alarms: two stretches of one process, 500 rows apart, of known autocorrelation, size, tails and missing values; at
most 5 % of them may be called drift, plus the noise of so many seeds. Power: the second stretch has one thing changed,
of the size that the cell names. The constants of the null were chosen on the part "tuned"; nothing of the part "held
out" was looked at before they were as they are. The part "operation" was added afterwards: states, outages, stuck
sensors and a counter, which both stretches have. What it showed of states was mended, so it is not held out.
Everything is made up, so --data is not needed.

A cell is one process and one change. Its seeds are tried 50 at a time, the first 50 of all cells before the next,
narrow tables first. What is finished is appended to the file that `--counts` names, and a second run with the same file
goes on behind it; with `--processes 0` it only makes the table of what is there. About 25 minutes on two busy cores
(`--processes 2`).
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import numpy as np
import torch
from scipy import signal

from lightning_sloppy.drift.comparing import compared
from lightning_sloppy.drift.later_rows import read_later
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.encoded_table import encoded_table
from lightning_sloppy.inputs.noise_edge import median_lag_one
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection.reference import Reference, reference_of

AT_ONCE = 50
"""Seeds tried before the next cell."""

APART = 500
"""Rows between the two stretches."""


@dataclass(frozen=True)
class Cell:
    """One process and one change.

    Attributes:
        part: "tuned", "held out" or "power".
        name: Of the process, or of the change.
        rows, later, columns: Sizes of both stretches.
        phi: Correlation of neighbouring rows.
        slow: Columns with a correlation of .95 in place of phi.
        tails: "Gaussian", or "t" with three degrees of freedom.
        missing: Part of the cells, in bursts of about ten rows.
        group: Columns that share a factor.
        event: What normal operation does beside, see :func:`operated`.
        change: What is changed in the second stretch, see :func:`changed`.
    """

    part: str
    name: str
    rows: int
    later: int
    columns: int
    phi: float = 0.6
    slow: int = 0
    tails: str = "Gaussian"
    missing: float = 0.0
    group: int = 5
    event: str = ""
    change: str = ""


def cells(quick: bool) -> list[Cell]:
    """All of them."""
    tuned = [
        Cell("tuned", "usual", 1_000, 1_000, 30),
        Cell("tuned", "short later rows", 1_000, 150, 30),
        Cell("tuned", "long later rows", 500, 4_000, 30),
        Cell("tuned", "five columns", 1_000, 1_000, 5),
        Cell("tuned", "three slow columns", 1_000, 1_000, 30, phi=0.5, slow=3),
        Cell("tuned", "independent rows", 1_000, 500, 30, phi=0.0),
        Cell("tuned", "heavy tails", 1_000, 1_000, 30, phi=0.5, tails="t"),
        Cell("tuned", "ten blocks", 1_000, 1_000, 30, phi=0.95),
        Cell("tuned", "missing values", 1_000, 1_000, 30, missing=0.1),
        Cell("tuned", "hundred columns", 1_000, 1_000, 100),
        Cell("tuned", "few rows, hundred columns", 300, 1_500, 100, phi=0.3),
    ]
    held_out = [
        Cell("held out", "usual", 1_500, 700, 20, phi=0.75, group=4),
        Cell("held out", "very short later rows", 3_000, 60, 12, phi=0.4, group=3),
        Cell("held out", "very long later rows", 400, 8_000, 8, phi=0.7, group=8),
        Cell("held out", "three columns", 600, 900, 3, phi=0.85, group=3),
        Cell("held out", "slow columns, short reference", 500, 500, 40, phi=0.3, slow=8, group=8),
        Cell("held out", "independent rows, wide", 250, 250, 100, phi=0.0, group=10),
        Cell("held out", "heavy tails, short later rows", 2_000, 200, 30, phi=0.7, tails="t", group=6),
        Cell("held out", "ten blocks, few rows", 250, 400, 15, phi=0.9, group=1),
        Cell("held out", "a third missing", 800, 1_600, 25, phi=0.7, missing=0.33),
        Cell("held out", "missing, heavy tails, slow", 1_500, 1_000, 30, phi=0.5, slow=2, tails="t", missing=0.1),
    ]
    operation = [
        Cell("operation", "two states in turn", 2_000, 1_000, 20, event="state 100 100"),
        Cell("operation", "a state, one row in ten", 4_000, 1_000, 20, event="state 50 450"),
        Cell("operation", "the same, long tables", 16_000, 4_000, 20, event="state 50 450"),
        Cell("operation", "a state, seen about twice", 2_000, 1_000, 20, event="state 100 900"),
        Cell("operation", "outages of five columns", 4_000, 1_000, 20, event="outage 100 900"),
        Cell("operation", "stuck sensors", 2_000, 1_000, 20, event="stuck 50 450"),
        Cell("operation", "a counter of rows", 1_000, 1_000, 20, event="counter"),
    ]
    changes = [
        "mean of one column by 0.7 deviations",
        "mean of one column by 1 deviation",
        "deviation of one column by 1.7",
        "one factor no longer shared",
        "one pair linked",
        "missing from 0 to 5 % in one column",
        "one column constant",
    ]
    power = [
        Cell("power", f"{change}{', short later rows' if later < 1_000 else ''}", 1_000, later, 30, change=change)
        for later in (1_000, 200)
        for change in changes
    ]
    return [tuned[3], held_out[3], power[1]] if quick else tuned + held_out + operation + power


def stretches(cell: Cell, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two stretches of one process, (rows, columns) and (later, columns); the second with the change."""
    rng = np.random.default_rng(seed)
    d, total = cell.columns, cell.rows + APART + cell.later
    phi = np.where(np.arange(d) < cell.slow, 0.95, cell.phi)

    def noise() -> np.ndarray:
        drawn = rng.standard_t(3, (total + 300, d)) if cell.tails == "t" else rng.standard_normal((total + 300, d))
        filtered = [signal.lfilter([np.sqrt(1 - r**2)], [1.0, -r], drawn[:, column]) for column, r in enumerate(phi)]
        return np.stack(filtered, axis=1)[300:]

    own, factors = noise(), noise()
    places = np.arange(d) // cell.group * cell.group
    weight = 0.0 if cell.group == 1 else 0.7
    found = np.sqrt(1 - weight**2) * own + weight * factors[:, places]
    operated(found, cell.event, rng)
    later = found[-cell.later :].copy()
    changed(later, cell.change, own[-cell.later :], rng)
    old = found[: cell.rows].copy()
    if cell.missing:
        for values in (old, later):
            bursts = np.repeat(rng.random((-(-len(values) // 10), d)) < cell.missing, 10, axis=0)
            values[bursts[: len(values)]] = np.nan
    return old, later


def operated(values: np.ndarray, event: str, rng: np.random.Generator) -> None:
    """Put into all rows, in place, what lasts and comes again: kind, mean rows that it lasts, mean rows in between.

    A state adds two deviations to columns 0 to 4; an outage leaves them without values; column 0 is stuck at its value;
    a counter, in column 0, is the number of the row.
    """
    if not event:
        return
    if event == "counter":
        values[:, 0] = np.arange(len(values))
        return
    kind, *means = event.split()
    lasts, apart = map(float, means)
    row = -int(rng.exponential(lasts + apart))  # so that the first row may be inside
    while row < len(values):
        first, last = max(row, 0), max(row + max(1, int(rng.exponential(lasts))), 0)
        if kind == "state":
            values[first:last, :5] += 2.0
        elif kind == "outage":
            values[first:last, :5] = np.nan
        else:
            values[first:last, 0] = values[first, 0]
        row = last + max(1, int(rng.exponential(apart)))


def changed(values: np.ndarray, change: str, own: np.ndarray, rng: np.random.Generator) -> None:
    """Change later rows in place: columns 0 to 4, which share a factor, or one of them."""
    if change.startswith("mean"):
        values[:, 2] += float(change.split()[5])
    elif change.startswith("deviation"):
        values[:, 2] *= 1.7
    elif change == "one factor no longer shared":
        values[:, :5] = own[:, :5]
    elif change == "one pair linked":
        values[:, 7] = 0.6 * values[:, 2] + 0.8 * values[:, 7]
    elif change.startswith("missing"):
        values[rng.random(len(values)) < 0.05, 2] = np.nan
    elif change == "one column constant":
        values[:, 2] = values[0, 2]


TOUCHED = {"one factor no longer shared": {"0", "1", "2", "3", "4"}, "one pair linked": {"2", "7"}}


def reference(rows: np.ndarray) -> Reference:
    """What a report of these rows keeps for comparing, without the rest of the report."""
    table = encoded_table(table_source(rows), (), (), lambda _: None)
    return reference_of(table, (), (), median_lag_one(table.values))


def counted(task: tuple[Cell, int, int]) -> dict[str, object]:
    """How often a cell is called drift, from one seed up to another, and by what."""
    cell, first, last = task
    torch.set_num_threads(1)
    drift = named = refused = 0
    reasons: Counter[str] = Counter()
    for seed in range(first, last):
        old, later = stretches(
            cell, seed + {"tuned": 0, "held out": 300_000, "operation": 400_000, "power": 600_000}[cell.part]
        )
        kept = reference(old)
        source = table_source(later)
        try:
            found = compared(
                read_later(source, kept, (), (), lambda _: None), kept, "later", list(source.names), seed=seed
            )
        except ConfigurationError:
            refused += 1
            continue
        drift += found.is_drift
        named += bool(TOUCHED.get(cell.change, {"2"}) & set(found.responsible))
        reasons.update(each.name for each in found.statistics if each.drift)
        reasons.update(["presence"] if found.newly_constant or found.newly_varying or found.newly_missing else [])
    return {"cell": asdict(cell), "first": first, "last": last, "drift": drift, "named": named, "refused": refused,
            "reasons": dict(reasons)}  # fmt: skip


def main() -> None:
    """A row for each cell."""
    options = common.arguments(__doc__ or "", seeds=200, processes=os.cpu_count() or 1, counts=Path)
    seeds = 3 if options.quick else options.seeds
    wanted = cells(options.quick)
    tasks = [
        (cell, first, min(first + AT_ONCE, seeds))
        for first, cell in itertools.product(range(0, seeds, AT_ONCE), sorted(wanted, key=lambda cell: cell.columns))
    ]
    done = common.resumed(tasks, counted, lambda found: (Cell(**found["cell"]), found["first"], found["last"]), options)
    table = [
        row
        for cell in wanted
        if (row := row_of(cell, [done[task] for task in tasks if task[0] == cell and task in done]))
    ]
    record = (QUESTION, table, remarks(table, len(wanted)), options)
    if options.quick:  # nothing is written
        print(common.markdown(common.record(*record)))
    else:
        common.report("drift_calibration", *record)


QUESTION = "How often does the gate call drift, without any and with some?"


def row_of(cell: Cell, parts: list[dict[str, object]]) -> dict[str, object]:
    """A row of the table; empty for a cell of which nothing is done."""
    if not parts:
        return {}
    tried = sum(int(str(part["last"])) - int(str(part["first"])) for part in parts)
    total = {name: sum(int(str(part[name])) for part in parts) for name in ("drift", "named", "refused")}
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part["reasons"])  # type: ignore[arg-type]
    process = [f"r = {cell.phi:g}"]
    process += [f"{cell.slow} columns with r = .95"] if cell.slow else []
    process += ["t, 3 degrees"] if cell.tails == "t" else []
    process += [f"{cell.missing:.0%} missing"] if cell.missing else []
    process += [cell.event] if cell.event else []
    return {
        "part": cell.part,
        "cell": cell.name,
        "reference x columns": f"{cell.rows} x {cell.columns}",
        "later rows": cell.later,
        "process": ", ".join(process),
        "seeds": tried,
        "called drift": total["drift"] / tried,
        "column named": total["named"] / tried if cell.part == "power" else "",
        "not compared": total["refused"] / tried,
        "mostly by": ", ".join(f"{name} {count}" for name, count in reasons.most_common(3)),
    }


def remarks(table: list[dict[str, object]], cells: int) -> list[str]:
    """What the columns are, and how many cells miss the target."""
    said = [
        "Rows of first-order autoregressive processes; groups of columns share a factor. Called drift: fraction of the "
        "seeds at alpha = .05. Column named: fraction in which a changed column is among those responsible."
    ]
    if len(table) < cells:
        said.append(f"{cells - len(table)} of {cells} cells were not run.")
    for part in ("tuned", "held out", "operation"):
        rows = [row for row in table if row["part"] == part]
        if rows:
            rates = np.array([float(str(row["called drift"])) for row in rows])
            allowed = [0.05 + 1.645 * np.sqrt(0.05 * 0.95 / int(str(row["seeds"]))) for row in rows]
            said.append(
                f"{part.capitalize()}: {int(np.sum(rates > allowed))} of {len(rows)} cells are above 5 % plus the "
                f"noise of their seeds; the highest is {rates.max():.3f}, the mean {rates.mean():.3f}."
            )
    return said


if __name__ == "__main__":
    main()
