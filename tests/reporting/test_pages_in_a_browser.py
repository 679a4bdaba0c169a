"""The pages as Chromium shows them: no request, nothing that sticks out on a phone, few sheets of paper."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support import killed
from support.browser import chromium, needs_chromium, width_of_content
from support.pages import Page

from lightning_sloppy import inspect, load_run
from lightning_sloppy.reporting.card import card
from lightning_sloppy.reporting.data_html import data_html
from lightning_sloppy.reporting.run_html import run_html

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]

LONG = "a_very_long_name_of_a_column_without_any_space_in_it_" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One run, two runs compared, and a table with long names."""
    place = tmp_path_factory.mktemp("pages")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about the folder of the checkpoints
        killed.fit(place, logged=True)
    run = load_run(place)
    (place / "one.html").write_text(run_html(run), encoding="utf-8")
    (place / "two.html").write_text(run_html([run, run], names=["a", "b"]), encoding="utf-8")
    rng = np.random.default_rng(0)
    table = {f"{LONG}{index}": rng.standard_normal(60) for index in range(5)} | {LONG: np.zeros(60)}
    table["copy"] = table[f"{LONG}0"]
    (place / "data.html").write_text(data_html(inspect(table, intervals=False)), encoding="utf-8")
    return place


@pytest.fixture
def served(folder) -> Iterator[tuple[str, list[str]]]:
    """The folder on loopback, and the paths that were asked for."""
    asked: list[str] = []

    class Notes(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Notes, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_report_is_shown_and_asks_for_nothing_else(folder, served) -> None:
    address, asked = served
    page = Page(chromium(f"{address}/one.html", "--dump-dom"))
    assert asked == ["/one.html"]
    for heading, said in card(load_run(folder)).lines:
        assert f"{heading}: {said}" in page.text


@pytest.mark.parametrize("name", ["one", "two", "data"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out(folder, tmp_path, name, width) -> None:
    assert width_of_content(folder / f"{name}.html", width, tmp_path) <= width


@pytest.mark.parametrize("name", ["one", "two", "data"])
def test_it_prints_on_few_sheets(folder, tmp_path, name) -> None:
    printed = tmp_path / "page.pdf"
    chromium((folder / f"{name}.html").as_uri(), "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert 1 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 10
