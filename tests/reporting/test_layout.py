from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_sloppy.reporting.layout import layout, write_layout
from lightning_sloppy.reporting.tags import GROUPS, SUFFIXES, all_tags, expected_tags

LOGGABLE = [*all_tags(), *(t + s for t in all_tags() for s in SUFFIXES)]
ENTRIES = [
    (title, kind, entry)
    for charts in layout().values()
    for title, (kind, entries) in charts.items()
    for entry in entries
]


@pytest.mark.parametrize(("title", "kind", "entry"), ENTRIES)
def test_each_entry_matches_exactly_one_loggable_tag(title, kind, entry):
    if kind == "Margin":
        assert entry in all_tags(), title
    else:
        assert entry.endswith("$")
        assert [t for t in LOGGABLE if re.match(entry, t)] == [entry[:-1]], title


def test_margins_are_value_lower_upper():
    margins = [entries for charts in layout().values() for kind, entries in charts.values() if kind == "Margin"]
    assert margins
    for value, lower, upper in margins:
        assert (lower, upper) == (f"{value}_coarse", f"{value}_fine")


def test_every_group_has_a_chart():
    shown = {entry.split("/")[0] for _, _, entry in ENTRIES}
    assert shown == {f"sloppy_{group}" for group in GROUPS}
    assert {e.removesuffix("$") for _, _, e in ENTRIES} <= {t for m in GROUPS[:5] for t in expected_tags(m)}


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
    write_layout(trainer)
    write_layout(trainer)
    logger.finalize("success")
    assert layouts(logger.log_dir) == [list(layout())]


def test_a_resumed_run_keeps_its_layout(tmp_path):
    for _ in range(2):
        logger = TensorBoardLogger(tmp_path, version=0)
        write_layout(runs(logger))
        logger.finalize("success")
        logger.experiment.close()
    assert len(layouts(logger.log_dir)) == 1


def test_the_users_layout_wins(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["train_loss"]]}})
    write_layout(runs(logger))
    logger.finalize("success")
    assert layouts(logger.log_dir) == [["mine"]]


def test_other_ranks_write_nothing(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    write_layout(SimpleTrainer(loggers=[logger], is_global_zero=False))
    assert logger._experiment is None
