"""Which errors are mistakes of the command line, to be told in a few lines, and which keep their traceback.

A mistake is an error of this package; an error while the arguments are read and the objects are built, unless it comes
from the user's own code, where only a ``raise`` counts, as a refusal of the arguments; and what Lightning raises for a
wrong configuration or for a checkpoint of another model. All else is a fault of a program: its traceback shows where.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lightning_sloppy.command_line.mistakes import explained
from lightning_sloppy.command_line.vocabulary import Vocabulary
from lightning_sloppy.errors import ConfigurationError, SloppyError

OK, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit codes of all commands: it worked; it failed, or there is no certificate; the input was wrong."""

Stage = Literal["parsing", "checkpoint", "building", "running"]
"""What a command was doing: read arguments, read hyperparameters of a checkpoint, build the objects, run the verb."""

FAULTS = (NameError, AttributeError, AssertionError, RecursionError)
"""Errors that no argument causes: the fault is in the program, whoever wrote it."""

PACKAGE = Path(__file__).resolve().parents[1]


def told(error: BaseException, stage: Stage) -> tuple[int, list[str]] | None:
    """The exit code and the lines to print for a mistake; None for an error that keeps its traceback.

    Args:
        error: What was raised.
        stage: What the command was doing.
    """
    ours = _ours(error)
    if ours is not None:
        return (WRONG_INPUT if isinstance(ours, ConfigurationError) else FAILED), [str(ours)]
    if in_code_of_the_user(error):
        return _refused(error) if stage == "building" else None
    if isinstance(error, FAULTS):
        return None
    text = re.sub(r"\s+", " ", str(error)).strip()
    if stage == "checkpoint":
        return WRONG_INPUT, _of_checkpoint(error)
    if type(error).__name__ == "MisconfigurationException":
        return WRONG_INPUT, [text]
    if text.startswith("Error(s) in loading state_dict for"):
        model = text.split()[5].rstrip(":")
        return WRONG_INPUT, [
            f"The checkpoint contains the weights of another model than the configured {model}; use the configuration "
            "of its training.",
            str(error).splitlines()[1].strip()[:300],
        ]
    if isinstance(error, UnicodeDecodeError):
        return WRONG_INPUT, [f"The configuration is no text in {error.encoding.upper()}; give a file in YAML or JSON."]
    if stage == "parsing":
        return WRONG_INPUT, [f"The arguments cannot be read. {type(error).__name__}: {text}"]
    return (WRONG_INPUT, _of_building(error)) if stage == "building" else None


def _ours(error: BaseException | None) -> SloppyError | None:
    """The error of this package behind an error of the parser, which reports all types that an argument may have."""
    while error is not None and not isinstance(error, SloppyError):
        error = error.__cause__
    return error


def _of_checkpoint(error: BaseException) -> list[str]:
    if type(error).__name__ in ("ArgumentError", "NSKeyError", "KeyError", "TypeError"):
        return ["The hyperparameters in the checkpoint do not fit the model.", *explained(str(error), Vocabulary())[:2]]
    return [
        f"The checkpoint cannot be read ({type(error).__name__}): it is no file of Lightning, or it contains more than "
        "plain values. If you trust it, pass --weights_only false."
    ]


def _of_building(error: BaseException) -> list[str]:
    """What a constructor said, behind an error of the parser."""
    text = str(error)
    if "does not validate" in text.lower():
        said = re.findall(r"^\s*- (?!Expected an? )(.*)", text, re.MULTILINE)
        text = said[-1] if said else text
    elif not isinstance(error, (ValueError, TypeError)):
        text = f"{type(error).__name__}: {text}"
    return explained(text, Vocabulary())


def _refused(error: BaseException) -> tuple[int, list[str]] | None:
    """A value that the user's own constructor refuses with ``raise``; None for any other error, which is a fault."""
    *_, origin = (each for each in chain(error) if each.__traceback__ is not None)
    place = traceback.extract_tb(origin.__traceback__)[-1]
    deliberate = isinstance(origin, (ValueError, TypeError, OSError, LookupError, NotImplementedError))
    if deliberate and theirs(place.filename) and re.search(r"\braise\b", place.line or ""):
        return WRONG_INPUT, [f"{type(origin).__name__}: {origin} ({Path(place.filename).name}, line {place.lineno})"]
    return None


def own_part(error: BaseException) -> BaseException:
    """The error whose traceback shows the user's code, without those that the parser has wrapped around it."""
    parts = [each for each in chain(error) if any(map(_is_theirs, traceback.extract_tb(each.__traceback__)))]
    return parts[-1] if parts else error


def _is_theirs(frame: traceback.FrameSummary) -> bool:
    return theirs(frame.filename)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, from the outside in."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def in_code_of_the_user(error: BaseException) -> bool:
    """Whether a line of code takes part that belongs to no installed package."""
    return any(_is_theirs(frame) for each in chain(error) for frame in traceback.extract_tb(each.__traceback__))


def theirs(filename: str) -> bool:
    """Whether a file of code is the user's own."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder) for folder in _installed())


def _installed() -> list[Path]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    named = [sys.modules[name] for name in ("torch", "lightning", "jsonargparse") if name in sys.modules]
    folders += [str(Path(str(module.__file__)).parent) for module in named]
    return [PACKAGE, *(Path(folder).resolve() for folder in [*folders, *site.getsitepackages()])]
