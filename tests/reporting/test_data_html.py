"""The page of a table: complete in itself, the numbers of the report, names as text."""

from __future__ import annotations

import html
import sys

import numpy as np
import pytest
from support.pages import Page

from lightning_sloppy import inspect
from lightning_sloppy.inspection.answers import interval, listed, number
from lightning_sloppy.reporting.data_html import data_html
from lightning_sloppy.reporting.web_page import write_page

EVIL = "<script>alert(1)</script>"
QUOTED = 'a "quoted" & <b>bold</b> name'


def table(rows: int = 120) -> dict[str, object]:
    rng = np.random.default_rng(0)
    columns: dict[str, object] = {f"x{index}": rng.standard_normal(rows) for index in range(4)}
    columns[EVIL] = rng.standard_normal(rows)
    columns[QUOTED] = columns[EVIL]
    columns |= {f"dead {index}": np.full(rows, float(index)) for index in range(30)}
    gaps = rng.standard_normal(rows)
    gaps[::5] = np.nan
    columns["gaps"] = gaps
    columns["when"] = [f"2024-01-{1 + index % 28:02d}" for index in range(rows)]
    columns["failed"] = np.arange(rows) % 3 == 0
    return columns


@pytest.fixture(scope="module")
def report():
    return inspect(table(), target="failed")


@pytest.fixture(scope="module")
def text(report):
    return data_html(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_loaded_from_anywhere(page, text) -> None:
    assert page.requests() == []
    assert "script" not in page.tags()
    assert "://" not in text
    policy = next(attributes for tag, attributes in page.seen if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_names_are_text_and_never_markup(page, text) -> None:
    assert EVIL not in text
    assert EVIL in page.text
    assert QUOTED in page.text
    assert "b" not in page.tags()


def test_answers_come_first_and_are_all_there(report, page) -> None:
    headings = page.of("h2")
    assert headings[0] == "Answers"
    assert page.of("h3")[: len(report.answers)] == [answer.question for answer in report.answers]
    for answer in report.answers:
        assert f"Evidence: {answer.evidence}" in page.text
        if listed(report.constant) not in answer.answer:
            assert answer.answer in page.text


def test_the_numbers_are_those_of_the_report(report, page) -> None:
    whole, fewer = report.spectrum, report.deduplicated
    assert page.cells("participation ratio")[1:3] == [
        interval(whole.participation_ratio),
        interval(fewer.participation_ratio),
    ]
    assert page.cells("entropy rank")[1] == interval(whole.entropy_rank)
    assert page.cells("knee after (spread)")[1] == interval(whole.knee)
    assert page.cells("the noise edge")[1] == number(whole.noise_edge)
    low, high = whole.above_noise_edge_interval
    assert page.cells("eigenvalues above the noise edge")[1] == f"{whole.above_noise_edge} [{low}, {high}]"
    assert f"{report.rows:,} rows" in page.text


def test_long_lists_are_folded_and_complete(report, page) -> None:
    folded = [part for where, part in page.texts if "details" in where and "code" in where]
    assert folded == [listed(report.constant)]
    assert "30 columns never change: dead 0, dead 1, dead 2 and 27 more." in page.text
    assert "dead 0, dead 1, dead 2, and 27 more; all are in the answer on dead sensors" in page.text


def test_groups_and_columns_to_know_of(report, page) -> None:
    group = report.groups[0]
    assert page.cells(group.representative)[1:] == [group.names[1], f"{group.lowest:.3f}", "120 rows"]
    for heading in ("Constant (30)", "Exact copies (1)", "Set aside (1)"):
        assert heading in page.of("h3")


def test_pictures_are_inside_the_page_or_it_says_what_they_need(report, page, monkeypatch) -> None:
    images = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(images) == 4  # spectrum, variance, correlations, missing values
    assert all(each["src"].startswith("data:image/png;base64,iVBOR") and each["alt"] for each in images)
    assert len(page.of("figcaption")) == 4
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    without = Page(data_html(report))
    assert "img" not in without.tags()
    assert "lightning-sloppy[plot]" in without.text
    assert report.answers[0].answer in without.text


def test_without_intervals_repeats_or_gaps() -> None:
    rng = np.random.default_rng(1)
    page = Page(data_html(inspect(rng.standard_normal((60, 3)), intervals=False)))
    assert len(page.cells("participation ratio")) == 3
    assert "No intervals" in page.text
    assert "Columns to know of" not in page.text


def test_a_page_is_written_completely_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "page.html"
    write_page("first", path)
    write_page("caf\u00e9 \udcff", path)
    assert html.unescape(path.read_text(encoding="utf-8")).startswith("caf\u00e9 ")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match=r"nowhere"):
        write_page("second", tmp_path / "nowhere" / "page.html")
