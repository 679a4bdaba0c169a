"""docs/you_see_this.md shows every run of ``make pictures``, with pictures that are small enough to load quickly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lightning_sloppy.reporting.canvas import png

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "you_see_this.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_every_run(maker: ModuleType) -> None:
    shown = re.findall(r"!\[[^\]]+\]\(pictures/(\w+)\.png\)", PAGE)
    assert sorted(shown) == sorted(maker.RUNS)
    assert sorted(path.stem for path in (DOCS / "pictures").glob("*.png")) == sorted(maker.RUNS)


def test_the_pictures_are_small_and_1200_pixels_wide() -> None:
    for path in (DOCS / "pictures").glob("*.png"):
        content = path.read_bytes()
        assert len(content) < 150_000, path
        assert int.from_bytes(content[16:20], "big") == 1200, path


def test_data_of_the_runs_are_what_they_say(maker: ModuleType) -> None:
    plain, random, repeated = maker.DigitsDataModule(64), maker.RandomLabels(64), maker.RepeatedColumns(64)
    for data in (plain, random, repeated):
        data.setup("fit")
    inputs, targets = plain.train_set.tensors
    assert (random.train_set.tensors[0] == inputs).all()
    assert (random.train_set.tensors[1] == targets).float().mean() < 0.2
    assert (random.val_set.tensors[1] == plain.val_set.tensors[1]).all()
    assert (repeated.train_set.tensors[0][:, 64:128] == inputs).all()
    assert repeated.val_set.tensors[0].shape[1] == 192


@pytest.mark.slow
def test_a_run_is_drawn_the_same_twice(maker: ModuleType) -> None:
    first, second = (png(maker.fitted((64, 4, 10), epochs=1).plot()) for _ in range(2))
    assert first == second
