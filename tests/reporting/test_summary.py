from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.instruments import record, summary

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting.card import card
from lightning_sloppy.reporting.run_html import run_html
from lightning_sloppy.reporting.summary import WIDTH, summarise

STOP = "Training stopped after epoch 23 because the effective dimension of the Fisher matrix had reached its plateau."


def event(group: str, estimates: dict[str, float | Estimate], **fields) -> Measurement:
    named = {q: v if isinstance(v, Estimate) else Estimate(v) for q, v in estimates.items()}
    settings = {"cost": Cost(seconds=2.0), "status": Status.CONVERGED, "num_samples": 1024, **fields}
    return Measurement(settings.pop("step", 414), 22, group, None, named, **settings)


def certificate(**fields) -> Certificate:
    settings = {
        "kind": "pac_bayes_pair", "certified_predictor": "pair_of_draws", "value": 0.3123, "valid": True,
        "n": 1437, "delta": 0.05, "empirical_risk": 0.0211, "risk_samples": 1437, "log_ratio": 321.5,
        "conditions": ("The training examples are independent draws.",),
        "prior": "the initial weights are independent of the data",
    }  # fmt: skip
    return Certificate(**{**settings, **fields})


INPUT = event(
    "input",
    {"decades": 3.21, "slope": -0.0412, "slope_r_squared": 0.97, "participation_ratio": 17.3, "num_features": 61,
     "effective_dimension": 41.5, "constant_columns": 3, "num_samples": 1437},
)  # fmt: skip
HESSIAN = event(
    "hessian",
    {"largest": 8.25, "smallest": -0.125, "trace": Estimate(40.0, 1.5, 0.0), "z": 0.00245, "num_parameters": 4570,
     "effective_dimension": Estimate(459.7, 5.7, 0.2), "effective_dimension_at_prior": Estimate(300.0, 4.0, 0.0)},
)  # fmt: skip
FISHER = event(
    "fisher",
    {"largest": 2.5, "trace": 12.0, "effective_dimension": 166.0, "effective_dimension_half_samples": 120.5,
     "effective_dimension_at_prior": 88.0,
     "z": 0.00245, "num_parameters": 4570},
)  # fmt: skip
BOUND = event("bound", {"pac_bayes": 0.3123, "hold_out": 0.0733, "hold_out_error": 0.05}, certificate=certificate())


def with_events(folder: str | Path) -> str:
    """A folder with a file of events."""
    Path(folder).mkdir(parents=True)
    (Path(folder) / "events.out.tfevents.1").touch()
    return str(folder)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_whole_story_in_words_and_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = with_events("runs/version_0")
    runs = {"input": [INPUT], "hessian": [HESSIAN, HESSIAN], "fisher": [FISHER], "bound": [BOUND]}
    text = summary(
        runs, end="ended", epochs=23, steps=415, end_sentences=(STOP,), measuring_seconds=10.0, training_seconds=100.0,
        loggers=(("TensorBoardLogger", folder),),
    )  # fmt: skip
    for sentence in (
        "N = 1,437 training samples. The correlation matrix spans 3.21 decades.",
        "change by -0.0412 decades per index (R^2 = 0.97).",
        "Effective dimension of the inputs: 41.5 of 61 features (an eigenvalue that is a thousandth of the trace",
        "Participation ratio: 17.3.",
        "3 constant columns were excluded.",
        "Step 414, in the 23rd epoch. N = 1,024 probe samples.",
        "Largest eigenvalue 8.25, smallest -0.125, trace 40.0 +- 1.5.",
        "Effective dimension of the Gauss-Newton part: 459.7 +- 5.9 of 4,570 parameters (an eigenvalue that is",
        "At the scale of the prior, z = 0.00245, it is 300.0 +- 4.0.",
        "Effective dimension: 166 of 4,570 parameters (an eigenvalue that is a thousandth of the trace counts 1/2).",
        "At the scale of the prior, z = 0.00245, it is 88.",
        "On the first half of the samples it is 120.5.",
        "The PAC-Bayes bound on the true error is 0.3123. It certifies the pair of networks drawn around the model",
        "with probability at least 0.95",
        "error 0.0211 on 1,437 samples, complexity 321.5 nats for n = 1,437.",
        "- The training examples are independent draws.",
        "- The user's statement about the prior: the initial weights are independent of the data",
        "Hold-out bound for the model itself, from samples it never saw: 0.0733 (error on them: 0.0500).",
        STOP,
        "Training ended after 23 epochs and 415 optimiser steps.",
        "Measuring took 10.0 s beside 100.0 s of training, a ratio of 0.1: Inputs 2.0 s (1 measurement),",
        "Hessian 4.0 s (2 measurements)",
    ):
        assert sentence in flat(text)
    assert "\n    tensorboard --logdir runs/version_0" in text
    assert max(len(line) for line in text.splitlines() if "http://" not in line) <= WIDTH
    assert "\x1b" not in text


def test_a_printed_guarantee_is_never_below_the_certified_number():
    bounds = {"value": 0.834123, "hold_out": 0.073312, "single": 0.712312, "live": 0.801212, "lowest": 0.750112,
              "upper": 0.043251}  # fmt: skip
    beside = {"risk_upper": bounds["upper"], "live_value": bounds["live"], "guess_error": 0.9, "delta_pac": 0.025}
    bound = certificate(value=bounds["value"], **beside)
    estimates = {"pac_bayes": bounds["value"], "hold_out": bounds["hold_out"], "risk_upper": bounds["upper"]}
    early = event("bound", {}, certificate=certificate(value=bounds["lowest"]), step=100)
    final = event("certificate", {"pair": bounds["value"], "single": bounds["single"]}, certificate=bound)
    found = record({"bound": [early, event("bound", estimates, certificate=bound)], "certificate": [final]})
    pages = [re.sub("<[^>]+>", " ", run_html(runs)) for runs in ([found], [found, found])]
    brief = [f"{each!r}" for each in (found, bound, *found.instruments.values())]
    shown = [
        float(each) for each in re.findall(r"0\.\d+", " ".join([summarise(found), bound.explain(), *brief, *pages]))
    ]
    for name, exact in bounds.items():
        near = {each for each in shown if abs(each - exact) < 0.002}
        assert near, name
        assert min(near) >= exact, (name, near)


def test_the_card_is_the_head_and_the_short_form():
    runs = {"input": [INPUT], "fisher": [FISHER], "bound": [BOUND]}
    full, short = (summary(runs, length, measuring_seconds=6.0, training_seconds=60.0) for length in ("full", "short"))
    head = card(record(runs, measuring_seconds=6.0, training_seconds=60.0)).text()
    assert full.startswith(f"Summary\n=======\n{head}\n\nInputs\n")
    assert short.startswith(f"Summary\n=======\n{head}\n\nWhere the values are\n")
    assert "17.3 of 61 features" in head
    assert "conditions" in full
    assert "conditions" not in short


def test_the_parts_of_the_cost_add_up_to_the_total_of_the_card():
    runs = {"input": [INPUT], "fisher": [FISHER, FISHER]}
    text = flat(summary(runs, measuring_seconds=19.5, earlier_seconds=12.0, training_seconds=390.0))
    assert "19.5 s of measuring beside 390.0 s of training, a ratio of 0.05" in text
    assert (
        "Measuring took 19.5 s beside 390.0 s of training, a ratio of 0.05: Inputs 2.0 s (1 measurement), Fisher "
        "matrix 4.0 s (2 measurements), before the run was resumed 12.0 s, checks of the loss, trial runs and logging "
        "1.5 s."
    ) in text


def test_each_logger_is_named_with_the_place_of_its_values(tmp_path):
    folder = with_events(tmp_path / "tb")
    places = (("TensorBoardLogger", folder), ("CSVLogger", "csv/metrics.csv"), ("Mine", ""))
    text = summary({"fisher": [FISHER], "bound": [BOUND]}, loggers=places, prefix="a-")
    assert f"  TensorBoardLogger: event files in {folder}\n" in text
    assert "  CSVLogger: csv/metrics.csv\n  Mine: where it keeps them" in text
    address = next(line.strip() for line in text.splitlines() if "pinnedCards" in line)
    pins = json.loads(parse_qs(urlsplit(address).query)["pinnedCards"][0])
    assert pins == [
        {"plugin": "scalars", "tag": f"a-{tag}"}
        for tag in (
            "sloppy_bound/pac_bayes",
            "sloppy_bound/hold_out",
            "sloppy_fisher/effective_dimension",
            "sloppy_cost/overhead",
        )
    ]
    assert parse_qs(urlsplit(address).query)["smoothing"] == ["0"]
    assert "    http://localhost:6006/#custom_scalars&_smoothingWeight=0\n" in text
    assert "a smoothed bound is no bound" in text
    assert "tensorboard" not in summary({"fisher": [FISHER]}, loggers=places[1:])


def test_the_folder_above_is_named_if_other_runs_lie_beside(tmp_path):
    folder = with_events(tmp_path / "logs" / "version_0")
    places = (("TensorBoardLogger", folder),)
    assert f"tensorboard --logdir {tmp_path / 'logs'}\n" not in summary({}, loggers=places)
    with_events(tmp_path / "logs" / "version_1")
    text = summary({}, loggers=places)
    assert f"    tensorboard --logdir {folder}\n" in text
    assert f"    tensorboard --logdir {tmp_path / 'logs'}\n" in text


def test_only_what_was_measured_is_pinned(tmp_path):
    without = replace(BOUND, estimates={"pac_bayes": Estimate(0.5)})
    places = (("TensorBoardLogger", with_events(tmp_path / "tb")),)
    text = summary({"bound": [without]}, loggers=places)
    assert "sloppy_bound/pac_bayes" in text
    assert "sloppy_bound/hold_out" not in text


def test_the_smallest_eigenvalue_is_not_one_of_the_converged_pairs():
    loose = replace(HESSIAN, estimates={**HESSIAN.estimates, "smallest_residual": Estimate(0.05)})
    said = "has not converged (residual 0.05)."
    converged = flat(summary({"hessian": [replace(loose, status=Status.CONVERGED)]}))
    pairs = "The requested eigenpairs have converged. The smallest eigenvalue is not one of them and"
    assert f"{pairs} {said}" in converged
    other = flat(summary({"hessian": [replace(loose, status=Status.NOT_CONVERGED)]}))
    assert f"The smallest eigenvalue {said}" in other
    assert "have converged" not in other


def test_what_was_not_asked_for_is_not_mentioned():
    text = summary({"fisher": [FISHER]})
    assert "Hessian" not in text
    assert "\nBound\n" not in text
    assert "The Trainer has no logger." in text


def test_reasons_replace_a_bound():
    reason = "The run was resumed without the state of this callback, so the initial weights are unknown."
    without = event(
        "bound", {}, certificate=certificate(valid=False, value=math.nan, reasons=(reason,)), status=Status.UNAVAILABLE
    )
    text = summary({"bound": [without]})
    sections = flat(text.partition("\n\n")[2])
    assert "There is no PAC-Bayes bound (see Warnings)." in sections
    assert reason not in sections, "a warning gave it, and the section with the warnings has it"
    assert "conditions" not in text
    assert "nan" not in text


def test_a_vacuous_bound_is_called_vacuous():
    text = summary({"bound": [event("bound", {}, certificate=certificate(value=1.0))]})
    assert "vacuous" in text


def test_the_lowest_bound_of_the_run_is_named_when_it_is_not_the_last():
    early = event("bound", {}, certificate=certificate(value=0.2501), step=100)
    late = event("bound", {}, certificate=certificate(value=0.3), step=200)
    assert "The lowest bound of the run was 0.2501 at step 100" in flat(summary({"bound": [early, late]}))
    assert "lowest" not in summary({"bound": [late, early]})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "Missing: no measurement was made."),
        ([event("fisher", {}, status=Status.FAILED)], f"Missing. {Status.FAILED.value}"),
        (
            [event("fisher", {}, status=Status.UNAVAILABLE, notes=("The batch is not a pair; pass loss_fn=.",))],
            "Missing. The batch is not a pair; pass loss_fn=.",
        ),
    ],
)
def test_missing_parts_come_with_their_reason(events, expected):
    assert expected in flat(summary({"fisher": events}))


def test_an_unresolved_dimension_is_no_number():
    unresolved = Estimate(1224.0, 19.0, 600.0, Status.UNRESOLVED)
    text = flat(summary({"hessian": [event("hessian", {"effective_dimension": unresolved})]}))
    assert "1,224" not in text
    text = flat(summary({"hessian": [event("hessian", {"largest": 1.0, "effective_dimension": unresolved})]}))
    assert f"Effective dimension of the Gauss-Newton part: missing. {Status.UNRESOLVED.value}" in text
    assert "1,224" not in text


def test_a_failure_at_the_end_does_not_hide_the_last_result():
    failed = event("fisher", {}, status=Status.FAILED, step=500)
    text = flat(summary({"fisher": [FISHER, failed]}))
    assert "Step 414" in text
    assert "166 of 4,570" in text


def test_the_command_survives_odd_folders(tmp_path):
    folder = with_events(tmp_path / ("a very long folder name " + "x" * 90))
    text = summary({}, loggers=(("TensorBoardLogger", folder),))
    assert f"    tensorboard --logdir '{folder}'\n" in text


@pytest.mark.parametrize("value", [1e300, 123456.789, 1e-300])
def test_extreme_values_stay_short(value):
    line = next(
        line
        for line in summary({"fisher": [event("fisher", {"trace": Estimate(value, math.nan)})]}).splitlines()
        if "trace" in line
    )
    assert "nan" not in line
    assert len(line) < WIDTH


def test_a_value_and_its_error_stay_on_one_line():
    padded = event("fisher", {"trace": 1.0}, notes=tuple("x" * n + " trace 40 +- 1.5" for n in range(60, 98)))
    lines = summary({"fisher": [padded]}).partition("\n\n")[2].splitlines()
    assert sum("40 +- 1.5" in line for line in lines) == 38
    assert max(map(len, lines)) <= WIDTH


def test_long_notes_are_wrapped():
    noted = event("fisher", {"trace": 1.0}, notes=("word " * 80,))
    text = summary({"fisher": [noted]})
    assert max(map(len, text.splitlines())) <= WIDTH
    head, _, sections = text.partition("\n\n")
    assert sections.count("word") == 80
    assert head.count("word") < 50
    assert "word ..." in head


def test_failed_measurements_are_counted_with_the_first_reason():
    failed = event("hessian", {}, status=Status.FAILED, notes=("The device has no memory left; lower k.",))
    text = flat(summary({"hessian": [failed, HESSIAN, failed], "fisher": [FISHER]}))
    assert (
        "Failed measurements (gaps in the curves): Hessian 2. The first: The device has no memory left; lower k."
        in text
    )
    assert "Failed measurements" not in flat(summary({"fisher": [FISHER]}))
