from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_sloppy.reporting.progress import progress

TITLE = "Hessian: measuring on 1,024 samples"
SHORT = "Hessian"

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec.*deprecated", "ignore:.*is a wrapper of"
)


class Working(Callback):
    """Works for five steps at train start and after every batch, and remembers how many tasks the bar then has."""

    def __init__(self, total=5, patience=0.0):
        self.total, self.patience, self.tasks, self.visible = total, patience, [], []

    def _work(self, trainer):
        with progress(trainer, TITLE, self.total, patience=self.patience) as shown:
            for _ in range(5):
                shown.advance()
            live = getattr(trainer.progress_bar_callback, "progress", None)
            ours = [t for t in live.tasks if t.description == SHORT] if live is not None else []
            self.visible.append([(t.completed, t.visible) for t in ours])
        self.tasks.append([t.visible for t in ours])

    def on_train_start(self, trainer, pl_module):
        self._work(trainer)

    def on_train_batch_end(self, trainer, *args):
        self._work(trainer)


def fit(tmp_path, *callbacks: Callback, **options) -> Trainer:
    options = {"enable_progress_bar": True, "max_epochs": 2, **options}
    run = Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        limit_train_batches=2,
        limit_val_batches=1,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    run.fit(BoringModel())
    return run


@quiet
@pytest.mark.parametrize("total", [5, None])
def test_rich_shows_one_task_and_hides_it_again(tmp_path, capsys, total):
    working = Working(total)
    fit(tmp_path, working, RichProgressBar())
    assert working.visible == [[(5, True)]] * 5
    assert working.tasks == [[False]] * 5


@quiet
def test_rich_before_its_display_exists_prints_one_line(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    working = Working()
    fit(tmp_path, working, RichProgressBar(), num_sanity_val_steps=0, max_epochs=1)
    assert working.visible[0] == []
    assert working.visible[1:] == [[(5, True)]] * 2
    assert [r.message for r in caplog.records if TITLE in r.message] == [f"{TITLE}, ..."]


@quiet
def test_tqdm_shows_a_line_below_the_bars(tmp_path, capsys):
    fit(tmp_path, Working(), TQDMProgressBar())
    assert f"{SHORT}: " in capsys.readouterr().out


@quiet
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_short_work_shows_nothing(tmp_path, capsys, caplog, bar):
    caplog.set_level(logging.INFO)
    fit(tmp_path, Working(patience=60.0), bar(), max_epochs=1)
    assert SHORT not in capsys.readouterr().out + caplog.text


@quiet
def test_a_user_without_progress_bar_is_left_in_peace(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    fit(tmp_path, Working(), enable_progress_bar=False, max_epochs=1)
    fit(tmp_path, Working(), TQDMProgressBar(refresh_rate=0), max_epochs=1)
    captured = capsys.readouterr()
    assert SHORT not in captured.out + captured.err + caplog.text


def test_an_unknown_bar_gets_one_line(caplog):
    caplog.set_level(logging.INFO)
    with progress(SimpleNamespace(progress_bar_callback=object()), TITLE, patience=0.0) as shown:
        shown.advance()
        shown.advance(3)
    assert [r.message for r in caplog.records] == [f"{TITLE}, ..."]


class BrokenBar:
    process_position = "not a number"

    @property
    def train_progress_bar(self):
        raise RuntimeError("the terminal is gone")


def test_a_broken_display_costs_one_warning_and_not_the_work():
    run, done = SimpleNamespace(progress_bar_callback=BrokenBar()), []
    with progress(run, TITLE, 3, patience=0.0) as shown:
        with pytest.warns(UserWarning, match="terminal is gone"):
            shown.advance()
        for _ in range(3):  # a second warning would be an error here
            shown.advance()
            done.append(True)
    assert len(done) == 3


def test_errors_of_the_work_itself_pass_through():
    run = SimpleNamespace(progress_bar_callback=None)
    with pytest.raises(ZeroDivisionError), progress(run, TITLE) as shown:
        shown.advance(1 // 0)
