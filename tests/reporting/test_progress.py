from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from support.screen import shown_in_a_terminal

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


def on_a_terminal() -> RichProgressBar:
    return RichProgressBar(console_kwargs={"force_terminal": True})


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
    fit(tmp_path, working, on_a_terminal())
    assert working.visible == [[(5, True)]] * 5
    assert working.tasks == [[False]] * 5


@quiet
def test_rich_before_its_display_exists_prints_one_line(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    working = Working()
    fit(tmp_path, working, on_a_terminal(), num_sanity_val_steps=0, max_epochs=1)
    assert working.visible[0] == []
    assert working.visible[1:] == [[(5, True)]] * 2
    assert [r.message for r in caplog.records if TITLE in r.message] == [f"{TITLE}, ..."]


@quiet
def test_tqdm_shows_a_line_below_the_bars(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
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


def test_a_broken_display_costs_one_warning_and_not_the_work(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
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


PROGRAM = """
    import sys, time, warnings
    warnings.filterwarnings("ignore")
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
    from lightning.pytorch.demos.boring_classes import BoringModel
    from lightning_sloppy.reporting.progress import progress

    class Working(Callback):
        def on_train_batch_end(self, trainer, *args):
            with progress(trainer, "Hessian: measuring on 1,024 samples", 5, patience=0.0) as shown:
                for _ in range(5):
                    time.sleep(0.11)
                    shown.advance()

    Trainer(
        max_epochs=2, limit_train_batches=2, limit_val_batches=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[Working(), {bar}()], default_root_dir=".",
    ).fit(BoringModel())
    print("finished")
"""


def program(tmp_path: Path, bar: str) -> list[str]:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(PROGRAM).replace("{bar}", bar))
    return [sys.executable, str(script)]


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_in_a_terminal_it_has_a_line_of_its_own_and_leaves_none(tmp_path, bar):
    screen = shown_in_a_terminal(program(tmp_path, bar), tmp_path)
    both = [picture for picture in screen.pictures if "Hessian" in picture and "Epoch" in picture]
    assert any("3/5" in picture or "4/5" in picture for picture in both), "it advances"
    assert both, "the bar of the work and that of the training are on the screen together"
    for picture in both:
        assert not any("Hessian" in line and "Epoch" in line for line in picture.splitlines()), picture
    assert "Hessian" not in screen.text
    assert screen.text.splitlines()[-1] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_in_a_log_file_it_is_one_line_for_the_whole_fit(tmp_path, bar):
    done = subprocess.run(program(tmp_path, bar), cwd=tmp_path, capture_output=True, timeout=120, check=True)
    assert b"Hessian" not in done.stdout
    assert done.stderr.count(b"Hessian: measuring on 1,024 samples, ...") == 1
    assert b"\r" not in done.stderr


@quiet
def test_in_a_notebook_without_widgets_it_is_one_line(tmp_path, capsys, caplog, monkeypatch):
    """Lines below others need a cursor that moves up, and the output of a cell has none."""
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    fit(tmp_path, Working(), TQDMProgressBar())
    written = capsys.readouterr().out
    assert SHORT not in written
    assert [r.message for r in caplog.records if TITLE in r.message] == [f"{TITLE}, ..."]


@quiet
def test_in_a_notebook_with_widgets_it_is_a_widget(tmp_path, capsys, caplog, monkeypatch):
    from lightning.pytorch.callbacks.progress import tqdm_progress

    made = []

    class tqdm_notebook(tqdm_progress.Tqdm):  # noqa: N801 - the name of tqdm
        def __init__(self, *args, **options):
            made.append(options.get("desc", ""))
            super().__init__(*args, **options)

    class Widget(tqdm_notebook):
        pass

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tqdm_progress, "Tqdm", Widget)
    fit(tmp_path, Working(), TQDMProgressBar(), max_epochs=1)
    assert made.count(SHORT) == 3
    assert TITLE not in caplog.text
