"""``lightning-sloppy inspect``: one page, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from support.pages import Page

from lightning_sloppy.cli import main


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((150, 3)), columns=["heat [K]", "flow", "load"])
    frame["heat copy"] = frame["heat [K]"]
    frame["[red]dead"] = 3
    frame["code"] = -999.0
    frame.loc[40:, "code"] = rng.standard_normal(110)
    frame["failed"] = (rng.random(150) < 0.2).astype(int)
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    code = caught.value.code
    return (0 if code is None else code), captured.out, captured.err


def test_prints_one_page_and_writes_json_and_arrays(capsys, table, tmp_path) -> None:
    code, page, errors = run(
        capsys, table, "--target", "failed", "--missing", "-999", "--json", tmp_path / "r.json", "--threshold", "0.9"
    )
    assert code == 0, errors
    assert errors == ""
    flat = " ".join(page.split())
    assert "150 rows, 6 columns; 5 used, 1 constant, 0 set aside; target: failed" in flat
    assert "Constant (1): [red]dead" in flat
    assert "heat [K]" in page  # what looks like markup is printed as it is
    assert re.search(r"participation ratio +│ +[\d.]+ \[[\d.]+, [\d.]+\]", page)
    assert '1 column: ["heat copy"]' in flat
    for question in (
        "How many independent directions are there?",
        "Which columns can be dropped because others repeat them?",
        "Which sensors are dead?",
        "What do missing values do?",
        "Would more rows help?",
        "What cannot be said?",
    ):
        assert question in page
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["groups"] == [["heat [K]", "heat copy"]]
    assert found["missing_rate"] == pytest.approx(40 / (150 * 5))
    assert (tmp_path / "r.npz").is_file()


def test_the_path_may_follow_the_targets(capsys, table) -> None:
    code, page, _ = run(capsys, "--no-intervals", "--target", "failed", table)
    assert code == 0
    assert "target: failed" in page


def test_a_data_module_whose_arguments_have_no_types(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "own_data_module.py").write_text(
        "from lightning_sloppy.demo.data import DigitsDataModule\n\n\n"
        "class Own(DigitsDataModule):\n"
        "    def __init__(self, size):\n"
        "        super().__init__(batch_size=int(size))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, page, errors = run(capsys, "--data", "own_data_module.Own", "--data.size", "32", "--no-intervals")
    assert (code, errors) == (0, "")
    assert "64 columns" in page


def test_samples_of_a_data_module(capsys) -> None:
    code, page, errors = run(capsys, "--data", "DigitsDataModule", "--data.batch_size", "32", "--no-intervals")
    assert code == 0, errors
    assert "64 columns" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "There is no file nowhere.csv"),
        ([], "Give the PATH of a table"),
        (["{table}", "--data", "DigitsDataModule"], "not both"),
        (["{table}", "--target", "fialed"], "for instance, failed"),
        (["{table}", "--missing-method", "error", "--missing", "-999"], "missing='error' was asked for"),
        (["{table}", "--threshold", "3"], "threshold=3.0 is no absolute correlation"),
        (["{table}", "--json", "{folder}/nowhere/r.json"], "cannot be written"),
        (["{folder}/dead.csv"], "No column of"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, table, arguments, message) -> None:
    folder = table.parent
    (folder / "dead.csv").write_text("a,b\n" + "1,2\n" * 40)
    before = sorted(folder.rglob("*"))
    given = [word.format(table=table, folder=folder) for word in arguments]
    out = [] if "--json" in given else ["--json", folder / "r.json"]
    code, page, errors = run(capsys, *given, *out)
    assert code == 2
    assert page == ""
    assert message in errors
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert sorted(folder.rglob("*")) == before


def test_unknown_options_have_exit_code_2(capsys, table) -> None:
    assert run(capsys, table, "--nonsense")[0] == 2


def test_help_shows_the_options(capsys) -> None:
    code, page, _ = run(capsys, "--help")
    assert code == 0
    for option in ("PATH", "--target", "--json", "--missing", "--threshold", "--data CLASS_PATH"):
        assert option in page


@pytest.mark.parametrize("report", ["table.csv", "table.json"])
def test_a_table_is_never_overwritten(capsys, table, report) -> None:
    name = table if report == "table.csv" else table.with_suffix(".npz")
    if report == "table.json":
        np.savez(name, values=np.random.default_rng(0).standard_normal((50, 3)))
    before = name.read_bytes()
    code, _, errors = run(capsys, name, "--json", table.parent / report)
    assert code == 2
    assert "would overwrite" in errors
    assert name.read_bytes() == before


def test_a_folder_in_place_of_the_arrays_is_refused_before_anything_is_written(capsys, table, tmp_path) -> None:
    (tmp_path / "r.npz").mkdir()
    code, _, errors = run(capsys, table, "--json", tmp_path / "r.json")
    assert code == 2
    assert "cannot be written" in errors
    assert not (tmp_path / "r.json").exists()


def test_a_negative_seed_is_one_sentence(capsys, table) -> None:
    code, _, errors = run(capsys, table, "--seed", "-1")
    assert code == 2
    assert errors.strip().splitlines()[-1] == "error: seed=-1 is negative; pass 0 or more."


def test_html_is_written_beside_the_printed_page(capsys, table, tmp_path) -> None:
    code, page, errors = run(capsys, table, "--target", "failed", "--html", tmp_path / "r.html", "--no-intervals")
    assert code == 0, errors
    assert page.rstrip().endswith(f"Written: {tmp_path / 'r.html'}")
    found = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found.requests() == []
    assert "[red]dead" in found.text
    code, page, errors = run(
        capsys, table, "--json", tmp_path / "s.json", "--html", tmp_path / "s.html", "--no-intervals"
    )
    assert code == 0, errors
    assert {path.name for path in tmp_path.glob("s.*")} == {"s.json", "s.npz", "s.html"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "{table}"], "would overwrite"),
        (["--html", "{folder}/nowhere/r.html"], "cannot be written"),
        (["--html", "{folder}"], "cannot be written"),
        (["--json", "{folder}/r.json", "--html", "{folder}/r.json"], "would overwrite {folder}/r.json; choose another"),
        (["--json", "{folder}/r.json", "--html", "{folder}/r.npz"], "would overwrite {folder}/r.npz; choose another"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_table_is_read(capsys, table, options, message) -> None:
    folder = table.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, page, errors = run(capsys, table, *(word.format(table=table, folder=folder) for word in options))
    assert code == 2
    assert page == ""
    assert message.format(folder=folder) in errors
    assert errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
