"""docs/spectral_errors.md: its examples run in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "spectral_errors.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers.*")
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    namespace: dict[str, object] = {}
    for text in examples:
        exec(compile(text, "spectral_errors.md", "exec"), namespace)
    report, metric = namespace["report"], namespace["metric"].report()
    assert (report.overall.count, metric.overall.count) == (359, 200)
    assert 0 < report.overall.value < 0.9
    assert metric.of("tail").difference.low > 0  # wrong where the two copies of the column differ
    assert "Rate(value=" in capsys.readouterr().out
