"""What you can do: only where the run gives a reason, and only with numbers that were measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs_by_hand import FACTS, dimensions, event, instrument, run_of

from lightning_sloppy.reporting import actions as module
from lightning_sloppy.reporting.actions import WHAT_YOU_CAN_DO, Evidence, actions, advice, cautions
from lightning_sloppy.reporting.pages import read_me_first
from lightning_sloppy.reporting.run_html import run_html
from lightning_sloppy.reporting.summary import summarise

RESULTS = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
EVIDENCE = {name: each for name, each in vars(module).items() if isinstance(each, Evidence)}
SETTLED = (90.0, 60.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0)


@pytest.mark.parametrize("name", EVIDENCE)
def test_the_numbers_of_each_evidence_are_on_the_page_of_the_results(name):
    evidence = EVIDENCE[name]
    section = RESULTS.split(f"## {evidence.question}\n")[1].split("\n## ")[0]
    measured = [float(each) for each in re.findall(r"-?\d*\.\d+|-?\d+", section.replace(",", ""))]
    quoted = re.findall(r"-?\d*\.\d+", evidence.text)
    assert quoted
    for each in quoted:
        decimals = len(each.split(".")[1])
        assert any(round(number, decimals) == float(each) for number in measured), each


def test_repeated_columns_are_to_be_left_out_and_no_narrow_layer_is_suggested():
    run = run_of(instrument("input", event("input", {"participation_ratio": 7.0, "repeated_columns": 5})))
    (action,) = actions(run)
    assert "5 columns that repeat others" in action.what
    assert "SpectralReducer()" in action.what
    assert cautions(run) == [module.NARROW]


def test_no_action_is_offered_without_a_reason_in_the_run():
    assert (
        advice(run_of(instrument("input", event("input", {"participation_ratio": 7.0, "repeated_columns": 0})))) == []
    )
    assert advice(run_of(instrument("input"))) == []
    assert advice(run_of()) == []


def test_a_training_that_went_on_after_the_dimension_had_settled_can_be_shorter():
    run = run_of(dimensions(SETTLED))
    (action,) = actions(run)
    assert "settled since epoch 2 of 9" in action.what
    stopped = replace(FACTS, end_sentences=("Early stopping asked to stop after epoch 9: the loss.",))
    for facts in (replace(FACTS, end=""), stopped):
        assert actions(replace(run, facts=facts)) == []
    assert actions(run_of(dimensions(SETTLED[:2] + tuple(40.0 - 3 * i for i in range(8))))) == []


def test_summary_page_and_report_show_it():
    run = run_of(instrument("input", event("input", {"participation_ratio": 7.0, "repeated_columns": 1})))
    full = summarise(run)
    assert WHAT_YOU_CAN_DO in full
    assert "1 column that repeats another" in " ".join(full.split())
    assert WHAT_YOU_CAN_DO not in summarise(run, "short")
    assert f"## {WHAT_YOU_CAN_DO}" in read_me_first(run, begins=False)
    assert WHAT_YOU_CAN_DO not in read_me_first(run, begins=True)
    assert f"<h2>{WHAT_YOU_CAN_DO}</h2>" in run_html(run)
    assert WHAT_YOU_CAN_DO not in run_html(run_of())
