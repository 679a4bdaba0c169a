"""The report of a table as one HTML page: answers first, then numbers, pictures, groups and columns to know of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_sloppy.errors import MissingExtraError
from lightning_sloppy.inspection.answers import listed
from lightning_sloppy.inspection.data_report import Answer, DataReport
from lightning_sloppy.reporting.data_pictures import data_pictures
from lightning_sloppy.reporting.data_words import (
    GROUP_HEADINGS,
    column_notes,
    group_rows,
    groups_heading,
    groups_legend,
    headings,
    numbering,
    numbers,
    origin_of_numbers,
    size,
)
from lightning_sloppy.reporting.web_page import PagePicture, as_page_picture, rendered

MOST_NAMES = 12
"""Names that an answer shows; a longer list can be unfolded."""


@dataclass(frozen=True)
class _Piece:
    """A part of an answer: text, or a long list of names with the text that is shown before it is unfolded."""

    text: str
    names: int = 0
    shown: str = ""


@dataclass(frozen=True)
class _ShownAnswer:
    question: str
    pieces: tuple[_Piece, ...]
    evidence: str


def data_html(report: DataReport) -> str:
    """The page of a table, complete in itself: it loads nothing from anywhere.

    Args:
        report: What :func:`~lightning_sloppy.inspect` found.

    Returns:
        HTML. All names are escaped.

    Example:
        >>> from lightning_sloppy import inspect
        >>> page = data_html(inspect({"a": range(50), "<b>": [i % 7 for i in range(50)]}, intervals=False))
        >>> page.startswith("<!doctype html>"), "<b>" in page
        (True, False)
    """
    pictures, without = _pictures(report)
    return rendered(
        "data.html",
        title=f"Data: {report.origin}",
        report=report,
        size=size(report),
        numbering=numbering(report),
        answers=[_folded(answer, _long_lists(report)) for answer in report.answers],
        headings=headings(report),
        numbers=list(numbers(report)),
        origin_of_numbers=origin_of_numbers(report),
        groups_heading=groups_heading(report),
        groups_legend=groups_legend(report),
        group_headings=GROUP_HEADINGS,
        group_rows=group_rows(report),
        notes=list(column_notes(report)),
        pictures=pictures,
        without_pictures=without,
    )


def _pictures(report: DataReport) -> tuple[list[PagePicture], str]:
    """The pictures, or why there are none."""
    try:
        drawn = data_pictures(report)
    except MissingExtraError as error:
        return [], str(error)
    return [as_page_picture(each.figure, each.description, caption=each.caption) for each in drawn], ""


def _long_lists(report: DataReport) -> list[Sequence[str]]:
    empty = [name for name, reason in report.set_aside.items() if reason.startswith(("no value", "hardly"))]
    lists: list[Sequence[str]] = [report.drop, report.constant, empty, list(report.nearly_constant)]
    return sorted((names for names in lists if len(names) > MOST_NAMES), key=len, reverse=True)


def _folded(answer: Answer, lists: Sequence[Sequence[str]]) -> _ShownAnswer:
    """The answer with long lists of names apart, to be unfolded."""
    pieces = [_Piece(answer.answer)]
    for names in lists:
        pieces = [part for piece in pieces for part in _without(piece, names)]
    return _ShownAnswer(answer.question, tuple(pieces), answer.evidence)


def _without(piece: _Piece, names: Sequence[str]) -> Iterator[_Piece]:
    text = listed(names)
    if piece.names or text not in piece.text:
        yield piece
        return
    before, after = piece.text.split(text, 1)
    some = ", ".join(names[:3])
    yield _Piece(before)
    yield _Piece(text, len(names), f"{some} and {len(names) - 3:,} more")
    yield _Piece(after)
