"""Names and cells of real tables that Python takes for something else."""

from __future__ import annotations

from lightning_sloppy.inputs.column_groups import natural
from lightning_sloppy.inputs.column_kinds import _number


def test_a_raised_two_is_no_number_to_sort_by():
    assert sorted(["x10", "x9", "x1\u00b2"], key=natural) == ["x1\u00b2", "x9", "x10"]


def test_an_identifier_with_an_underscore_is_no_number():
    assert _number("0001_01") is None
    assert _number("1e3") == 1000.0
