"""What the interactive prompt and a notebook show of records and callbacks: short, the telling numbers first."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import Classifier, blobs, loader, trainer

import lightning_sloppy
from lightning_sloppy import (
    Certificate,
    Cost,
    EffectiveDimensionEarlyStopping,
    Estimate,
    FisherSpectrum,
    HessianSpectrum,
    Instrument,
    Measurement,
    SloppyMonitor,
    Status,
    fisher_spectrum,
    inspect,
)
from lightning_sloppy.callbacks.distance_to_init import DistanceToInit
from lightning_sloppy.certificate import Reason
from lightning_sloppy.display import number

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def test_per_cent_has_one_form_in_all_texts():
    package = Path(lightning_sloppy.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in [*package.rglob("*.py"), *package.rglob("templates/*.html")]
        for line in path.read_text().splitlines()
        if re.search(r":\.?\d*%\}", line) or (path.suffix == ".py" and re.search(r"[\w}]% ", line))
    ]
    assert found == []


class Table(HTMLParser):
    """Cells of a table; fails on anything that would load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in {"table", "caption", "b", "tr", "th", "td"}
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)
        if tag in {"th", "td", "caption"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    torch.manual_seed(0)
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=24), early_stopping=EffectiveDimensionEarlyStopping(), strict=True
    )
    trainer(tmp_path_factory.mktemp("shown"), callbacks=[watcher], max_epochs=2).fit(Classifier(), loader(blobs(64)))
    return watcher


def everything(monitor):
    run = monitor.record()
    measurements = [each for instrument in run.instruments.values() for each in instrument.measurements]
    spectra = [each.spectrum for each in measurements if each.spectrum is not None]
    certificates = [each.certificate for each in measurements if each.certificate is not None]
    report = inspect(np.random.default_rng(0).normal(size=(80, 5)))
    return [monitor, run, *run.instruments.values(), *measurements, *spectra, *certificates, *monitor.parts, report]


def test_a_repr_has_five_lines_and_no_tensor(monitor):
    shown = everything(monitor)
    assert len({type(each) for each in shown}) >= 12
    for each in shown:
        text = repr(each)
        assert text.startswith(f"{type(each).__name__}(")
        assert text.endswith(")")
        assert len(text.splitlines()) <= 5
        assert max(map(len, text.splitlines())) <= 100
        assert "tensor" not in text


def test_the_table_of_a_notebook_says_the_same_and_loads_nothing(monitor):
    for each in everything(monitor):
        html = each._repr_html_()
        assert len(html) < 4000
        cells = Table(html).cells
        assert len(cells) >= 3
        flat = " ".join(repr(each).split())
        if not flat.endswith("...)"):
            assert all(re.sub(r"\s+", " ", cell).removesuffix(" ...") in flat for cell in cells[2::2])


def test_the_telling_numbers_come_first(monitor):
    measurement = monitor.latest["jacobian"]
    dimension = measurement.estimates["effective_dimension"].value
    shown = number(dimension)
    assert repr(measurement).startswith(
        f"Measurement(jacobian, step {measurement.step}, epoch 1: effective_dimension {shown},"
    )
    assert f"jacobian: effective_dimension {shown} (3 measurements)" in " ".join(repr(monitor).split())
    assert repr(monitor).endswith("not measured: early_stopping)")
    spectrum = measurement.spectrum
    assert repr(spectrum).startswith(f"Spectrum(jacobian: largest {number(spectrum.largest)}, smallest")
    assert f"eigenvalues {len(spectrum.eigenvalues)} of 83" in " ".join(repr(spectrum).split())


def test_before_a_fit_a_callback_shows_its_settings():
    assert repr(SloppyMonitor()) == "SloppyMonitor(parts: jacobian, input, hessian, fisher, bound)"
    assert repr(FisherSpectrum(num_samples=7)).startswith("FisherSpectrum(num_samples=7, seed=0, ")
    assert repr(DistanceToInit(0.25)).startswith("DistanceToInit(")
    assert "0.25" in repr(DistanceToInit(0.25))


def test_an_instrument_that_is_not_ready_can_be_named_by_an_error():
    class Early(Instrument):
        def __init__(self):
            pass

        def measure(self, trainer, pl_module, probe):
            raise NotImplementedError

        def cost_in_gradients(self, size):
            return 1.0

    assert repr(Early()) == "Early()"


def test_text_from_outside_is_escaped():
    named = Measurement(
        3, 0, "<b>norm</b>", None, {"size": Estimate(2.0, 0.25)}, Cost(), Status.EXACT, notes=("<script>&",)
    )
    html = named._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html
    assert "size 2.00 +- 0.25" in repr(named)


def test_long_names_and_notes_are_cut():
    long = {f"{'quantity_with_a_long_name_' * 4}{number}": Estimate(1.0) for number in range(9)}
    shown = repr(Measurement(3, 0, "norm", None, long, Cost(), Status.EXACT, notes=("word " * 100,)))
    assert len(shown.splitlines()) == 5
    assert shown.endswith(" ...)")


def test_a_bound_that_there_is_not_says_why():
    reason = Reason("The weights hold NaN, so that nothing can be certified; train again.", flag="not_finite")
    none = Certificate("pac_bayes_pair", "pair_of_draws", float("nan"), False, 600, 0.05, (reason,))
    assert repr(none).startswith("Certificate(pac_bayes_pair: bound none (not_finite), reason The weights hold NaN")
    vacuous = Certificate("hold_out", "fixed_network", 1.0, True, 600, 0.05)
    assert repr(vacuous).startswith("Certificate(hold_out: bound 1.0000 (guarantees nothing), probability 95 %")


def test_a_value_that_is_not_reliable_is_not_shown():
    doubtful = {"trace": Estimate(5.0, status=Status.UNRESOLVED), "size": Estimate(2.0)}
    shown = repr(Measurement(3, 0, "norm", None, doubtful, Cost(), Status.EXACT))
    assert "trace" not in shown
    assert "size 2, estimates 2 in all" in shown


def test_reprs_do_not_grow_with_the_spectrum():
    module = Classifier()
    found = fisher_spectrum(module, [blobs(64).tensors], torch.nn.functional.cross_entropy)
    assert len(found.eigenvalues) >= 64
    assert len(repr(found)) < 200
