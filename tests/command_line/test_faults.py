"""The line between mistakes of the command line and faults of a program."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_sloppy.command_line.faults import FAILED, WRONG_INPUT, own_part, theirs, told
from lightning_sloppy.errors import ConfigurationError, UnsupportedError

STAGES = ("parsing", "checkpoint", "building", "running")


def raised(source: str, filename: str) -> BaseException:
    """The error of some code, as if it stood in a file."""
    with pytest.raises((AttributeError, ValueError), match=r".") as caught:
        exec(compile(source, filename, "exec"), {})
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # without the line of this test
    return error


@pytest.mark.parametrize("stage", STAGES)
def test_errors_of_the_package_are_mistakes_with_their_exit_codes(stage) -> None:
    assert told(ConfigurationError("Pass k >= 1."), stage) == (WRONG_INPUT, ["Pass k >= 1."])
    assert told(UnsupportedError("Use DDP."), stage) == (FAILED, ["Use DDP."])
    outer = ValueError("many types")
    outer.__cause__ = ConfigurationError("Pass k >= 1.")
    assert told(outer, stage) == (WRONG_INPUT, ["Pass k >= 1."])


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_of_the_users_code_keeps_its_traceback(tmp_path, stage) -> None:
    file = tmp_path / "net.py"
    file.write_text("int.nothing\n")
    assert told(raised(file.read_text(), str(file)), stage) is None


def test_a_refusal_of_the_users_constructor_is_a_mistake_while_building_only(tmp_path) -> None:
    file = tmp_path / "net.py"
    file.write_text("if True: raise ValueError('width must be 10 or more')\n")
    error = raised(file.read_text(), str(file))
    assert told(error, "building") == (WRONG_INPUT, ["ValueError: width must be 10 or more (net.py, line 1)"])
    assert told(error, "running") is None


def test_other_errors_are_mistakes_while_building_and_faults_while_running() -> None:
    error = ValueError("You selected an invalid accelerator name: cpuu")
    assert told(error, "building") == (WRONG_INPUT, ["You selected an invalid accelerator name: cpuu"])
    assert told(error, "running") is None
    assert told(RuntimeError("a bug"), "running") is None
    assert told(NameError("a bug"), "building") is None


def test_what_lightning_finds_wrong_with_the_configuration_is_a_mistake_while_running() -> None:
    assert told(MisconfigurationException("No `training_step()` method."), "running") == (
        WRONG_INPUT,
        ["No `training_step()` method."],
    )


def test_a_checkpoint_of_another_model_is_a_mistake_while_running() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(3, 2).load_state_dict(nn.Linear(4, 2).state_dict())
    caught.value.__traceback__ = None
    code, lines = told(caught.value, "running")
    assert code == WRONG_INPUT
    assert "another model than the configured Linear" in lines[0]
    assert "size mismatch for weight" in lines[1]


def test_whose_a_file_is(tmp_path) -> None:
    assert theirs(str(tmp_path / "net.py"))
    for installed in (torch.__file__, pytest.__file__, told.__code__.co_filename, "<frozen importlib._bootstrap>"):
        assert not theirs(installed)


def test_of_several_errors_the_traceback_is_that_of_the_users_code(tmp_path) -> None:
    file = tmp_path / "net.py"
    file.write_text("int.nothing\n")
    inner = raised(file.read_text(), str(file))
    outer = ValueError("does not validate")
    outer.__cause__ = inner
    assert own_part(outer) is inner
    assert own_part(RuntimeError("ours")).args == ("ours",)
