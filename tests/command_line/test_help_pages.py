"""The help pages say what is true of the classes, and fit on a screen."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import lightning_sloppy
from lightning_sloppy import demo
from lightning_sloppy.callbacks import CompressingTrainer
from lightning_sloppy.callbacks.base import SloppyCallback
from lightning_sloppy.command_line import help_pages
from lightning_sloppy.posteriors.learning_plan import LearningPlan


def test_the_first_page_is_one_screen() -> None:
    lines = help_pages.main_page().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("  lightning-sloppy ") for line in lines) == 5


@pytest.mark.parametrize("verb", help_pages.LIGHTNING_VERBS)
def test_the_page_of_a_verb_fits_and_names_what_gives_more(verb) -> None:
    lines = help_pages.page(verb).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert f"usage: lightning-sloppy {verb} " in lines[0]
    assert any("--help all" in line for line in lines)


def test_callbacks_come_first_and_all_of_them() -> None:
    public = {name for name in dir(lightning_sloppy) if isinstance(getattr(lightning_sloppy, name), type)}
    callbacks = {name for name in public if issubclass(getattr(lightning_sloppy, name), SloppyCallback)}
    assert {name for name, _, _ in help_pages.CALLBACKS} == callbacks - {"Instrument"}
    page = help_pages.page("fit")
    assert page.index("SloppyMonitor") < page.index("--model") < page.index("--trainer.ARGUMENT")


@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, _, arguments in help_pages.CALLBACKS])
def test_the_arguments_of_a_callback_exist(name, arguments) -> None:
    known = inspect.signature(getattr(lightning_sloppy, name)).parameters
    for argument in arguments.split():
        outer, _, inner = argument.partition(".")
        assert outer in known
        assert not inner or inner in inspect.signature(LearningPlan).parameters


def test_models_data_and_arguments_of_the_verbs_exist() -> None:
    for name in (*help_pages.MODELS, *help_pages.DATA):
        assert hasattr(demo, name) or hasattr(lightning_sloppy, name)
    trainer = inspect.signature(CompressingTrainer).parameters
    assert set(help_pages.TRAINER) <= set(trainer)
    options_of = {"certify": help_pages.CERTIFY, "spectrum": help_pages.SPECTRUM, "compress": help_pages.COMPRESS}
    for verb, options in options_of.items():
        known = inspect.signature(getattr(CompressingTrainer, verb)).parameters
        assert {option.partition(".")[0] for option in options} <= set(known)
    assert {name.partition(".")[2] for name in help_pages.CERTIFY if "." in name} <= set(
        inspect.signature(LearningPlan).parameters
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["fit", "--help"], ["spectrum", "-h"]])
def test_help_appears_without_importing_torch(arguments, tmp_path) -> None:
    code = (
        "import sys\nfrom lightning_sloppy.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "lightning-sloppy" in done.stdout
