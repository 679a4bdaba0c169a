"""Warnings point to the user's line."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from support.tiny import SAFELY, Classifier, loader, trainer

from lightning_sloppy import FisherSpectrum, Instrument, Quantity
from lightning_sloppy.user_warnings import warn_user

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line and "line_of" not in line)


def test_a_function_of_the_package_is_not_the_place():
    @contextlib.contextmanager
    def inside():
        warn_user("from a context")
        yield

    with pytest.warns(UserWarning, match="from a context") as caught:
        functools.partial(next, inside().gen)()
    assert caught[0].filename == __file__


class Failing(Instrument):
    quantities = (Quantity("length", "Length."),)

    def measure(self, trainer, pl_module, probe):
        raise ValueError("no length")


def test_a_callback_points_to_the_fit(tmp_path):
    host = trainer(tmp_path, callbacks=[Failing(num_samples=8)], max_epochs=1)
    with pytest.warns(UserWarning, match="no length") as caught:
        host.fit(Classifier(), loader())  # this line
    (ours,) = [each for each in caught if "no length" in str(each.message)]
    assert (ours.filename, ours.lineno) == (__file__, line_of("# this line"))


def test_settings_that_differ_after_a_resume_point_to_the_fit(tmp_path):
    first = trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=8)], max_epochs=1)
    first.fit(Classifier(), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    again = trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=9)], max_epochs=2)
    with pytest.warns(UserWarning, match="resumes with num_samples=9") as caught:
        again.fit(Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert {each.filename for each in caught if "resumes with" in str(each.message)} == {__file__}


def test_python_shows_one_line_once_and_another_line_again():
    def warn(message):
        warn_user(message)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("the same")
        warn("the same")
    assert [each.lineno for each in seen] == [line_of("        warn_user(message)")], "both calls end at one line"


@pytest.mark.slow
def test_what_a_person_reads_names_their_script(tmp_path):
    script = tmp_path / "my_training.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[0])!r})
        from support.tiny import Classifier, loader, trainer
        from lightning_sloppy import FisherSpectrum
        trainer({str(tmp_path)!r}, callbacks=[FisherSpectrum(loss_fn=lambda o, t: o)], max_epochs=1).fit(
            Classifier(), loader()
        )
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    (line,) = [line for line in done.stderr.splitlines() if "measurement failed" in line and "Warning" in line]
    assert line.startswith(f"{script}:6: UserWarning: The fisher measurement failed")


def test_a_module_whose_loader_refuses_its_text_gets_the_warning() -> None:
    class Refusing:
        def get_source(self, name: str) -> str:
            raise ImportError(name)

    names = {"__name__": "spawned", "__loader__": Refusing(), "warn_user": warn_user}
    with pytest.warns(UserWarning, match="from a spawned process") as caught:
        exec(compile("warn_user('from a spawned process')", "spawned.py", "exec"), names)
    assert caught[0].filename == "spawned.py"
