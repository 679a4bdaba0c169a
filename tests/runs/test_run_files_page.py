"""docs/run_files.md: its examples run on the file of a real fit, and the keys that it names are there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from support.tiny import Classifier, blobs, loader, trainer

from lightning_sloppy import HessianSpectrum, Measurement, SloppyMonitor
from lightning_sloppy.runs.frame import COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "run_files.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("page")
    watcher = SloppyMonitor(hessian=HessianSpectrum(k=3, num_samples=24), strict=True)
    logger = CSVLogger(folder, name="logs", version=0)
    trainer(folder, callbacks=[watcher], max_epochs=2, logger=logger).fit(Classifier(), loader(blobs(64)))
    return folder, watcher


def fences(language: str) -> list[str]:
    found = [match[2] for match in FENCE.finditer(PAGE) if match[1] == language]
    assert found
    return found


def test_the_python_examples_run(fitted, monkeypatch):
    folder, watcher = fitted
    monkeypatch.chdir(folder)
    names: dict = {}
    for text in fences("python"):
        exec(text, names)
    assert names["run"].facts.end == "ended"
    assert len(names["dimension"]) == len(watcher.measurements["jacobian"]) == 3
    assert len(names["measured"]) == sum(map(len, watcher.measurements.values()))


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_jq_examples_print_the_values(fitted):
    folder, watcher = fitted
    (text,) = fences("bash")
    done = subprocess.run(["sh", "-e", "-c", text], cwd=folder, capture_output=True, text=True, check=True)
    *rows, end = done.stdout.splitlines()
    expected = [(m.step, m.estimates["effective_dimension"].value) for m in watcher.measurements["jacobian"]]
    assert [tuple(map(float, row.split(","))) for row in rows] == expected
    assert end == '"ended"'


def test_the_keys_and_columns_are_those_of_the_page(fitted):
    folder, _ = fitted
    lines = (folder / "logs" / "version_0" / "sloppy_run.jsonl").read_text().splitlines()
    events = PAGE[PAGE.index("## Events and keys") :].split("\n\n")[1]
    keys = {row.split("`")[1]: set(re.findall(r"`(\w+)`", row)) for row in events.splitlines()[2:]}
    for event in map(json.loads, lines):
        assert set(event) - {"event"} <= keys[event["event"]]
    assert {field.name for field in dataclasses.fields(Measurement)} <= keys["measurement"]
    table = PAGE[PAGE.index("| column |") :].split("\n\n")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == list(COLUMNS)
