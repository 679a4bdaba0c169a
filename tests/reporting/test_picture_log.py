"""Which rounds get a picture, how each kind of logger takes it, and what happens to errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_sloppy.reporting import picture_log
from lightning_sloppy.reporting.picture import picture
from lightning_sloppy.reporting.picture_log import DRAWN_ROUNDS, FILE, TAG, PictureLog
from lightning_sloppy.runs.run import Run, RunFacts


class SimpleTrainer(SimpleNamespace):
    __hash__ = object.__hash__


class Board:
    """Takes images as TensorBoard's writer does."""

    def __init__(self) -> None:
        self.images: list[tuple[str, Any, int]] = []

    def add_image(self, tag: str, image: Any, step: int, dataformats: str = "CHW") -> None:
        assert dataformats == "HWC"
        self.images.append((tag, image, step))


class Client:
    """Takes figures as the client of MLflow does."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, Any, str]] = []

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        self.figures.append((run_id, figure, artifact_file))


class Comet:
    def __init__(self) -> None:
        self.figures: list[tuple[str, Any, int]] = []

    def log_figure(self, figure_name: str | None = None, figure: Any = None, overwrite: bool = False, step: int = 0):
        self.figures.append((figure_name, figure, step))


class WeightsAndBiases:
    experiment = SimpleNamespace()

    def __init__(self) -> None:
        self.images: list[tuple[str, list[Any], int]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images.append((key, images, step))


def trainer(*loggers: object) -> SimpleTrainer:
    return SimpleTrainer(loggers=list(loggers))


def run_in(folder: Path | str = "") -> Run:
    return Run({}, RunFacts(folder=str(folder), metrics={"val_acc": 0.9}))


def draw_often(log: PictureLog, of: SimpleTrainer, times: int) -> None:
    for step in range(times):
        log.draw(of, run_in, step=step)


def test_tensorboard_never_gets_more_than_ten_pictures() -> None:
    board = Board()
    log, of = PictureLog(resumed=False), trainer(SimpleNamespace(experiment=board))
    log.draw = lambda trainer, run, *, step, loggers=True, last=False: board.images.append(step) or 0.0  # type: ignore
    for step in range(5000):
        for instrument in range(3):
            log.measured(of, step, run_in, complete=instrument == 2)
    assert board.images == [number - 1 for number in DRAWN_ROUNDS]
    assert board.images[0] == 0
    assert len(board.images) + 1 == 10  # and the last one


def test_a_round_that_is_not_known_to_be_complete_waits_for_the_next() -> None:
    board = Board()
    log, of = PictureLog(resumed=False), trainer(SimpleNamespace(experiment=board))
    log.measured(of, 0, run_in, complete=False)
    assert board.images == []
    log.measured(of, 5, run_in, complete=False)
    log.measured(of, 5, run_in, complete=True)
    assert [step for _, _, step in board.images] == [5]


def test_each_logger_gets_it_in_its_own_way(tmp_path: Path) -> None:
    board, client, comet, wandb = Board(), Client(), Comet(), WeightsAndBiases()
    mlflow = SimpleNamespace(experiment=client, run_id="run-7")
    none = SimpleNamespace(experiment=SimpleNamespace())
    of = trainer(SimpleNamespace(experiment=board), mlflow, SimpleNamespace(experiment=comet), wandb, none, object())
    PictureLog(resumed=False).draw(of, lambda: run_in(tmp_path), step=9)
    ((tag, image, step),) = board.images
    assert (tag, step, image.shape, image.dtype) == (TAG, 9, (450, 1200, 3), np.uint8)
    assert image.min() < 50 < 250 < image.max()  # something is drawn
    assert [(run_id, name) for run_id, _, name in client.figures] == [("run-7", f"{TAG}/step_9.png")]
    assert [(name, step) for name, _, step in comet.figures] == [(TAG, 9)]
    assert [(key, step) for key, _, step in wandb.images] == [(TAG, 9)]
    np.testing.assert_array_equal(wandb.images[0][1][0], image)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_prefix_of_a_logger_is_before_the_tag() -> None:
    first, second = Board(), Board()
    of = trainer(SimpleNamespace(experiment=first, own="a-"), SimpleNamespace(experiment=second, own=""))
    PictureLog(resumed=False, prefix_of=lambda logger: logger.own).draw(of, run_in, step=0)
    assert [board.images[0][0] for board in (first, second)] == [f"a-{TAG}", TAG]


def test_the_last_file_has_more_pixels(tmp_path: Path) -> None:
    log, of = PictureLog(resumed=False), trainer(CSVLogger(tmp_path))
    widths = []
    for last in (False, True):
        log.draw(of, lambda: run_in(tmp_path / "new"), step=1, last=last)
        widths.append(int.from_bytes((tmp_path / "new" / FILE).read_bytes()[16:20], "big"))
    assert widths == [1200, 1800]


def test_nothing_is_drawn_where_nobody_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(picture_log, "picture", lambda run: drawn.append(run) or picture(run))
    PictureLog(resumed=False).draw(trainer(object()), run_in, step=1)
    assert drawn == []
    board = Board()
    PictureLog(resumed=False).draw(trainer(object(), SimpleNamespace(experiment=board)), run_in, step=1)
    assert len(drawn) == len(board.images) == 1


def test_a_resumed_fit_adds_one_picture_to_loggers_and_keeps_the_file_up_to_date(tmp_path: Path) -> None:
    board = Board()
    log, of = PictureLog(resumed=True), trainer(SimpleNamespace(experiment=board))
    log.measured(of, 40, lambda: run_in(tmp_path), complete=True)
    assert board.images == []
    assert (tmp_path / FILE).exists()
    log.draw(of, lambda: run_in(tmp_path), step=50, last=True)
    assert [step for _, _, step in board.images] == [50]


def test_a_logger_that_raises_warns_once_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken(Board):
        def add_image(self, *args: Any, **options: Any) -> None:
            raise ConnectionError("no network")

    board = Board()
    log, of = (
        PictureLog(resumed=False),
        trainer(SimpleNamespace(experiment=Broken()), SimpleNamespace(experiment=board)),
    )
    with pytest.warns(UserWarning, match="could not log the picture of the run: ConnectionError") as caught:
        draw_often(log, of, 2)
    assert len(caught) == 1
    assert len(board.images) == 2


def test_an_error_in_drawing_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(run: Run) -> None:
        tried.append(run)
        raise ValueError("a wrong number")

    monkeypatch.setattr(picture_log, "picture", fails)
    log, of = PictureLog(resumed=False), trainer(SimpleNamespace(experiment=Board()))
    with pytest.warns(UserWarning, match="could not be drawn: ValueError: a wrong number") as caught:
        draw_often(log, of, 3)
    assert len(caught) == 1
    assert len(tried) == 1
    with pytest.warns(UserWarning, match="could not be drawn"):
        PictureLog(resumed=False).draw(of, lambda: 1 / 0, step=1)  # type: ignore
