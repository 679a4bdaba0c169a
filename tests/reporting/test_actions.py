"""What you can do: only where the run gives a reason, and only with numbers that were measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs_by_hand import FACTS, dimensions, event, instrument, run_of

from lightning_sloppy import Spectrum, input_spectrum
from lightning_sloppy.reporting import actions as module
from lightning_sloppy.reporting.actions import DIMENSIONS, WHAT_YOU_CAN_DO, Evidence, actions, advice, cautions
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


def table(dimensions_of_a_sample: int = 1, **estimates: float):
    """Inputs as rows of a table, or images."""
    eigenvalues = torch.ones(4, dtype=torch.float64)
    spectrum = replace(of_a_table(), eigenvalues=eigenvalues, detail={DIMENSIONS: dimensions_of_a_sample})
    return instrument("input", replace(event("input", {"participation_ratio": 3.0, **estimates}), spectrum=spectrum))


def of_a_table() -> Spectrum:
    return input_spectrum(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))


def said(run) -> str:
    return " ".join(action.what for action in actions(run))


@pytest.mark.parametrize(("count", "words"), [(1, "the 1 column that repeats another:"), (5, "5 columns that repeat")])
def test_repeated_columns_of_a_table_are_to_be_left_out(count, words):
    run = run_of(table(repeated_columns=count))
    assert words in said(run)
    assert "SpectralReducer()" in said(run)
    assert cautions(run) == [module.NARROW]
    assert "SpectralReducer" not in said(run_of(table(repeated_columns=0)))
    assert "SpectralReducer" not in said(run_of(table(3, repeated_columns=count)))  # pixels are no columns


def test_later_tables_are_to_be_compared_if_there_are_not_too_many_columns():
    assert "--against" in said(run_of(table(num_features=4)))
    assert "--against" not in said(run_of(table(num_features=5_000)))
    assert "--against" not in said(run_of(table(3, num_features=4)))
    assert "--against" not in said(run_of(table(num_features=4), facts=replace(FACTS, end="")))


def test_a_network_that_uses_few_of_many_directions_can_be_smaller():
    values = tuple(90.0 - 5 * i for i in range(10))
    assert "uses 45 of 5,018 directions" in said(run_of(dimensions(values)))
    assert "compress" not in said(run_of(dimensions(tuple(900.0 - i for i in range(10)))))
    assert "compress" not in said(run_of(dimensions(values, num_parameters=4_000)))


def test_no_action_is_offered_without_a_reason_in_the_run():
    assert advice(run_of(instrument("input", event("input", {"participation_ratio": 7.0})))) == []
    assert advice(run_of(instrument("input"))) == []
    assert advice(run_of()) == []


def test_a_training_that_went_on_after_the_dimension_had_settled_can_be_shorter():
    run = run_of(dimensions(SETTLED))
    assert "settled since epoch 2 of 9" in said(run)
    stopped = replace(FACTS, end_sentences=("Early stopping asked to stop after epoch 9: the loss.",))
    for facts in (replace(FACTS, end=""), stopped):
        assert "settled since" not in said(replace(run, facts=facts))
    assert "settled since" not in said(run_of(dimensions(SETTLED[:2] + tuple(40.0 - 3 * i for i in range(8)))))


def test_summary_page_and_report_show_it():
    run = run_of(table(repeated_columns=1))
    full = summarise(run)
    assert WHAT_YOU_CAN_DO in full
    assert "1 column that repeats another" in " ".join(full.split())
    assert WHAT_YOU_CAN_DO not in summarise(run, "short")
    assert f"## {WHAT_YOU_CAN_DO}" in read_me_first(run, begins=False)
    assert WHAT_YOU_CAN_DO not in read_me_first(run, begins=True)
    assert f"<h2>{WHAT_YOU_CAN_DO}</h2>" in run_html(run)
    assert WHAT_YOU_CAN_DO not in run_html(run_of())
