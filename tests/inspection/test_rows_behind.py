"""Columns that vary in few rows, and what a group or combination rests on."""

from __future__ import annotations

import json
import math
from decimal import ROUND_UP, Context

import numpy as np
import pandas as pd
import pytest

from lightning_sloppy import inspect
from lightning_sloppy.inspection.rows_behind import Departures
from lightning_sloppy.reporting.data_words import column_notes, group_rows, groups_legend, numbering

ROWS = 300


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"heat": rng.standard_normal(ROWS), "flow": rng.standard_normal(ROWS)})
    spike = np.full(ROWS, 4.0)
    spike[217] = 9.0
    frame["odd"], frame["odd too"] = spike, 3 * spike - 1
    frame["noise with the spike"] = 300 * (spike - 4) + frame["flow"] + rng.standard_normal(ROWS)
    frame["broken"] = np.where(np.arange(ROWS) >= ROWS - 2, 1.0, 0.0)
    frame["late"] = np.where(np.arange(ROWS) < 200, 1.0, rng.standard_normal(ROWS))
    frame["gaps"] = frame["heat"]
    frame.loc[:199, "gaps"] = np.nan
    return frame


@pytest.fixture(scope="module")
def report(frame):
    return inspect(frame, intervals=False)


def answer(report, start):
    (found,) = [each for each in report.answers if each.question.startswith(start)]
    return found


def test_rows_in_which_a_column_departs_are_counted(report) -> None:
    assert report.departures["odd"] == Departures(1, (217,), 217, True)
    assert report.departures["broken"] == Departures(2, (298, 299), 298, False)
    assert report.departures["late"].count == 100
    assert report.departures["late"].rows[0] == 200
    assert not report.departures["late"].returns
    assert set(report.departures) == {"odd", "odd too", "broken", "late", "gaps"}


def test_a_missing_last_value_is_not_the_end_of_a_departure() -> None:
    rng = np.random.default_rng(1)
    column = np.zeros(200)
    column[150] = 1.0
    column[151:] = np.nan
    found = inspect({"a": rng.standard_normal(200), "b": column}, intervals=False).departures["b"]
    assert found == Departures(1, (150,), 150, False)


def test_the_answer_on_dead_sensors_names_the_rows_and_whether_the_value_comes_back(report) -> None:
    said = answer(report, "Which sensors are dead").answer
    assert "odd, odd too: in 1 row (217), then the old value again" in said
    assert "broken: in 2 rows (298, 299), to the end" in said
    assert "late (row 200 on, differs in 100 rows; not at the old value at the end)" in said
    assert "217 also rule" in said  # the row is also one that dominates
    assert 217 in report.dominating_rows


def test_columns_that_hardly_vary_are_not_said_to_vary_from_a_row_on(report) -> None:
    assert {"odd", "odd too", "broken", "late", "gaps"} == set(report.late)
    assert report.departures["gaps"].before == 1  # missing at first, not constant: not named
    notes = {note.heading: note.entries for note in column_notes(report)}
    assert [entry.split(" (")[0] for entry in notes["Constant at first, varying from a later row on (1)"]] == ["late"]
    assert "odd (99.7 %, differs in 1 row)" in notes["Nearly constant (3)"]


def test_groups_and_combinations_on_a_single_row_are_marked(frame, report) -> None:
    rests = {row.stays: row.rests_on for row in group_rows(report)}
    (odd,) = [group for group in report.groups if "odd" in group.names]
    assert set(odd.names) == {"odd", "odd too", "noise with the spike"}  # without the row the last is plain noise
    without = frame.drop(index=217)
    assert abs(without["noise with the spike"].corr(without["flow"])) < 0.95
    assert rests[odd.representative] == "1 row"
    assert "2 rest on few rows" in answer(report, "Which columns can be dropped").answer
    (equation,) = [
        entry
        for note in column_notes(report)
        if note.heading.startswith("Exact combinations")
        for entry in note.entries
        if "odd" in entry
    ]
    assert equation.endswith("(rests on 1 row)")


def test_a_group_names_its_fewest_common_rows(report) -> None:
    (heat,) = [row for row in group_rows(report) if {row.stays, *row.others} == {"heat", "gaps"}]
    assert heat.rests_on == "100 rows"
    assert "over 100 common rows and more" in answer(report, "Which columns can be dropped").evidence
    found = json.loads(report.to_json())["details"]
    by_name = {each["representative"]: each for each in found["groups"]}
    assert by_name["heat"]["common_rows"] == 100
    assert by_name["heat"]["few_rows"] is None
    assert found["departures"]["odd"] == {"count": 1, "rows": [217], "before": 217, "returns": True}


def test_a_combination_of_varying_columns_is_not_marked() -> None:
    rng = np.random.default_rng(2)
    a, odd = rng.standard_normal(200), np.zeros(200)
    odd[7] = 5.0
    found = inspect({"a": a, "odd": odd, "sum": a + odd}, intervals=False)
    assert found.dependencies.found
    assert not any(
        "rests on" in entry
        for note in column_notes(found)
        if note.heading.startswith("Exact")
        for entry in note.entries
    )


def test_a_chain_is_explained_where_one_stays() -> None:
    rng = np.random.default_rng(3)
    first, noise = rng.standard_normal((2, 4000))
    chain = {f"c{i}": np.cos(0.28 * i) * first + np.sin(0.28 * i) * noise for i in range(4)}
    found = inspect(chain, intervals=False)
    (row,) = group_rows(found)
    assert any(name.endswith("(stays)") for name in row.others)
    assert float(row.lowest) < 0.95
    assert "(stays): linked through a third column only" in groups_legend(found)
    assert "(stays)" not in groups_legend(inspect({"a": first, "b": noise, "c": first}, intervals=False))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "Columns are numbered from 0, because the file has no header. Rows are counted from 0, too."),
        ("a,b\n", "Rows are counted from 0."),
    ],
)
def test_numbering(tmp_path, header, said) -> None:
    lines = "".join(f"{a:.4f},{b:.4f}\n" for a, b in np.random.default_rng(4).standard_normal((60, 2)))
    (tmp_path / "t.csv").write_text(header + lines)
    assert numbering(inspect(tmp_path / "t.csv", intervals=False)) == said


def test_the_numbering_of_an_array_and_its_target() -> None:
    values = np.random.default_rng(5).standard_normal((60, 3))
    assert numbering(inspect(values, target="0", intervals=False)).startswith("Columns are numbered from 0. Rows")


def test_why_directions_rise_without_repeats() -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((400, 5))
    table = {f"x{i}": rows[:, i] for i in range(5)} | {f"copy {i}": rows[:, 0] for i in range(4)}
    rises = inspect(table, intervals=False)
    assert rises.deduplicated.participation_ratio.value > rises.spectrum.participation_ratio.value
    assert "repeated columns give their direction more weight" in answer(rises, "Which columns can").evidence
    falls = inspect(rows[:, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]] + 0.1 * rng.standard_normal((400, 10)), intervals=False)
    assert falls.deduplicated.participation_ratio.value < falls.spectrum.participation_ratio.value
    assert "more weight" not in answer(falls, "Which columns can").evidence


@pytest.mark.parametrize("rows", [60, 200])
def test_the_answer_on_more_rows_names_their_number_and_its_goal(rows) -> None:
    found = inspect(np.random.default_rng(7).standard_normal((rows, 10)), seed=1)
    more = answer(found, "Would more rows help")
    ratio = found.spectrum.participation_ratio
    middle = math.sqrt(ratio.low * ratio.high)
    width, gap = (ratio.high - ratio.low) / (2 * middle), abs(middle - ratio.value) / middle
    lost = 1 - found.half / ratio.value
    assert "This page chose 5 % as its goal." in more.answer
    assert f"{100 * lost:.1f} % fewer than all rows do" in more.evidence
    if rows == 60:
        times = max((width / 0.05) ** 2, gap / 0.05)
        two = Context(prec=2, rounding=ROUND_UP)  # more digits are not known
        factor, many = float(two.create_decimal(times)), int(two.create_decimal(60 * times))
        assert f"About {factor:g} times as many rows ({many:,}) would narrow the 95 %" in more.answer
        assert f"is known to within {100 * width:.1f} % either way" in more.answer
    else:
        assert more.answer.startswith(
            f"Hardly: the 95 % interval of the number of directions reaches {100 * width:.1f} %"
        )
