"""``lightning-sloppy report``: reports of runs from their files, also of one that was killed; exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support import killed
from support.pages import Page

from lightning_sloppy import load_run
from lightning_sloppy.cli import main
from lightning_sloppy.reporting.card import card


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about the folder of the checkpoints
        killed.fit(folder, logged=True)
    return folder / "logs" / "run"


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the run without its report."""
    copy = tmp_path / "logs" / "first"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    return copy


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_a_run_is_reported_in_its_folder_with_the_numbers_of_its_file(capsys, folder) -> None:
    code, said, errors = run(capsys, folder)
    assert (code, said, errors) == (0, f"Written: {folder / 'report.html'}\n", "")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    record = load_run(folder)
    for heading, text in card(record).lines:
        assert f"{heading}: {text}" in page.text
    latest = record.instruments["fisher"].latest.estimates["trace"]
    assert page.values_of("sloppy_fisher/trace")[0] == latest.value
    assert str(folder) in page.text  # where it is now, not where it was made
    assert "Training ended after 4 epochs" in page.text


def test_it_is_the_page_that_the_fit_wrote(finished, folder, capsys) -> None:
    run(capsys, finished, "--out", folder / "again.html")
    assert (folder / "again.html").read_text() == (finished / "report.html").read_text()


def test_several_runs_go_into_one_page_in_the_working_folder(capsys, folder, monkeypatch) -> None:
    second = folder.with_name("second")
    shutil.copytree(folder, second)
    (second / "hparams.yaml").write_text("width: 9\n")
    monkeypatch.chdir(folder.parent)
    code, said, errors = run(capsys, "first", "second")
    assert (code, said, errors) == (0, "Written: runs_report.html\n", "")
    page = Page((folder.parent / "runs_report.html").read_text(encoding="utf-8"))
    assert page.cells("width") == ["width", "\N{EN DASH}", "9"]
    assert page.of("h2")[0] == "Five answers"
    assert len([1 for tag, _ in page.seen if tag == "img"]) == 3
    assert page.requests() == []


@pytest.mark.slow
def test_a_killed_run_has_a_report_and_it_says_that_the_run_did_not_end(capsys, tmp_path) -> None:
    command = [sys.executable, "-m", "support.killed", str(tmp_path / "any"), "9", "logged"]
    assert subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False).returncode == -9
    code, said, errors = run(capsys, tmp_path / "logs")
    assert (code, errors) == (0, "")
    assert not list(tmp_path.rglob("*.partial"))
    page = Page(Path(said.removeprefix("Written: ").strip()).read_text(encoding="utf-8"))
    assert (
        "This run did not end: it is still running or was killed, and its last measurement is at step 7." in page.text
    )
    assert page.values_of("sloppy_jacobian/effective_dimension")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/nowhere"], "nowhere does not exist"),
        (["{empty}"], "has no sloppy_run.jsonl"),
        (["{folder}", "{folder}/../first"], "is given more than once"),
        (["{folder}", "--out", "{folder}/nowhere/a.html"], "cannot be written to"),
        (["{folder}", "--out", "{folder}"], "cannot be written to"),
        (["{folder}", "--out", "{folder}/hparams.yaml"], "exists and is no page of this package"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, folder, tmp_path, arguments, message) -> None:
    (tmp_path / "empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, said, errors = run(capsys, *(word.format(folder=folder, empty=tmp_path / "empty") for word in arguments))
    assert code == 2
    assert said == ""
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_arguments_that_cannot_be_parsed(capsys, folder) -> None:
    code, _, errors = run(capsys, folder, "--otu", "a.html")
    assert code == 2
    assert "--out" in errors
    assert errors.count("\n") <= 5
    assert run(capsys)[0] == 2


def test_a_report_is_replaced(capsys, folder) -> None:
    (folder / "report.html").write_text("<p>mine</p>")
    assert run(capsys, folder)[0] == 2
    (folder / "report.html").unlink()
    assert run(capsys, folder)[0] == 0
    first = (folder / "report.html").stat().st_mtime_ns
    assert run(capsys, folder)[0] == 0
    assert (folder / "report.html").stat().st_mtime_ns > first


@pytest.mark.parametrize(("verb", "said"), [("report", "for all of these runs"), ("inspect", "select columns first")])
def test_too_little_memory_is_one_sentence_and_an_error_with_debug(capsys, monkeypatch, folder, verb, said) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lightning_sloppy.runs.run_file.load_run", full)
    monkeypatch.setattr("lightning_sloppy.inspection.inspecting.inspect", full)
    with pytest.raises(SystemExit) as caught:
        main([verb, str(folder)])
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: The memory does not suffice for ")
    assert said in errors
    assert errors.count("\n") == 1
    with pytest.raises(MemoryError):
        main([verb, str(folder), "--debug"])


def test_help_shows_the_arguments(capsys) -> None:
    code, said, _ = run(capsys, "--help")
    assert code == 0
    assert "RUN_DIR" in said
    assert "--out FILE" in said


@pytest.mark.slow
def test_reading_and_reporting_need_no_lightning(folder) -> None:
    check = (
        "import sys; from lightning_sloppy.report_command import run_report; "
        f"print(run_report([{str(folder)!r}]), 'lightning' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.stdout.splitlines() == [f"Written: {folder / 'report.html'}", "0 False"], found.stderr
    assert (folder / "report.html").exists()
