"""The picture in a fit: where it goes, what it costs, and that it changes nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.tiny import Classifier, blobs
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, InputSpectrum, SloppyMonitor
from lightning_sloppy.reporting import picture_log
from lightning_sloppy.reporting.picture_log import FILE, TAG


def fit(*callbacks: Any, epochs: int = 5, logger: Any = False, folder: Path | None = None) -> Trainer:
    torch.manual_seed(3)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=logger, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(blobs(), batch_size=16), DataLoader(blobs(seed=1), batch_size=16))
    return trainer


def images(logger: TensorBoardLogger, tag: str = TAG) -> list[Any]:
    read = EventAccumulator(logger.log_dir, size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    return read.Images(tag) if tag in read.Tags()["images"] else []


def test_loggers_get_it_after_rounds_1_2_4_and_at_the_end(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), SloppyMonitor()
    fit(monitor, logger=logger)
    # Rounds at steps 0, 2, 5, 8, 11, 14: 3 steps an epoch.
    assert [each.step for each in images(logger)] == [0, 2, 8, 14]
    assert {(each.width, each.height) for each in images(logger)} == {(1200, 450)}
    assert (Path(logger.log_dir) / FILE).stat().st_size > 10_000


def test_every_round_is_complete_when_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = [], picture_log.picture
    monkeypatch.setattr(picture_log, "picture", lambda run: drawn.append(run) or real(run))
    fit(SloppyMonitor(), logger=CSVLogger(tmp_path))
    steps = [{name: each.measurements[-1].step for name, each in run.instruments.items()} for run in drawn]
    for found, step in zip(steps, (0, 2, 8, 14), strict=True):
        assert found == {"jacobian": step, "input": 0, "hessian": step, "fisher": step, "bound": step}


def test_plot_shows_the_record(tmp_path: Path) -> None:
    monitor = SloppyMonitor()
    fit(monitor)
    left = monitor.plot().axes[0]
    spectrum = monitor.latest["jacobian"].spectrum
    kept = spectrum.eigenvalues[spectrum.eigenvalues > spectrum.floor]
    drawn = next(line for line in left.get_lines() if str(line.get_label()).startswith("Jacobian"))
    np.testing.assert_allclose(drawn.get_ydata(), (kept / spectrum.trace.value).numpy())
    assert monitor.plot()._repr_png_().startswith(b"\x89PNG")
    assert [text.get_text() for text in FisherSpectrum().plot().axes[0].texts] == ["No spectrum was measured."]


def test_the_null_of_the_inputs_is_in_the_record() -> None:
    callback = InputSpectrum()
    fit(callback, epochs=1)
    null = callback.latest.companions["null"]
    ratio = float(null.eigenvalues.sum() ** 2 / null.eigenvalues.square().sum())
    assert ratio == pytest.approx(callback.latest.estimates["null_participation_ratio"].value)
    assert "null" in [text.get_text() for text in callback.plot().axes[0].get_legend().get_texts()]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(SloppyMonitor(picture=False), logger=logger)
    assert images(logger) == []
    assert not (Path(logger.log_dir) / FILE).exists()


def test_single_callbacks_draw_it_too(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="mine")
    fit(InputSpectrum(), logger=logger, epochs=1)
    assert [each.step for each in images(logger, f"mine-{TAG}")] == [
        0,
        0,
    ]  # the only round, and the end with the errors


def test_weights_and_random_streams_are_those_of_a_fit_without_it(tmp_path: Path) -> None:
    weights, streams = [], []
    for number, picture in enumerate((True, False)):
        trainer = fit(SloppyMonitor(picture=picture), logger=TensorBoardLogger(tmp_path / str(number)))
        weights.append(torch.cat([p.detach().flatten() for p in trainer.lightning_module.parameters()]))
        streams.append((torch.get_rng_state(), np.random.get_state()[1]))  # noqa: NPY002
    assert torch.equal(*weights)
    assert torch.equal(streams[0][0], streams[1][0])
    np.testing.assert_array_equal(streams[0][1], streams[1][1])


def test_its_time_counts_as_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = picture_log.picture

    def slow(run: Any) -> Any:
        time.sleep(0.3)
        return real(run)

    monkeypatch.setattr(picture_log, "picture", slow)
    monitor = SloppyMonitor(hessian=None, fisher=None, jacobian=None)
    fit(monitor, logger=CSVLogger(tmp_path), epochs=1)
    spent = sum(event.cost.seconds for events in monitor.measurements.values() for event in events)
    assert monitor.record().facts.measuring_seconds > spent + 0.6  # two pictures


def test_an_error_in_drawing_never_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Any) -> None:
        raise ValueError("a wrong number")

    monkeypatch.setattr(picture_log, "picture", fails)
    with pytest.warns(UserWarning, match="could not be drawn") as caught:
        trainer = fit(SloppyMonitor(strict=True), logger=TensorBoardLogger(tmp_path))
    assert len([each for each in caught if "could not be drawn" in str(each.message)]) == 1
    assert trainer.current_epoch == 5


def test_without_matplotlib_the_summary_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(SloppyMonitor(), logger=TensorBoardLogger(tmp_path))
    said = " ".join(caplog.text.split())
    assert said.count("No picture of the run was drawn.") == 1
    assert "pip install 'lightning-sloppy[plot]'" in said
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(SloppyMonitor(picture=False), logger=TensorBoardLogger(tmp_path))
    assert "No picture" not in caplog.text


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    monitor, logger = SloppyMonitor(hessian=None, fisher=None), TensorBoardLogger(tmp_path)
    for _ in range(2):
        fit(monitor, logger=logger, epochs=1)
    assert [each.step for each in images(logger)] == [0, 2, 2, 0, 2, 2]
