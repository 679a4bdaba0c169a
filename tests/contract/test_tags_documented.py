"""No curve without an explanation: the tables of the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.instruments import DECLARED, of_the_package

from lightning_sloppy.reporting.tables import filled, tables

PAGE = Path(__file__).parents[2] / "docs" / "reading_the_curves.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<text>.+) \|$", re.MULTILINE)


def test_the_tables_of_the_page_are_those_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, tables(list(DECLARED.values()))) == page, "run python docs/update_tables.py"


@pytest.mark.parametrize("kind", of_the_package())
def test_every_instrument_has_its_table(kind):
    assert f"<!-- table: {kind().name} -->" in PAGE.read_text(encoding="utf-8")


def test_no_tag_is_explained_twice():
    names = [match["name"] for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
    assert len(names) == len(set(names))


def test_tags_in_the_running_text_exist():
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(sloppy_[a-z]+/[a-z0-9_]+)`", page))
    assert named <= {match["name"] for match in ROW.finditer(page)}
