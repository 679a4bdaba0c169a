from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.instruments import DECLARED
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_sloppy.probing.trainer_internals import logger_prefix
from lightning_sloppy.quantities import SUFFIXES, Declaration, Quantity
from lightning_sloppy.reporting.layout import layout, start_tags, write_layout
from lightning_sloppy.reporting.tags import expected_tags

ALL = list(DECLARED.values())
LOGGABLE = {name for declaration in ALL for name in expected_tags(declaration)}
ENTRIES = [
    (title, kind, entry)
    for charts in layout(ALL).values()
    for title, (kind, entries) in charts.items()
    for entry in entries
]


@pytest.mark.parametrize(("title", "kind", "entry"), ENTRIES)
def test_each_entry_matches_exactly_one_loggable_tag(title, kind, entry):
    if kind == "Margin":
        assert entry in LOGGABLE, title
    else:
        assert entry.endswith("$")
        assert [t for t in LOGGABLE if re.match(entry, t)] == [entry[:-1]], title


def test_margins_are_value_lower_upper():
    margins = [entries for charts in layout(ALL).values() for kind, entries in charts.values() if kind == "Margin"]
    assert margins
    for value, lower, upper in margins:
        ends = ("low", "high") if lower.endswith("_low") else ("coarse", "fine")
        assert (lower, upper) == (f"{value}_{ends[0]}", f"{value}_{ends[1]}")


def test_every_instrument_with_curves_and_the_costs_have_a_chart():
    shown = {entry.split("/")[0] for _, _, entry in ENTRIES}
    assert shown == {f"sloppy_{group}" for group in (*DECLARED, "cost")} - {"sloppy_input", "sloppy_certificate"}
    everything = layout([replace(declaration, detail="all") for declaration in ALL])
    assert {"Sloppy: Inputs", "Sloppy: Certificate"} <= set(everything)


def test_the_page_starts_with_four_charts_of_one_curve():
    first, charts = next(iter(layout(ALL).items()))
    assert first == "Start here"
    assert list(charts.values()) == [
        ["Multiline", ["sloppy_bound/pac_bayes$"]],
        ["Multiline", ["sloppy_bound/hold_out$"]],
        ["Multiline", ["sloppy_jacobian/effective_dimension$"]],
        ["Multiline", ["sloppy_cost/overhead$"]],
    ]
    fewer = layout([DECLARED["input"], DECLARED["fisher"]])["Start here"]
    assert [entries[0] for _, entries in fewer.values()] == [
        "sloppy_fisher/effective_dimension$",
        "sloppy_cost/overhead$",
    ]
    assert start_tags(ALL) == [
        "sloppy_bound/pac_bayes",
        "sloppy_bound/hold_out",
        "sloppy_jacobian/effective_dimension",
        "sloppy_cost/overhead",
    ]


def test_in_every_category_lines_come_before_bands_as_the_page_shows_them():
    for charts in layout(ALL).values():
        kinds = [kind == "Margin" for kind, _ in charts.values()]
        assert kinds == sorted(kinds)


def test_the_band_of_a_dimension_is_not_called_an_error_band():
    for charts in layout(ALL).values():
        for title, (kind, entries) in charts.items():
            if kind == "Margin":
                assert title.endswith("not an error") == entries[1].endswith("_coarse")


def test_a_prefix_is_part_of_every_entry(tmp_path):
    for charts in layout(ALL, "a.b-").values():
        for kind, entries in charts.values():
            for entry in entries:
                assert entry.startswith("a.b-sloppy_" if kind == "Margin" else r"a\.b\-sloppy_")
    logger = TensorBoardLogger(tmp_path, prefix="a.b")
    write_layout(runs(logger), ALL, logger_prefix)
    logger.log_metrics({"sloppy_bound/hold_out": 1.0}, step=0)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    (written,) = events.Tensors("custom_scalars__config__")
    first = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]).category[0]
    chart = next(chart for chart in first.chart if chart.title.startswith("Hold-out bound"))
    assert re.match(chart.multiline.tag[0], events.Tags()["scalars"][0])


def test_a_band_has_a_chart_of_its_own_beside_the_curves_that_share_its_title():
    low, high = Quantity("low", "Less."), Quantity("high", "More.")
    value = Quantity("value", "It.", chart="Size", band=("low", "high"), estimated=True, headline=True)
    half = Quantity("half", "Half of it.", chart="Size")
    alone = layout([Declaration("a", "A", [value, low, high])])["Sloppy: A"]
    assert alone == {
        "Size": ["Margin", ["sloppy_a/value", "sloppy_a/low", "sloppy_a/high"]],
        "Size: errors": ["Multiline", [f"sloppy_a/value{suffix}$" for suffix in SUFFIXES]],
    }
    both = layout([Declaration("a", "A", [value, low, high, half])])["Sloppy: A"]
    assert both["Size"] == ["Multiline", ["sloppy_a/value$", "sloppy_a/half$"]]
    assert both["Size: band"] == alone["Size"]


class SimpleTrainer(SimpleNamespace):
    __hash__ = object.__hash__


def runs(*loggers):
    return SimpleTrainer(loggers=list(loggers), is_global_zero=True)


def layouts(folder) -> list[list[str]]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    return [
        [c.title for c in layout_pb2.Layout.FromString(e.tensor_proto.string_val[0]).category]
        for e in events.Tensors("custom_scalars__config__")
    ]


def test_the_layout_is_written_once_for_each_run(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer = runs(CSVLogger(tmp_path / "csv"), logger)
    write_layout(trainer, ALL)
    write_layout(trainer, ALL)
    logger.finalize("success")
    assert layouts(logger.log_dir) == [list(layout(ALL))]


def test_a_resumed_run_keeps_its_layout(tmp_path):
    for _ in range(2):
        logger = TensorBoardLogger(tmp_path, version=0)
        write_layout(runs(logger), ALL)
        logger.finalize("success")
        logger.experiment.close()
    assert len(layouts(logger.log_dir)) == 1


def test_the_users_layout_wins(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["train_loss"]]}})
    write_layout(runs(logger), ALL)
    logger.finalize("success")
    assert layouts(logger.log_dir) == [["mine"]]


def test_other_ranks_write_nothing(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    write_layout(SimpleTrainer(loggers=[logger], is_global_zero=False), ALL)
    assert logger._experiment is None
