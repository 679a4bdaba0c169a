"""The two benchmarks of the headline run, on a small piece."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def said(name: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    return done.stdout


def test_label_noise_raises_the_headline_and_width_hardly_changes_it() -> None:
    rows = re.findall(r"width (\d+), noise ([\d.]+): Jacobian ([\d.]+)", said("dimension"))
    found = {(int(width), float(noise)): float(value) for width, noise, value in rows}
    assert found[50, 1.0] > 1.1 * found[50, 0.0]
    assert 1 / 1.25 < found[200, 0.0] / found[50, 0.0] < 1.25


def test_every_rule_has_a_row() -> None:
    rows = said("early_stopping").splitlines()[2:]
    assert len(rows) == 14
    assert all(row.count("|") == 6 for row in rows)
    assert rows[0] == "| full run | 1.00 | 0.0000 | 0.000 | 0 of 1 |"
