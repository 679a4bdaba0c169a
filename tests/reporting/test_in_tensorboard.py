"""What a person sees in TensorBoard: the five answers as a text, the picture, and the charts to look at first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from support.browser import needs_chromium
from support.tensorboards import tensorboard, words_on

from lightning_sloppy import SloppyMonitor
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier
from lightning_sloppy.reporting.card import card
from lightning_sloppy.runs.run import Run

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Iterator[tuple[str, Run]]:
    """The address of TensorBoard for a short fit of the demo, and the record of that fit."""
    folder = tmp_path_factory.mktemp("demo")
    monitor = SloppyMonitor(report=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about the number of workers
        seed_everything(1, verbose=False)
        Trainer(
            max_epochs=2,
            callbacks=monitor,
            logger=TensorBoardLogger(folder, name="demo", version="run"),
            log_every_n_steps=5,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        ).fit(MLPClassifier(), DigitsDataModule())
    with tensorboard(folder) as address:
        yield address, monitor.record()


def test_the_text_page_has_the_five_answers(shown) -> None:
    address, run = shown
    words = words_on(address, "text")
    assert "sloppy_summary/read_me_first" in words
    for heading, said in card(run).lines:
        if heading != "Cost":  # it is measured until the end
            assert f"{heading}: {said}" in words


def test_the_images_page_has_the_picture(shown) -> None:
    words = words_on(shown[0], "images")
    assert "sloppy_summary/picture" in words
    assert "[image of 1200 pixels]" in words


def test_the_custom_scalars_page_starts_with_the_charts_to_look_at_first(shown) -> None:
    words = words_on(shown[0], "custom_scalars")
    start, rest = words.index("Start here"), words.index("Sloppy: ")
    assert start < rest
    first = words[start:rest]
    for tag in ("bound/pac_bayes", "bound/hold_out", "cost/overhead", "jacobian/effective_dimension"):
        assert f"sloppy_{tag} (demo/run)" in first
