"""``lightning-sloppy inspect NEW --against OLD.json``: the page, the exit codes, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lightning_sloppy import ConfigurationError, drift_report
from lightning_sloppy.cli import main


def table(path: Path, seed: int, **changes: Any) -> Path:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.standard_normal((300, 3)), columns=["heat [K]", "flow", "load"])
    frame["flow"] += frame["heat [K]"]
    frame["code"] = np.where(rng.random(300) < 0.1, -999.0, rng.standard_normal(300))
    frame["failed"] = rng.integers(0, 2, 300)
    frame.assign(**changes).to_csv(path, index=False)
    return path


@pytest.fixture
def old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = table(tmp_path / "old.csv", 0)
    arguments = ("--target", "failed", "--missing", "-999", "--no-intervals", "--json", tmp_path / "old.json")
    assert run(capsys, file, *arguments)[0] == 0
    return tmp_path / "old.json"


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    code = caught.value.code
    return (0 if code is None else int(code)), captured.out, captured.err


def test_same_is_zero_and_takes_codes_and_targets_from_the_reference(capsys: Any, old: Path, tmp_path: Path) -> None:
    code, page, errors = run(capsys, table(tmp_path / "new.csv", 1), "--against", old)
    assert (code, errors) == (0, "")
    assert page.startswith(f"No drift from {tmp_path}")
    assert "4 columns compared" in " ".join(page.split())


def test_drift_is_one_and_named_first(capsys: Any, old: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    new = table(tmp_path / "new.csv", 1, flow=rng.standard_normal(300), **{"[red]extra": 1.0})
    code, page, errors = run(capsys, new, "--against", old, "--json", tmp_path / "new.json", "--no-intervals")
    assert (code, errors) == (1, "")
    flat = " ".join(page.split())
    assert flat.startswith(f"Drift from {tmp_path / 'old.csv'} to {new}: [red]extra (new), ")
    assert flat.count("Drift from") == 1
    assert "New (1): [red]extra" in flat  # what looks like markup is printed as it is
    assert (
        flat.index("Columns responsible")
        < flat.index("Pairs responsible")
        < flat.index("Numbers and their normal ranges")
    )
    found = json.loads((tmp_path / "new.json").read_text())
    assert found["comparison"]["answer"] == "drift"
    assert {"flow", "heat [K]"} <= set(found["comparison"]["responsible"])
    assert found["rows"] == 300
    # The file is a report like any other: later rows can be compared with it.
    assert run(capsys, new, "--against", tmp_path / "new.json")[0] == 0


def test_a_column_in_another_unit_is_shown_as_it_is(capsys: Any, old: Path, tmp_path: Path) -> None:
    grams = 1_000 * np.random.default_rng(5).standard_normal(300)
    arguments = ("--against", old, "--json", tmp_path / "new.json", "--no-intervals")
    code, page, _ = run(capsys, table(tmp_path / "new.csv", 1, load=grams), *arguments)
    assert code == 1
    found = json.loads((tmp_path / "new.json").read_text())["comparison"]
    (change,) = [each for each in found["columns"] if (each["name"], each["what"]) == ("load", "deviation")]
    assert change["after"] == pytest.approx(grams.std(), rel=1e-6)  # 5, were it of values cut off
    flat = " ".join(page.split())
    ratio = float(f"{change['after'] / change['before']:.2g}")
    assert f"Both became about {ratio:,.0f} times as large: is it another unit, or another quantity?" in flat
    assert "of the values of load are outside -" in flat


def test_a_reader_sees_which_values_are_normal(capsys: Any, old: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    new = table(tmp_path / "new.csv", 1, flow=rng.standard_normal(300), load=rng.standard_normal(300) - 2)
    code, page, _ = run(capsys, new, "--against", old, "--json", tmp_path / "new.json", "--no-intervals")
    assert code == 1
    found = json.loads((tmp_path / "new.json").read_text())["comparison"]
    kinds = set()
    for each in found["statistics"]:
        low, high = each["normal"]
        assert (low <= each["value"] <= high) != each["drift"], each
        assert each["limit"] in (low, high)
        if each["name"] in ("mean", "deviation", "participation_ratio"):
            neutral = 0 if each["name"] == "mean" else 1
            assert low < neutral < high
        kinds.add((each["name"], each["drift"]))
    assert {("mean", True), ("one_pair", True)} <= kinds
    flat = " ".join(page.split())
    (shift,) = [each for each in found["statistics"] if each["name"] == "mean"]
    assert shift["value"] < shift["normal"][0] < 0
    assert f"{shift['value']:.4g} │ {shift['normal'][0]:.4g} to {shift['normal'][1]:.4g}" in flat
    # Without drift all numbers are in their ranges.
    same = drift_report(table(tmp_path / "same.csv", 1), old).statistics
    assert len(same) > 5
    assert all(each.normal[0] <= each.value <= each.normal[1] for each in same)
    # Both columns of the pair are named with their own correlation, before and after.
    assert "│ flow │ correlation with heat [K] │" in flat
    assert "│ heat [K] │ correlation with flow │" in flat


def test_lost_new_and_constant_columns_are_explained(capsys: Any, old: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new.csv", 1, load=-3.5)
    pd.read_csv(new).rename(columns={"flow": "feed"}).to_csv(new, index=False)
    code, page, _ = run(capsys, new, "--against", old)
    assert code == 1
    flat = " ".join(page.split())
    assert ": flow (lost), feed (new), load (constant now)." in flat
    assert "Constant now (1): load (always -3.5)" in flat
    assert "A column that was renamed is lost and new: give it its name back to compare it." in flat


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--alpha", "0.7"], "error: alpha=0.7 is no level; pass a number above 0, at most 0.5."),
        (["--alpha", "nan"], "error: alpha=nan is no level"),
        (["--html", "{folder}/new.html"], "error: --html writes the page of one table; leave out --html or --against."),
        (["--json", "{folder}/old.json"], "would overwrite {folder}/old.json; choose another name"),
        (["--json", "{folder}/none/new.json"], "cannot be written to {folder}/none/new.json"),
        (["--target", "nothing"], "error: The target 'nothing' is no column"),
    ],
)
def test_mistakes_are_one_sentence(capsys: Any, old: Path, tmp_path: Path, more: list[str], said: str) -> None:
    new = table(tmp_path / "new.csv", 1)
    arguments = [word.format(folder=tmp_path) for word in more]
    code, page, errors = run(capsys, new, "--against", old, *arguments)
    assert (code, page) == (2, "")
    assert said.format(folder=tmp_path) in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "new.json").exists()


def test_a_file_without_names_is_told_how_to_get_them(capsys: Any, old: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new.csv", 1)
    pd.read_csv(new).to_csv(new, index=False, header=False)
    code, page, errors = run(capsys, new, "--against", old)
    assert (code, page) == (2, "")
    assert "its columns have no names but those of the reference have, such as 'heat [K]'" in errors
    assert "or pass --header (header=True) if it has one" in errors


@pytest.mark.parametrize("against", [None, 3, ["old.json"]])
def test_what_is_no_report_is_refused_in_one_sentence(against: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"against is a .*; pass the path of the JSON"):
        drift_report(np.zeros((30, 2)), against)


def test_what_cannot_be_compared_is_two(capsys: Any, old: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    pd.DataFrame({"x": np.arange(50.0), "y": np.arange(50.0) ** 2}).to_csv(other, index=False)
    code, page, errors = run(capsys, other, "--against", old)
    assert (code, page) == (2, "")
    assert "cannot be compared with" in errors
    old.with_suffix(".npz").unlink()
    code, page, errors = run(capsys, table(tmp_path / "new.csv", 1), "--against", old)
    assert (code, page) == (2, "")
    assert "put it into the folder of the report, or write it again with lightning-sloppy inspect" in errors
