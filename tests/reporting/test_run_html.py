"""The report of a run: complete in itself, the numbers of the record, what is missing, several runs compared."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace

import pytest
from support import killed
from support.instruments import DECLARED
from support.pages import Page

from lightning_sloppy import Certificate, ConfigurationError, Cost, Estimate, Measurement, Quantity, Status
from lightning_sloppy.certificate import Reason
from lightning_sloppy.quantities import Declaration
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.card import card
from lightning_sloppy.reporting.guide import GUIDE
from lightning_sloppy.reporting.run_html import run_html
from lightning_sloppy.reporting.run_settings import settings_in
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about the folder of the checkpoints
        return killed.fit(tmp_path_factory.mktemp("fit"), logged=True)[1].record()


@pytest.fixture(scope="module")
def text(run) -> str:
    return run_html(run)


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def measured(step: int, value: float, *, error: float = 0.0, name: str = "size", **options) -> Measurement:
    fields = {"status": Status.CONVERGED, "num_samples": 8, **options}
    return Measurement(step, 0, "norm", None, {name: Estimate(value, error)}, Cost(seconds=1.0), **fields)


def made(*events: Measurement, folder: str = "", title: str = "Norm", **facts) -> Run:
    declaration = Declaration("norm", title, [Quantity("size", "Length of the weights.", headline=True)])
    return Run({"norm": InstrumentRun("norm", declaration, events)}, RunFacts(folder=folder, **facts))


def test_nothing_is_loaded_from_anywhere(page, text) -> None:
    assert page.requests() == []
    assert not {"script", "iframe", "object", "embed"} & page.tags()
    assert "://" not in text
    policy = next(attributes for tag, attributes in page.seen if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_the_card_comes_first_and_is_that_of_the_run(run, page) -> None:
    lines = card(run).lines
    assert page.of("strong")[:5] == [f"{heading}:" for heading, _ in lines]
    for heading, said in lines:
        assert f"{heading}: {said}" in page.text
    assert page.text.index(lines[0][1]) < page.text.index("Picture")


def test_every_number_is_that_of_the_record_in_full(run, page) -> None:
    seen = 0
    for instrument in run.instruments.values():
        event = phrases.last_reported(instrument.measurements)
        for quantity in instrument.declaration.quantities:
            estimate = event.estimates.get(quantity.name)
            if estimate is None or not phrases.usable(estimate):
                continue
            shown = page.values_of(f"sloppy_{instrument.declaration.name}/{quantity.name}")
            assert shown[0] == estimate.value
            assert set(shown) >= {error for error in (estimate.standard_error, estimate.truncation_error) if error}
            seen += 1
    assert seen > 60


def test_a_number_is_shown_with_its_error_and_what_it_means() -> None:
    page = Page(run_html(made(measured(3, 12.3456, error=0.21))))
    assert page.cells("size sloppy_norm/size")[1:] == ["12.35", "0.21 (standard error)", "Length of the weights."]
    assert page.values_of("sloppy_norm/size") == [12.3456, 0.21]


def test_names_in_an_explanation_are_code_and_nothing_else_is_markup() -> None:
    declaration = Declaration("norm", "Norm", [Quantity("size", f"Increase `num_samples` or {EVIL}.", headline=True)])
    page = Page(run_html(Run({"norm": InstrumentRun("norm", declaration, (measured(1, 2.0),))})))
    assert page.of("code") == ["num_samples"]
    assert f"Increase num_samples or {EVIL}." in page.text
    assert "script" not in page.tags()


@pytest.mark.parametrize(
    ("said", "kind"), [("Upper end of the 95 % interval.", "95 % interval"), ("Upper end of the spread.", "spread")]
)
def test_an_interval_is_shown_with_its_number_and_called_what_it_is(said, kind) -> None:
    names = {"size": 20.0, "size_low": 18.0, "size_high": 21.5}
    event = replace(measured(0, 0.0), estimates={name: Estimate(value) for name, value in names.items()})
    quantities = [Quantity("size", "Length.", headline=True), Quantity("size_low", "Low."), Quantity("size_high", said)]
    run = Run({"norm": InstrumentRun("norm", Declaration("norm", "Norm", quantities), (event,))})
    assert Page(run_html(run)).cells("size sloppy_norm/size")[1:3] == ["20", f"{kind} [18, 21.5]"]


def test_every_measurement_is_in_the_folded_history(run, page) -> None:
    for instrument in run.instruments.values():
        if len(instrument.measurements) > 1:
            assert f"All {len(instrument.measurements)} measurements: {instrument.declaration.title}" in page.text
    assert ["step", "epoch, from 1", "effective dimension"] in page.rows
    rows = [row for row in page.rows if len(row) == 3 and row[0] == "7"]
    dimension = run.instruments["jacobian"].measurements[4].estimates["effective_dimension"]
    assert run.instruments["jacobian"].measurements[4].step == 7
    assert ["7", "2", phrases.with_error(dimension)] in rows


def test_what_to_do_is_said_for_each_group(run, page) -> None:
    for instrument in run.instruments.values():
        advice = GUIDE[instrument.kind]
        assert f"{instrument.declaration.title}: {advice.question}" in page.of("h3")
        plain = [
            each.replace("`", "") for each in (advice.meaning, advice.rises, advice.falls, advice.flat, advice.single)
        ]
        assert all(each in page.text.replace(" .", ".").replace(" ,", ",").replace(" :", ":") for each in plain)


def test_what_is_measured_once_neither_rises_nor_falls(run, page) -> None:
    items = page.of("strong")
    assert GUIDE["input"].courses == GUIDE["certificate"].courses == []
    courses = sum(each.startswith(("If it rises", "If it falls", "If it stays flat")) for each in items)
    several = [each for each in run.instruments.values() if not each.declaration.once]
    assert len(several) < len(run.instruments)
    assert courses == 3 * len(several)


def test_only_what_has_eigenpairs_says_that_they_converged() -> None:
    event = replace(measured(3, 1.0), status=Status.CONVERGED)
    assert Status.CONVERGED.value in Page(run_html(made(event))).text
    bound = Certificate("hold_out", "fixed_network", 0.25, True, 9, 0.05)
    assert Status.CONVERGED.value not in Page(run_html(made(replace(event, certificate=bound)))).text


def test_the_seconds_of_the_cost_table_add_up_to_the_total() -> None:
    event = replace(measured(3, 1.0), cost=Cost(seconds=2.5))
    page = Page(run_html(made(event, event, measuring_seconds=19.0, earlier_seconds=12.0, training_seconds=100.0)))
    assert page.cells("Norm")[:3] == ["Norm", "2", "5.0"]
    assert page.cells("Before the run was resumed")[2] == "12.0"
    assert page.cells("Checks of the loss, trial runs and logging")[2] == "2.0"


def test_conditions_of_the_guarantee_are_a_list(run, page) -> None:
    certificate = next(e.certificate for e in reversed(run.instruments["bound"].measurements) if e.certificate)
    assert certificate.valid
    items = page.of("li")
    for condition in certificate.conditions:
        assert condition in items
    assert f"The user's statement about the prior: {certificate.prior}" in items
    assert page.text.count(certificate.conditions[0]) == 1


def test_texts_are_escaped_wherever_they_come_from() -> None:
    bound = Certificate(
        "hold_out", "fixed_network", math.nan, False, 9, 0.05, reasons=(Reason(f"{EVIL} reason"),), prior=EVIL
    )
    event = measured(1, 1.0, notes=(f"{EVIL} note",), certificate=bound)
    failed = replace(measured(2, 1.0), estimates={}, status=Status.FAILED, notes=(f"{EVIL} failed",))
    facts = {"folder": f"a/{EVIL}", "module": EVIL, "end": "ended", "metrics": {EVIL: 1.0}, "warnings": (EVIL,)}
    run = made(event, failed, title=EVIL, **facts)
    for text in (run_html(run), run_html([run, run], names=[EVIL, "b"], settings=[{EVIL: EVIL}, {}])):
        page = Page(text)
        assert EVIL not in text
        assert "script" not in page.tags()
        for said in (f"{EVIL} reason", f"{EVIL} failed", f"Logged: {EVIL}"):
            assert said in page.text


def test_a_run_that_did_not_end_says_so(run) -> None:
    page = Page(run_html(replace(run, facts=replace(run.facts, end=""))))
    assert (
        "This run did not end: it is still running or was killed, and its last measurement is at step 15." in page.text
    )
    ended = Page(run_html(run))
    assert "did not end" not in ended.text
    assert "Training ended after 4 epochs and 16 optimiser steps." in ended.text


def test_what_is_missing_has_its_reason() -> None:
    failures = [
        replace(measured(step, 0.0), estimates={}, status=Status.FAILED, notes=("ValueError: no luck",))
        for step in (3, 5)
    ]
    unresolved = replace(measured(7, 1.0), estimates={"size": Estimate(1.0, status=Status.UNRESOLVED)})
    items = Page(run_html(made(*failures, unresolved))).text
    assert "Norm , the measurements at step 3, 5: ValueError: no luck" in items
    assert f"Norm , size at step 7: {Status.UNRESOLVED.value}" in items
    absent = replace(measured(7, 1.0, name="other"), notes=("No layer has weights.",))
    assert "Norm , size at step 7: No layer has weights." in Page(run_html(made(absent))).text
    assert "Norm , all values: Missing: no measurement was made." in Page(run_html(made())).text
    assert "Nothing: every measurement gave its values." in Page(run_html(made(measured(1, 2.0)))).text


def test_skipped_rounds_show_in_the_intervals() -> None:
    regular = made(*(measured(step, 1.0) for step in (0, 10, 20, 30, 33)))
    assert "were skipped" not in Page(run_html(regular)).text
    stretched = made(*(measured(step, 1.0) for step in (0, 10, 20, 60, 63)))
    assert "Norm was measured every 10 to 40 steps." in Page(run_html(stretched)).text


def test_several_runs_differences_first() -> None:
    shared = {"module": "Net", "end": "ended"}
    one = made(measured(3, 10.0, error=0.5), folder="logs/a", num_parameters=100, epochs=2, **shared)
    two = made(measured(3, 10.8, error=0.5), folder="logs/b", num_parameters=100, epochs=3, **shared)
    page = Page(run_html([one, two], settings=[{"lr": "0.1", "seed": "1"}, {"lr": "0.2", "seed": "1"}]))
    assert page.of("h2")[:2] == ["Five answers", "What differs"]
    assert page.cells("lr") == ["lr", "0.1", "0.2"]
    assert page.cells("Completed epochs") == ["Completed epochs", "2", "3"]
    assert "seed" not in page.text
    # The errors explain the difference, so the number is among those that do not differ.
    folded = page.text.index("facts and numbers that do not differ")
    assert page.text.index("size Length of the weights.") > folded
    assert "Main numbers that differ" not in page.text
    three = made(measured(3, 12.0, error=0.5), folder="logs/c", num_parameters=100, epochs=3, **shared)
    page = Page(run_html([one, two, three]))
    assert page.cells("size Length of the weights.")[1:] == ["10.00 +- 0.50", "10.80 +- 0.50", "12.00 +- 0.50"]
    assert "Main numbers that differ by more than their errors" in page.text
    assert [heading for heading in page.of("summary") if heading in "abc"] == ["a", "b", "c"]


def test_a_number_that_one_run_lacks_differs() -> None:
    page = Page(run_html([made(measured(3, 10.0), folder="a"), made(folder="b")]))
    assert page.cells("size Length of the weights.")[1:] == ["10", "\N{EN DASH}"]
    assert "Main numbers that differ" in page.text


def test_pictures_are_inside_the_page_or_it_says_what_they_need(run, page, monkeypatch) -> None:
    images = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(images) == 1
    assert images[0]["src"].startswith("data:image/png;base64,iVBOR")
    assert images[0]["alt"]
    together = Page(run_html([run, run], names=["a", "b"]))
    assert len([1 for tag, _ in together.seen if tag == "img"]) == 3
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    without = Page(run_html(run))
    assert "img" not in without.tags()
    assert "lightning-sloppy[plot]" in without.text
    assert card(run).lines[0][1] in without.text


@pytest.mark.slow
def test_two_hundred_measurements_stay_below_three_megabytes(run) -> None:
    instruments = {
        name: replace(each, measurements=each.measurements * (200 // len(each.measurements) + 1))
        for name, each in run.instruments.items()
    }
    text = run_html(replace(run, instruments=instruments))
    assert min(len(each.measurements) for each in instruments.values()) >= 200
    assert len(text.encode()) < 3e6


def test_names_and_settings_are_one_for_each_run(run) -> None:
    with pytest.raises(ConfigurationError, match="pass one or several"):
        run_html([])
    with pytest.raises(ConfigurationError, match="1 runs, 2 names"):
        run_html(run, names=["a", "b"])


def test_settings_are_read_as_text_and_never_executed(tmp_path) -> None:
    (tmp_path / "hparams.yaml").write_text(
        "width: 64\nact: !!python/name:torch.nn.functional.relu ''\nevil: !!python/object/apply:os.system ['exit 1']\n"
    )
    (tmp_path / "config.yaml").write_text("model:\n  widths: [64, 10]\n  parts:\n  - lr: 0.1\nseed_everything: 1\n")
    found = settings_in(tmp_path)
    assert found["model.widths"] == "64, 10"
    assert found["model.parts.0.lr"] == "0.1"
    assert found["width"] == "64"
    assert found["evil"] == "exit 1"
    (tmp_path / "config.yaml").write_text("a: [")
    assert "width" in settings_in(tmp_path)
    assert settings_in(tmp_path / "nowhere") == {}


def test_every_instrument_of_the_package_has_a_place_in_the_report() -> None:
    run = Run({name: InstrumentRun(name, declared) for name, declared in DECLARED.items()})
    page = Page(run_html(run))
    for declared in DECLARED.values():
        assert declared.title in page.of("h3")
