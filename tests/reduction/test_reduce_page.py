"""docs/reduce.md: its examples run in their order and give what it says."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reduce.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    fences = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(fences) == 3
    for text in fences:
        exec(text, names)
    assert names["reducer"].kept_ == ("pressure", "flow")
    assert list(names["whole"].columns) == list(names["train"].columns)
    assert names["net"].reduction.names == tuple(names["train"].columns)
    torch.testing.assert_close(names["net"].reduction(names["rows"]), names["layer"](names["rows"]))


def test_its_numbers_are_those_of_the_saved_results() -> None:
    runs = json.loads((ROOT / "benchmarks" / "results" / "reduction.json").read_text(encoding="utf-8"))
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    heads = [place for place, row in enumerate(rows) if row[:2] in (["data", "all"], ["data", "64"])]
    assert len(heads) == 2
    cells = 0
    for head in heads:
        for row in rows[head + 2 : head + 10]:
            seeds = [int(key.rsplit("|", 1)[1]) for key in runs if key.startswith(f"{row[0]}|all|")]
            for name, text in zip(rows[head][1:], row[1:], strict=True):
                way = name if head == heads[0] else f"width = {name}"
                found = [runs.get(f"{row[0]}|{'all' if way == 'width = 64' else way}|{seed}") for seed in seeds]
                whole = [runs[f"{row[0]}|all|{seed}"]["test"] for seed in seeds]
                what = "inputs" if head == heads[0] else "width"
                change = [100 * (cell["test"] - other) for cell, other in zip(found, whole, strict=True)]
                expected = (
                    f"{100 * statistics.mean(whole):.1f}"
                    if name in ("all", "64")
                    else f"{statistics.mean(change):+.1f} ± {statistics.stdev(change) / len(seeds) ** 0.5:.1f}"
                )
                assert text == f"{statistics.mean(cell[what] for cell in found):.0f}: {expected}", (row[0], name)
                cells += 1
    assert cells == 8 * 6 + 8 * 4
