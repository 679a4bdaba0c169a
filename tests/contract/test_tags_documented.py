"""No curve without an explanation: the tables of the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_sloppy.reporting.tags import GROUPS, HISTOGRAMS, QUANTITIES, SUFFIXES, tag

PAGE = Path(__file__).parents[2] / "docs" / "reading_the_curves.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<text>.+) \|$", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    return [(m["name"], m["text"].replace(r"\|", "|")) for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))]


def test_the_tables_of_the_page_are_those_of_the_code():
    in_code = dict(SUFFIXES)
    for group in GROUPS:
        explained = {**QUANTITIES[group], **HISTOGRAMS.get(group, {})}
        in_code.update({tag(group, quantity): text for quantity, text in explained.items()})
    assert dict(documented()) == in_code


def test_no_tag_is_explained_twice():
    names = [name for name, _ in documented()]
    assert len(names) == len(set(names))


def test_tags_in_the_running_text_exist():
    named = set(re.findall(r"`(sloppy_[a-z]+/[a-z0-9_]+)`", PAGE.read_text(encoding="utf-8")))
    assert named <= {name for name, _ in documented()}
