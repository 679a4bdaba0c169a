"""The card: five answers from the record of a run, and one warning."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from support.runs_by_hand import FACTS, dimensions, event, instrument, run_of

from lightning_sloppy.certificate import Certificate, Reason
from lightning_sloppy.errors import Note
from lightning_sloppy.measures.stopping import Condition, Curves, Rule, judge, settling
from lightning_sloppy.records import Estimate, Status
from lightning_sloppy.reporting.card import HEADINGS, card, final_numbers, settled
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

EARLIER = (90.0, 60.0, 70.0, 80.0)


def certificate(**fields: object) -> Certificate:
    known = {"kind": "pac_bayes_pair", "certified_predictor": "pair_of_draws", "value": 0.8345, "valid": True,
             "n": 1438, "delta": 0.05, "guess_error": 0.8983}  # fmt: skip
    return Certificate(**{**known, **fields})


def bounded(kind: str = "bound", *, hold_out: float | None = None, **fields: object) -> InstrumentRun:
    beside = {} if hold_out is None else {"hold_out": hold_out, "hold_out_samples": 359}
    return instrument(kind, event(kind, beside, certificate=certificate(**fields)))


DATA = instrument(
    "input",
    event("input", {"participation_ratio": 19.64, "participation_ratio_low": 18.1, "participation_ratio_high": 20.9,
                    "num_features": 60, "num_samples": 1438, "effective_dimension": 50.12}),
)  # fmt: skip


def texts(run: Run) -> dict[str, str]:
    return dict(card(run).lines)


def test_five_lines_with_numbers_units_and_errors():
    run = run_of(
        DATA, dimensions([*EARLIER, *[107.0] * 7], effective_dimension_half_samples=101.0), bounded(hold_out=0.0936)
    )
    found = card(run)
    assert [heading for heading, _ in found.lines] == list(HEADINGS)
    lines = dict(found.lines)
    assert lines["Data"].startswith("20 [18, 21] of 60 features count as independent directions")
    assert lines["Data"].endswith("n = 1,438 samples); 50.1 by the effective dimension, as for the network")
    assert lines["Network"] == (
        "107 of 5,018 parameter directions are used (effective dimension of the Jacobian on 128 samples; on 64 of them "
        "101)"
    )
    assert lines["Settled"].startswith("since epoch 4 of 10: within 5 epochs it changes by at most 5 %")
    assert lines["Guarantee"] == (
        "better than guessing for a pair of networks drawn around the model: true error at most 0.8345 with "
        "probability 0.95 (PAC-Bayes bound; guessing has 0.8983); for the trained model itself: at most 0.0936 with "
        "probability 0.95, from 359 samples it never saw"
    )
    assert lines["Cost"] == (
        "8.3 s of measuring beside 1.9 s of training, a ratio of 4.4; the first 60 s are not limited (grace_seconds), "
        "then measuring may take max_overhead = 0.1 of the training time"
    )
    assert found.warning == ""
    assert max(map(len, found.text().splitlines())) <= 100
    assert " ".join(found.text().split()).startswith("Data 20 [18, 21] of 60 features")


def test_every_line_says_why_it_has_no_number():
    lines = texts(run_of(facts=RunFacts()))
    assert lines["Data"] == "not measured, because this fit has no InputSpectrum"
    assert lines["Network"] == "not measured, because this fit has no JacobianSpectrum"
    assert lines["Settled"].startswith("undetermined: no effective dimension")
    assert lines["Guarantee"] == "not measured, because this fit has no PACBayesBound or FinalCertificate"
    assert lines["Cost"] == "not known yet"
    failed = event("input", {}, status=Status.FAILED, notes=("The inputs are a list with 2 tensors.",))
    found = card(run_of(instrument("input", failed), instrument("jacobian")))
    assert dict(found.lines)["Data"] == "missing. The inputs are a list with 2 tensors."
    assert dict(found.lines)["Network"] == "not measured yet"
    assert (
        found.warning == "Inputs: the measurement failed, so values are missing: the inputs are a list with 2 tensors."
    )


def test_a_reason_that_a_warning_has_given_is_said_in_few_words():
    note = Note("The samples are endless. Use others.", cause="samples", short="the samples are endless")
    found = card(run_of(instrument("input", event("input", {}, status=Status.FAILED, notes=(note,)))))
    assert dict(found.lines)["Data"] == "missing. The samples are endless."
    assert found.warning == "Inputs: the measurement failed, so values are missing: the samples are endless."


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("Inputs of type torch.int64 are token ids; measure without the input spectrum.",
         "Inputs of type torch.int64 are token ids."),
        ("IndexError: index out of range in self (gpt.py:12) in forward. Measurements run in eval mode; if it works in "
         "train mode, pass mode='train'.", "IndexError: index out of range in self (gpt.py:12)."),
    ],
)  # fmt: skip
def test_an_error_is_named_and_what_to_do_about_it_is_left_to_the_warning(sentence, said):
    note = Note(sentence, cause=f"error: {sentence[:60]}")
    found = card(run_of(instrument("input", event("input", {}, status=Status.FAILED, notes=(note,)))))
    assert dict(found.lines)["Data"] == f"missing. {said}"
    assert found.warning == f"Inputs: the measurement failed, so values are missing: {said}"


def test_a_known_reason_is_given_in_few_words_for_a_warning_has_given_the_sentence():
    reason = Reason("Reading a sample twice gives two results; pass clean=.", flag="augmentation_in_certification")
    line = texts(run_of(bounded(valid=False, value=math.nan, reasons=(reason,))))
    assert line["Guarantee"] == "there is no PAC-Bayes bound: samples are read with random transforms"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason("Only training_step is known.", cause="loss"), "the loss of outputs and targets is not known"),
        (Reason("The weights hold NaN."), "the weights hold NaN"),
        (Reason("KeyError: 'label' (net.py:9) in forward. It runs.", cause="error: x"), "KeyError: 'label' (net.py:9)"),
        (Reason("AnyNet has no outputs."), "AnyNet has no outputs"),
    ],
)
def test_behind_the_colon_a_sentence_begins_small_and_a_name_stays(reason, said):
    line = texts(run_of(bounded(valid=False, value=math.nan, reasons=(reason,))))
    assert line["Guarantee"] == f"there is no PAC-Bayes bound: {said}"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (f"The loss {'x' * 150} shows no scores; pass predict=, a function from outputs to labels, or a loss of torch "
         "as loss_fn=, or disable the bound.", f"the loss {'x' * 150} shows no scores"),
        (f"The loss shows no scores {'of a class ' * 40}", None),
    ],
)  # fmt: skip
def test_a_long_reason_ends_with_a_clause_or_with_dots(reason, said):
    line = texts(run_of(bounded(valid=False, value=math.nan, reasons=(Reason(reason),))))
    if said:
        assert line["Guarantee"] == f"there is no PAC-Bayes bound: {said}"
    else:
        assert line["Guarantee"].endswith((" of ...", " a ...", " class ..."))


def test_an_interval_is_rounded_by_its_width_and_a_value_without_one_is_not():
    narrow = {"participation_ratio": 2.0312, "participation_ratio_low": 2.01, "participation_ratio_high": 2.05}
    assert texts(run_of(instrument("input", event("input", narrow))))["Data"].startswith("2.03 [2.01, 2.05] features")
    alone = event("input", {"participation_ratio": 19.64, "num_features": 60, "num_samples": 1438})
    assert texts(run_of(instrument("input", alone)))["Data"].startswith("19.64 of 60 features")


def test_an_estimated_dimension_has_its_error_and_another_matrix_its_name():
    estimated = event(
        "hessian",
        {"effective_dimension": Estimate(51.7, 2.0, 0.5), "num_parameters": 5018, "gauss_newton_samples": 128},
        num_samples=1024,
    )
    line = texts(run_of(instrument("hessian", estimated)))["Network"]
    assert line == (
        "51.7 +- 2.5 of 5,018 parameter directions are used (effective dimension of the Gauss-Newton part on 128 "
        "samples; there is no JacobianSpectrum)"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([50.0 + 10 * epoch for epoch in range(11)], "not yet, it is still growing: 100 became 150 within 5 epochs"),
        ([250.0 - 10 * epoch for epoch in range(11)], "not yet, it is still falling: 200 became 150 within 5 epochs"),
        ([100.0, 120.0] * 5 + [100.0], "not yet, it is still falling: 120 became 100 within 5 epochs"),
        ([100.0, 120.0, 100.0, 100.0, 120.0, 110.0, 100.0, 100.0], "not yet, it is still changing: 100 became 100"),
        ([100.0, 100.0], "undetermined: judging it takes 5 epochs, and 1 is done (effective"),
    ],
)
def test_a_dimension_that_has_not_settled(values, expected):
    assert texts(run_of(dimensions(values)))["Settled"].startswith(expected)


def test_measurements_that_are_too_rare_do_not_decide():
    rare = [
        event("jacobian", {"effective_dimension": 100.0}, step=step, epoch=step // 20) for step in (0, 59, 139, 299)
    ]
    found = texts(run_of(instrument("jacobian", *rare)))["Settled"]
    assert found.startswith("undetermined: only one measurement lies within the last 5 epochs")


def test_a_short_training_is_judged_over_a_third_of_it():
    facts = replace(FACTS, epochs=1, epoch_steps=1000)
    events = [
        event("jacobian", {"effective_dimension": 80.0 + min(step, 500) / 10}, step=max(step - 1, 0), epoch=0)
        for step in range(0, 1001, 50)
    ]  # fmt: skip
    found = settled(run_of(instrument("jacobian", *events), facts=facts))
    assert found is not None
    assert found[0].condition is None
    assert found[0].window == pytest.approx(1 / 3)
    # At 700 steps the window begins at 367: 117.5 at 400 to 130 is 10 %; at 800, 125 at 450 to 130 is 4 %.
    assert found[0].since == pytest.approx(0.45)
    few = settled(run_of(instrument("jacobian", *events[::5]), facts=facts))
    assert few is not None
    assert few[0].condition is Condition.COLLECTING


def test_settling_is_the_condition_of_the_early_stop_at_every_measurement():
    """The same answer as the early stop gives where only the dimension decides: its hold-out loss has waited."""
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        level, points = 100.0, []
        for time in range(rng.randint(2, 16)):
            level *= 1 + rng.choice([0.0, 0.0, 0.004, 0.05]) * rng.choice([-1, 1])
            points.append([float(time), level, rng.choice([0.0] * 30 + [4.0]), rng.choice([1.0] * 30 + [3.0]), 10.0])
        flat = [
            judge(
                Rule(5, 0.05, 2.0), Curves(points[:end], hold_out=[[points[end - 1][0] - 6, 1.0]]), points[end - 1][0]
            )
            for end in range(1, len(points) + 1)
        ]
        found = settling(0.05, 5, points)
        assert (found.condition is None) == (flat[-1] is Condition.HOLD_OUT)
        if found.condition is None:
            run = next((back for back, each in enumerate(reversed(flat)) if each is not Condition.HOLD_OUT), len(flat))
            first = points[len(points) - run][0]
            assert found.since == max(first - 5, 0.0)
        else:
            assert found.condition is flat[-1]
            assert math.isnan(found.since)
        seen.add(found.condition)
    assert seen == {None, Condition.CHANGING, Condition.COLLECTING, Condition.UNDETERMINED}


def test_a_final_certificate_comes_before_the_live_bound():
    run = run_of(bounded(hold_out=0.09), bounded("certificate", value=0.41))
    assert texts(run)["Guarantee"].startswith(
        "better than guessing for a pair of networks drawn around the model: true error at most 0.4100 with "
        "probability 0.95 (final PAC-Bayes certificate; guessing has 0.8983)"
    )
    assert "for the trained model itself: at most 0.0900 with probability 0.95" in texts(run)["Guarantee"]
    without = bounded("certificate", valid=False, value=math.nan, reasons=(Reason("The weights hold NaN."),))
    assert "true error at most 0.8345" in texts(run_of(bounded(), without))["Guarantee"]
    # Each bound has the probability of its own callback.
    other = texts(run_of(bounded(hold_out=0.09, delta=0.1), bounded("certificate", value=0.41)))["Guarantee"]
    assert "at most 0.4100 with probability 0.95 " in other
    assert "at most 0.0900 with probability 0.9, from 359 samples" in other


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"value": 1.0}, "nothing for a pair of networks drawn around the model: the PAC-Bayes bound is 1, and no "
         "error rate is larger; guessing has 0.8983; for the trained model itself: at most 0.0900"),
        ({"value": 0.95}, "no better than guessing for a pair of networks drawn around the model: true error at most "
         "0.9500 with probability 0.95 (PAC-Bayes bound; guessing has 0.8983); for the trained model itself"),
        ({"guess_error": math.nan}, "for a pair of networks drawn around the model: true error at most 0.8345"),
        ({"valid": False, "value": math.nan, "reasons": (Reason("The start is unknown."), Reason("NaN."))},
         "there is no PAC-Bayes bound: the start is unknown (and 1 more reasons); for the trained model itself"),
    ],
)  # fmt: skip
def test_a_bound_that_guarantees_nothing_is_said_to(fields, expected):
    assert expected in texts(run_of(bounded(hold_out=0.09, **fields)))["Guarantee"]


def test_the_limit_on_the_cost_after_the_grace():
    late = replace(FACTS, measuring_seconds=75.0, training_seconds=1000.0)
    assert texts(run_of(facts=late))["Cost"] == (
        "75.0 s of measuring beside 1000.0 s of training, a ratio of 0.075; after the first 60 s, max_overhead = "
        "0.1 limits it"
    )
    assert texts(run_of(facts=replace(late, max_overhead=None)))["Cost"].endswith("there is no limit")


@pytest.mark.parametrize(
    ("instruments", "expected"),
    [
        ([dimensions([107.0], effective_dimension_half_samples=60.0)], "107, but 60 on half of the samples"),
        ([dimensions([640.0])], "near its maximum of 1,000; use n90"),
        ([instrument("jacobian", event("jacobian", {"effective_dimension": Estimate(50.0, 9.0, 0.0)}))], "50.0 +- 9.0"),
        ([instrument("jacobian", event("jacobian", {"effective_dimension": 50.0}),
                     event("jacobian", {"effective_dimension": Estimate(math.nan, status=Status.UNRESOLVED)}))],
         "(Jacobian) is missing at the end. Unresolved"),
        ([dimensions([50.0]), instrument("hessian", event("hessian", {}, status=Status.NON_FINITE))],
         "Hessian at step 199: Not finite"),
        ([instrument("fisher", event("fisher", {}, status=Status.FAILED, notes=("No loss.",)), event("fisher", {}))],
         "Fisher matrix: 1 of 2 measurements failed, so values are missing: no loss."),
        ([instrument("input", event("input", {"participation_ratio": 9.0, "num_features": 60, "num_samples": 120}))],
         "120 samples for 60 features"),
    ],
)  # fmt: skip
def test_what_makes_the_numbers_unreliable_is_one_line(instruments, expected):
    assert expected in card(run_of(*instruments)).warning


def test_further_warnings_are_counted():
    run = run_of(dimensions([640.0], effective_dimension_half_samples=300.0))
    assert card(run).warning.endswith("(1 more below)")
    assert "Warning" in card(run).text()


def test_a_bound_of_earlier_weights_is_no_guarantee_for_those_of_the_end():
    lost = bounded(valid=False, value=math.nan, reasons=(Reason("The weights hold NaN."),))
    before = bounded()
    run = run_of(replace(before, measurements=(*before.measurements, *lost.measurements)))
    assert texts(run)["Guarantee"].startswith("there is no PAC-Bayes bound: the weights hold NaN")
    assert "guaranteed_error" not in final_numbers(run)
