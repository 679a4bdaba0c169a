"""The page of what is supported names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in (ROOT / "docs" / "limitations.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        found = re.search(r"`(tests/\S+\.py)::(test_\w+)`", row)
        assert found is not None, row
        assert f"def {found[2]}(" in (ROOT / found[1]).read_text(), row
