"""docs/reduce.md: its examples run in their order and give what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "reduce.md").read_text(encoding="utf-8")


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
