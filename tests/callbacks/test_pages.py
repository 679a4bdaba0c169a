"""What a fit leaves for people: the summary, the text to read first, the layout, the final numbers, the places."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.instruments import record
from support.norms import Norms
from support.tiny import Classifier, Regressor, blobs, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lightning_sloppy import ConfigurationError, HessianSpectrum, JacobianSpectrum, SloppyMonitor
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting.card import card
from lightning_sloppy.reporting.pages import introduce

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")
TEXT = "sloppy_summary/read_me_first/text_summary"


class Saved(Classifier):
    def __init__(self, width: int = 8):
        super().__init__()
        self.save_hyperparameters()


def fitted(tmp_path, *, logger=None, module=None, epochs=1, **options) -> SloppyMonitor:
    torch.manual_seed(0)
    monitor = SloppyMonitor(**{"hessian": HessianSpectrum(k=2, num_samples=32), "fisher": None, **options})
    host = trainer(tmp_path, callbacks=[monitor], max_epochs=epochs, logger=logger or False)
    host.fit(module or Classifier(), loader())
    return monitor


def events(logger: TensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()


def texts(read: EventAccumulator, tag: str = TEXT) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)]


def test_the_text_to_read_first_is_written_at_the_start_and_at_the_end(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = fitted(tmp_path, logger=logger)
    begin, end = texts(events(logger))
    assert "The training has begun" in begin
    assert "The training has begun" not in end
    for heading, text in card(monitor.record()).lines:
        assert f"* **{heading}:** {text}" in end
    for group in ("sloppy_jacobian", "sloppy_input", "sloppy_hessian", "sloppy_bound", "sloppy_cost"):
        assert f"### {group}: " in begin
    for course in ("rises", "falls", "stays flat"):
        assert begin.count(f"**If it {course}:**") == 4, "not for the inputs, which are measured once"


def test_an_instrument_from_outside_is_explained_by_its_headlines(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, callbacks=[Norms()], max_epochs=1, logger=logger).fit(Classifier(), loader())
    end = texts(events(logger))[-1]
    for quantity in Norms().declaration.headlines:
        assert f"**{quantity.name.replace('_', ' ')}**: {quantity.explanation}" in end


@pytest.mark.parametrize("prefix", ["", "mine"])
def test_final_numbers_are_metrics_of_the_hyperparameters(tmp_path, prefix):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False, prefix=prefix)
    monitor = fitted(tmp_path, logger=logger, module=Saved(width=8))
    read = events(logger)
    metadata = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(metadata).experiment
    names = {info.name.tag for info in experiment.metric_infos}
    assert {"sloppy_final/effective_dimension", "sloppy_final/overhead", "sloppy_final/guess_error"} <= names
    assert {info.name for info in experiment.hparam_infos} == {"width", "num_parameters", "num_training_samples"}
    for name in names:  # the page looks for a scalar of exactly this name
        (point,) = read.Scalars(name)
        assert math.isfinite(point.value)
    jacobian = monitor.latest["jacobian"]
    (final,) = read.Scalars("sloppy_final/effective_dimension")
    assert final.value == pytest.approx(jacobian.estimates["effective_dimension"].value)
    assert final.step == jacobian.step
    curve = f"{prefix}-sloppy_jacobian/effective_dimension" if prefix else "sloppy_jacobian/effective_dimension"
    assert [point.step for point in read.Scalars(curve)] == sorted({m.step for m in monitor.measurements["jacobian"]})


def test_a_run_that_has_a_record_of_hyperparameters_gets_no_second_one_but_a_message(tmp_path, caplog):
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level(logging.INFO):
        fitted(tmp_path, logger=logger, module=Saved())
    assert "pass default_hp_metric=False to the TensorBoardLogger" in caplog.text
    assert not [name for name in events(logger).Tags()["scalars"] if "sloppy_final" in name]


def test_final_numbers_can_be_switched_off_and_other_loggers_get_none(tmp_path):
    logger, rows = TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")
    fitted(tmp_path, logger=[logger, rows], hparams=False)
    assert not [name for name in events(logger).Tags()["scalars"] if "sloppy_final" in name]
    assert "sloppy_final" not in (Path(rows.log_dir) / "metrics.csv").read_text()


def test_expert_curves_come_with_detail_all_and_monitors_have_them_always(tmp_path):
    found = {}
    for detail in ("main", "all"):
        logger = TensorBoardLogger(tmp_path / detail)
        torch.manual_seed(0)
        monitor = SloppyMonitor(hessian=None, bound=None, detail=detail)
        host = trainer(tmp_path, callbacks=[monitor], max_epochs=1, logger=logger)
        host.fit(Classifier(), loader())
        found[detail] = {name for name in events(logger).Tags()["scalars"] if name.startswith("sloppy_")}
        found[f"monitors {detail}"] = {name for name in host.callback_metrics if name.startswith("sloppy_")}
    assert found["monitors main"] == found["monitors all"]
    assert found["monitors all"] <= found["all"]
    assert found["main"] < found["all"]
    curves = {name for name in found["main"] if "sloppy_final" not in name}
    assert "sloppy_jacobian/effective_dimension" in curves
    assert not curves & {"sloppy_jacobian/n90", "sloppy_jacobian/num_parameters", "sloppy_input/participation_ratio"}
    with pytest.raises(ConfigurationError, match="detail='some' is unknown; pass 'main' or 'all'"):
        SloppyMonitor(detail="some")


def test_a_callback_alone_has_the_same_switches(tmp_path, caplog):
    logger, single = TensorBoardLogger(tmp_path), JacobianSpectrum()
    single.detail, single.closing = "all", "short"
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[single], max_epochs=1, logger=logger).fit(Classifier(), loader())
    assert "sloppy_jacobian/n90" in events(logger).Tags()["scalars"]
    assert "Network" in caplog.text
    assert "\nStop\n" not in caplog.text


@pytest.mark.parametrize(
    ("length", "level", "shown"),
    [
        ("full", logging.NOTSET, {"Network", "\nStop\n"}),
        ("short", logging.NOTSET, {"Network"}),
        (False, logging.NOTSET, set()),
        ("full", logging.WARNING, set()),
        ("short", logging.DEBUG, {"Network", "\nStop\n"}),
    ],
)
def test_the_summary_is_as_long_as_was_asked_for(tmp_path, caplog, length, level, shown):
    package = logging.getLogger("lightning_sloppy")
    package.setLevel(level)
    try:
        with caplog.at_level(logging.INFO):
            monitor = fitted(tmp_path, hessian=None, summary=length)
    finally:
        package.setLevel(logging.NOTSET)
    assert {word for word in ("Network", "\nStop\n") if word in caplog.text} == shown
    assert "\nStop\n" in monitor.summary()
    assert "\nStop\n" not in monitor.summary("short")
    assert dict(card(monitor.record()).lines)["Network"].split(":")[0] in " ".join(monitor.summary("short").split())


def test_a_wrong_length_is_refused():
    with pytest.raises(ConfigurationError, match="summary='long' is unknown; pass 'full', 'short' or False"):
        SloppyMonitor(summary="long")


def test_places_are_files_and_folders_that_exist(tmp_path):
    logger, rows = TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")
    monitor = fitted(tmp_path, logger=[logger, rows])
    places = dict(monitor.record().facts.loggers)
    assert places == {"TensorBoardLogger": logger.log_dir, "CSVLogger": str(Path(rows.log_dir) / "metrics.csv")}
    assert all(Path(place).exists() for place in places.values())
    assert f"tensorboard --logdir {logger.log_dir}" in monitor.summary()


def test_the_ratio_of_the_card_is_that_of_the_curve_and_of_the_parts(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = fitted(tmp_path, logger=logger, epochs=3)
    facts, curve = monitor.record().facts, events(logger).Scalars("sloppy_cost/overhead")
    assert facts.overhead == facts.measuring_seconds / facts.training_seconds
    (final,) = events(logger).Scalars("sloppy_final/overhead")
    assert final.value == pytest.approx(facts.overhead)
    # The last point was logged before the last measurements were published: they can only add to it.
    assert curve[-1].value == pytest.approx(facts.overhead, rel=0.5)
    parts = sum(m.cost.seconds for each in monitor.record().instruments.values() for m in each.measurements)
    rest = facts.measuring_seconds - parts
    assert rest >= 0
    assert f"Measuring took {facts.measuring_seconds:.1f} s beside" in monitor.summary()


def charts_with_curves(logger: TensorBoardLogger) -> dict[str, list[str]]:
    """Titles of the charts of each category; fails if one has no curve."""
    read = events(logger)
    (written,) = read.Tensors("custom_scalars__config__")
    scalars = read.Tags()["scalars"]
    categories = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]).category
    for chart in (chart for category in categories for chart in category.chart):
        bands = [tag for each in chart.margin.series for tag in (each.value, each.lower, each.upper)]
        entries = [*chart.multiline.tag, *bands]
        assert any(re.match(entry, name) for entry in entries for name in scalars), chart.title
    return {category.title: [chart.title for chart in category.chart] for category in categories}


@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound")
def test_what_cannot_come_has_no_chart(tmp_path):
    """No bound on the error of a regression, and no curve of what is measured once."""
    logger = TensorBoardLogger(tmp_path)
    targets = blobs().tensors[0][:, :2]
    data = torch.utils.data.TensorDataset(blobs().tensors[0], targets)
    monitor = SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=32), fisher=None)
    trainer(tmp_path, callbacks=[monitor], max_epochs=1, logger=logger).fit(Regressor(), loader(data))
    charts = charts_with_curves(logger)
    assert list(charts) == ["Start here", "Sloppy: Jacobian", "Sloppy: Hessian", "Sloppy: cost"]
    assert "there is no PAC-Bayes bound" in dict(card(monitor.record()).lines)["Guarantee"]


def test_a_band_whose_edges_are_missing_is_drawn_as_a_line():
    """TensorBoard draws no band if one of its edges misses a step."""
    whole = {f"effective_dimension{end}": Estimate(9.0) for end in ("", "_coarse", "_fine")}
    without = {**whole, "effective_dimension_fine": Estimate(9.0, status=Status.UNRESOLVED)}
    for estimates, kind in ((whole, "Margin"), (without, "Multiline")):
        measured = Measurement(0, 0, "jacobian", None, estimates, Cost(), Status.CONVERGED)
        written = []
        experiment = SimpleNamespace(add_custom_scalars=written.append)
        host = SimpleTrainer(loggers=[SimpleNamespace(experiment=experiment)], is_global_zero=True)
        assert introduce(host, record({"jacobian": [measured]}), step=0)
        charts = written[0]["Sloppy: Jacobian"]
        assert ("Margin" in [entry[0] for entry in charts.values()]) == (kind == "Margin")


class Penalised(Classifier):
    """Of its loss only the step as a whole is known."""

    def __init__(self):
        super().__init__()
        del self.loss_fn

    def training_step(self, batch, batch_idx):
        penalty = sum(each.square().sum() for each in self.parameters())
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1]) + 1e-2 * penalty


@pytest.mark.filterwarnings("ignore:.*training_step returned")
def test_where_only_the_loss_of_the_step_is_known_every_chart_has_data(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    options = {"jacobian": None, "bound": None, "hessian": HessianSpectrum(k=2, num_samples=32)}
    fitted(tmp_path, logger=logger, module=Penalised(), epochs=2, **options)
    charts = charts_with_curves(logger)
    assert "Largest and smallest eigenvalue" in charts["Sloppy: Hessian"]
    assert not [title for titles in charts.values() for title in titles if "Effective dimension" in title]


class SimpleTrainer(SimpleNamespace):
    __hash__ = object.__hash__
