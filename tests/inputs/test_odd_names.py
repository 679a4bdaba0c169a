"""Names and cells of real tables that Python takes for something else."""

from __future__ import annotations

import numpy as np

from lightning_sloppy.inputs.column_groups import natural
from lightning_sloppy.inputs.column_kinds import ColumnKind, _number, look, one_hot


def test_a_raised_two_is_no_number_to_sort_by():
    assert sorted(["x10", "x9", "x1\u00b2"], key=natural) == ["x1\u00b2", "x9", "x10"]


def test_an_identifier_with_an_underscore_is_no_number():
    assert _number("0001_01") is None
    assert _number("1e3") == 1000.0


def test_close_numbers_are_different_categories_and_the_negative_zero_is_zero() -> None:
    numbers = np.array([1234567.0, 1234568.0, 0.0, -0.0])
    kind = ColumnKind("a")
    look(kind, numbers, None)
    found = dict(one_hot(kind, numbers, None))
    assert {name: values.tolist() for name, values in found.items()} == {
        "a=0": [0, 0, 1, 1],
        "a=1234567": [1, 0, 0, 0],
        "a=1234568": [0, 1, 0, 0],
    }
