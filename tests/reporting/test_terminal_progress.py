"""The bar on a terminal for long work outside a fit."""

from __future__ import annotations

import importlib.util
import io
import sys
import threading

import pytest
from rich.console import Console
from support.screen import Screen

from lightning_sloppy.display import untold
from lightning_sloppy.reporting import terminal_progress
from lightning_sloppy.reporting.terminal_progress import shown_progress, told


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(terminal_progress, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(terminal_progress, "REFRESH_SECONDS", 0.0)


def terminal(**options) -> Console:
    return Console(file=io.StringIO(), width=100, **{"force_terminal": True, "force_interactive": True, **options})


def screen_of(console: Console) -> Screen:
    screen = Screen()
    screen.feed(console.file.getvalue().replace("\n", "\r\n"))  # as a terminal does
    return screen


@pytest.mark.usefixtures("_impatient")
def test_a_bar_is_drawn_by_the_thread_that_works_and_is_gone_at_the_end() -> None:
    console, threads = terminal(), threading.active_count()
    with shown_progress(console) as tell:
        tell("reading", 1, 4)
        tell("reading", 3, 4)
        assert threading.active_count() == threads
        tell("counting", 7, 0)
    screen = screen_of(console)
    assert any("reading" in picture and "3 of 4" in picture for picture in screen.pictures)
    assert any("counting" in picture and " 7" in picture for picture in screen.pictures)
    assert not screen.text.strip()


@pytest.mark.usefixtures("_impatient")
def test_a_stage_that_may_draw_itself_has_the_screen_alone() -> None:
    console, streams = terminal(), (sys.stdout, sys.stderr)
    with shown_progress(console, apart=["judging"]) as tell:
        tell("reading", 1, 4)
        assert sys.stderr is not streams[1]  # what is printed beside a bar goes above it
        tell("judging", 1, 9)
        assert (sys.stdout, sys.stderr) == streams
        drawn = len(console.file.getvalue())
        tell("judging", 2, 9)
        assert "\x1b[2K" not in console.file.getvalue()[drawn:]
        tell("writing", 1, 2)
    screen = screen_of(console)
    assert [line for line in screen.text.splitlines() if line] == [
        "judging: 1 of at most 9 done",
        "judging: 2 of at most 9 done",
    ]
    assert any("writing" in picture and "judging: 2" in picture for picture in screen.pictures)
    silent = terminal()
    with shown_progress(silent, apart=["judging"], lines=False) as tell:
        tell("judging", 1, 9)
    assert not silent.file.getvalue()


def test_short_work_and_files_show_nothing(monkeypatch) -> None:
    short, file = terminal(), terminal(force_terminal=False, force_interactive=False)
    with shown_progress(short, apart=["judging"]) as tell:
        tell("reading", 1, 4)
        tell("judging", 1, 4)
    monkeypatch.setattr(terminal_progress, "PATIENCE_SECONDS", -1.0)
    with shown_progress(file, apart=["judging"]) as tell:
        tell("reading", 1, 4)
        tell("judging", 1, 4)
    assert not short.file.getvalue()
    assert not file.file.getvalue()


@pytest.mark.usefixtures("_impatient")
def test_the_bar_is_gone_after_an_error() -> None:
    console, streams = terminal(), (sys.stdout, sys.stderr)

    def work() -> None:
        with shown_progress(console) as tell:
            tell("reading", 1, 4)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert "1 of 4" in console.file.getvalue()
    assert (sys.stdout, sys.stderr) == streams
    assert not screen_of(console).text.strip()


def test_the_function_of_the_user_is_told_instead(monkeypatch) -> None:
    def own(stage: str, done: int, total: int) -> None: ...

    with told(own) as tell:
        assert tell is own
    find = importlib.util.find_spec
    monkeypatch.setattr(terminal_progress, "find_spec", lambda name: None if name == "rich" else find(name))
    with told(None) as tell:  # the extra that draws is not installed
        assert tell is untold
