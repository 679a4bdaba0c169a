"""Run every benchmark and write RESULTS.md: python benchmarks/run_all.py --data FOLDER [--device cuda] [--quick]."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import common
import compression
import dimension
import early_stopping
import gpu
import reduction
import spectral_errors

HERE = Path(__file__).parent
NAMES = (
    "top_pairs",
    "one_product",
    "fisher_spectrum",
    "effective_dimension",
    "memory",
    "growth",
    "soak",
    "callback_overhead",
    "overhead_budget",
    "two_processes",
    "live_bound",
    "certificates",
    "dimension",
    "early_stopping",
    "compression",
    "factory_tables",
    "interval_coverage",
    "drift_calibration",
    "input_speed",
    "reduction",
    "spectral_errors",
)


def main() -> None:
    """Run each benchmark in a separate process, then write the tables of all saved results."""
    for name in NAMES:
        if "--tables" not in sys.argv:
            print(f"--- {name}", flush=True)
            subprocess.run([sys.executable, str(HERE / f"{name}.py"), *sys.argv[1:]], check=False)
    lines = [
        "# Benchmark results",
        "",
        "`python benchmarks/run_all.py --data FOLDER` runs the benchmarks and writes this page. With `--tables` it "
        "only writes the page from the saved results. Both sides of a ratio run alternately in one process, and "
        "times are medians. Absolute times depend on the machine and on its load, so compare ratios. The results "
        "missed some targets; the remarks say which.",
        "",
        "Names of networks: 784-600-600-10 (837,610 parameters) and similar names are the widths of fully connected "
        "networks. p: number of parameters; N: number of samples.",
        "",
    ]
    for device in ("cpu", "cuda"):
        records = [common.RESULTS / f"{name}_{device}.json" for name in NAMES]
        for record in filter(Path.exists, records):
            lines.append(common.markdown(json.loads(record.read_text())))
            if record.stem == f"growth_{device}":
                lines += [f"![cost against p, N and k](results/growth_{device}.png)", ""]
    lines += gpu.sections()  # from python benchmarks/gpu.py, on a machine with a GPU
    lines += [dimension.section(), early_stopping.section(), reduction.section(), spectral_errors.section()]
    lines += [compression.section()]
    found = json.loads(next(common.RESULTS.glob("top_pairs_*.json")).read_text())["versions"]
    lines += ["Versions: " + ", ".join(f"{name} {number}" for name, number in found.items()) + ".", ""]
    (HERE / "RESULTS.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
