"""Three real factory tables, where SLOPPY_FACTORY_TABLES names a folder that holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("SLOPPY_FACTORY_TABLES")


@pytest.mark.skipif(FOLDER is None, reason="SLOPPY_FACTORY_TABLES names no folder")
def test_every_right_answer_is_found() -> None:
    """Groups, eigenvalues, negative eigenvalues, decades, the Gaussian model: see benchmarks/factory_tables.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "factory_tables.py"), "--quick", "--data", str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| SECOM | participation ratio | 76.96 | 77 |  |" in done.stdout
