"""Names and cells of real tables that Python takes for something else."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sloppy import ConfigurationError, inspect
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


def test_a_line_of_numbers_is_a_row_unless_it_is_said_to_be_names(tmp_path):
    path = tmp_path / "years.csv"
    path.write_text("2019,2020\n" + "".join(f"{i},{i * i % 7}\n" for i in range(40)))
    as_row = inspect(path, intervals=False)
    assert (as_row.rows, as_row.names) == (41, ("0", "1"))
    assert as_row.reading == (
        "The first line (2019, 2020) was read as a row, not as names; header=True (--header) reads it as names."
    )
    named = inspect(path, intervals=False, header=True)
    assert (named.rows, named.names, named.reading) == (40, ("2019", "2020"), "")
    assert inspect(path, intervals=False, header=False).reading == ""
    words = tmp_path / "words.csv"
    words.write_text("a,b\n" + "".join(f"{i},{i * i % 7}\n" for i in range(40)))
    assert inspect(words, intervals=False).reading == ""
    assert inspect(words, intervals=False, header=True).rows == 40
    with pytest.raises(ConfigurationError, match="only files of text have one"):
        inspect(np.ones((4, 2)), header=True)


def test_what_was_given_is_named_within_a_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="No column of the array can be used: of 2, 2 constant"):
        inspect(np.ones((40, 2)))
    with pytest.raises(ConfigurationError, match="'b' is no column of the mapping; it has, for instance, a"):
        inspect({"a": np.arange(40.0)}, target="b")
    path = tmp_path / "The table.csv"
    path.write_text("a\n1\n1\n")
    with pytest.raises(ConfigurationError, match=r"No column of /.*The table.csv can be used"):
        inspect(path)
