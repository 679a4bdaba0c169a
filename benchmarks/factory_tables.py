"""What `inspect` says of three factory tables, beside the right answers: benchmarks/factory_tables.py --data FOLDER.

FOLDER holds secom/secom.zip, steel-plates/steel+plates+faults.zip and
ai4i2020/ai4i+2020+predictive+maintenance+dataset.zip as the UCI repository gives them. The right answers were computed
with numpy, scipy and pandas alone. Exit code 1 where one is missed. At the end the gate compares the last third of
each table with the first, and shuffled halves of SECOM.
"""

from __future__ import annotations

import csv
import io
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import common
import numpy as np

from lightning_sloppy import DataReport, drift_report, inspect
from lightning_sloppy.inputs.gaussian_em import gaussian_em
from lightning_sloppy.inspection.spectrum_numbers import participation_ratio

EXPECTED = {
    "SECOM": {
        "rows": 1567,
        "columns": 590,
        "constant": 116,
        "late": 6,
        "groups": {10: 2, 6: 2, 4: 6, 3: 51, 2: 50},
        "top": [26.63, 17.31, 13.51, 12.20, 11.07],
        "participation ratio": 76.96,
        "above the edge of all rows": 62,
        "negative eigenvalues": 36,
        "smallest eigenvalue": -1.37,
        "repair": 0.37,
        "undefined pairs": 232,
        "smallest overlap": 5,
        "decades": 1.3,
        "clipped": 85,
        "ranks": 91,
    },
    "steel plates": {
        "rows": 1941,
        "columns": 27,
        "constant": 0,
        "late": 0,
        "groups": {3: 1, 2: 3},
        "top": [8.303, 3.420, 2.704, 2.238, 1.972],
        "participation ratio": 6.942,
        "above the edge of all rows": 7,
        "negative eigenvalues": 0,
        "decades": 11.45,
        "decades without repeats": 4.09,
    },
    "AI4I": {
        "rows": 10_000,
        "columns": 6,
        "constant": 0,
        "late": 0,
        "groups": {},
        "top": [1.911, 1.841, 1.006, 0.9928, 0.1263],
        "participation ratio": 3.969,
        "above the edge of all rows": 2,
        "negative eigenvalues": 0,
    },
}
"""Groups are sizes with their counts."""

TOLERANCE = {"top": 6e-4, "participation ratio": 2e-4, "smallest eigenvalue": 0.01, "repair": 0.02, "decades": 0.02}
"""Relative; what is not named here and is no whole number may differ by 1 %, as the right answers are rounded."""


def tables(root: Path) -> dict[str, np.ndarray]:
    """The three tables as numbers, NaN where a value is missing; the type of AI4I by rank."""
    with zipfile.ZipFile(root / "secom" / "secom.zip") as archive:
        secom = np.loadtxt(io.BytesIO(archive.read("secom.data")))
    with zipfile.ZipFile(root / "steel-plates" / "steel+plates+faults.zip") as archive:
        steel = np.loadtxt(io.BytesIO(archive.read("Faults.NNA")))[:, :27]
    with zipfile.ZipFile(root / "ai4i2020" / "ai4i+2020+predictive+maintenance+dataset.zip") as archive:
        rows = list(csv.reader(io.StringIO(archive.read("ai4i2020.csv").decode("utf-8-sig"))))[1:]
    rank = {"L": 0.0, "M": 1.0, "H": 2.0}
    ai4i = np.array([[rank[row[2]], *map(float, row[3:8])] for row in rows])
    return {"SECOM": secom, "steel plates": steel, "AI4I": ai4i}


def found(report: DataReport) -> dict[str, object]:
    """The same numbers of a report."""
    return {
        "rows": report.rows,
        "columns": report.columns,
        "constant": len(report.constant),
        "late": len(report.late),
        "groups": dict(Counter(len(group.names) for group in report.groups)),
        "top": list(report.spectrum.eigenvalues[:5]),
        "participation ratio": report.spectrum.participation_ratio.value,
        "above the edge of all rows": report.spectrum.above_edge_of_all_rows,
        "negative eigenvalues": report.missing.negative_eigenvalues,
        "smallest eigenvalue": report.missing.smallest_eigenvalue,
        "repair": report.missing.repair,
        "undefined pairs": report.missing.undefined_pairs,
        "smallest overlap": report.missing.smallest_overlap,
        "decades": report.spectrum.decades.value,
        "decades without repeats": report.deduplicated.decades.value,
        "clipped": report.clipped,
        "ranks": report.ranks,
    }


def agrees(name: str, right: object, said: object) -> bool:
    """Whether a number is the right one as far as that was written down."""
    if isinstance(right, (int, dict)) and name not in ("clipped", "ranks"):
        return right == said
    return bool(np.allclose(np.array(said), np.array(right), rtol=TOLERANCE.get(name, 0.01), atol=1e-6))


def gated(table: str, old: np.ndarray, new: np.ndarray) -> dict[str, object]:
    """What the gate says of two parts of a table, with the number of changes of each kind beyond the limit."""
    reference = inspect(old, intervals=False)
    start = time.perf_counter()
    said = drift_report(new, reference)
    seconds = time.perf_counter() - start
    kinds = Counter(change.what for change in said.columns)
    words = [f"{said.answer}, {seconds:.1f} s", f"{len(said.columns)} changes of columns"] + [
        f"{count} of {kind}" for kind, count in sorted(kinds.items())
    ]
    if said.too_slow:
        words.append(f"{len(said.too_slow)} columns too slow to compare in full")
    return {"table": table, "number": f"gate, {len(new):,} rows against {len(old):,}", "inspect": "; ".join(words)}


def main() -> None:
    """A row for each number."""
    options = common.arguments(__doc__ or "")
    if options.data is None:
        raise SystemExit("The factory tables need --data FOLDER.")
    rows, wrong = [], 0
    loaded = tables(options.data)
    for table, values in loaded.items():
        start = time.perf_counter()
        report = inspect(values, intervals=not options.quick)
        seconds = time.perf_counter() - start
        said = found(report)
        for name, right in EXPECTED[table].items():
            good = agrees(name, right, said[name])
            wrong += not good
            shown = [f"{value:.4g}" for value in said[name]] if name == "top" else said[name]
            rows.append(
                {"table": table, "number": name, "right": str(right), "inspect": shown, "": "" if good else "X"}
            )
        ratio = report.spectrum.participation_ratio
        if ratio.low is not None and ratio.high is not None:
            ends = f"[{ratio.low:.4g}, {ratio.high:.4g}], by {report.resampled}"
            rows.append({"table": table, "number": "interval of the participation ratio", "inspect": ends})
        rows.append({"table": table, "number": "seconds", "inspect": seconds})
    secom = loaded["SECOM"]
    varying = np.array([len(np.unique(column[~np.isnan(column)])) > 1 for column in secom.T])
    few = secom[:, varying & (np.isnan(secom).mean(0) <= 0.2)]
    start = time.perf_counter()
    fit = gaussian_em(few)
    seconds = time.perf_counter() - start
    ratio = participation_ratio(np.linalg.eigvalsh(fit.correlation))
    wrong += not agrees("participation ratio of the model", 73.52, ratio)
    rows.append(
        {"table": "SECOM, 442 columns", "number": "PR of the Gaussian model", "right": "73.52", "inspect": ratio}
    )
    rows.append({"table": "SECOM, 442 columns", "number": f"seconds, {fit.iterations} iterations", "inspect": seconds})
    for table, values in loaded.items():
        third = len(values) // 3
        rows.append(gated(f"{table}, last third", values[:third], values[-third:]))
    shuffled = np.random.default_rng(0).permutation(len(secom))
    half = len(secom) // 2
    rows.append(gated("SECOM, shuffled halves", secom[shuffled[:half]], secom[shuffled[half:]]))
    remarks = [f"{wrong} numbers differ from the right ones, which were computed with numpy, scipy and pandas alone."]
    question = "What inspect says of three factory tables"
    if options.quick:  # a test: nothing is written
        print(common.markdown({"question": question, "device": "", "data": "", "rows": rows, "remarks": remarks}))
    else:
        common.report("factory_tables", question, rows, remarks, options)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
