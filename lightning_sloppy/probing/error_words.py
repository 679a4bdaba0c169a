"""Errors of measurements as sentences, with the place in the user's code and the name of their cause."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch

from lightning_sloppy.errors import Note, SloppyError

NOT_THEIRS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
"""Folders of torch and of this package: an error is reported at the last line of code outside them."""


def in_words(error: BaseException) -> str:
    """An error as text, with its type and place unless it is an error of this package, which says what to do.

    >>> in_words(KeyError("conf"))
    "KeyError: 'conf'"
    """
    if isinstance(error, (SloppyError, MemoryError)):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return said
    # The last line of the user's code, not the line of torch or of this package that raised.
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    place = (theirs or frames)[-1]
    return f"{said} ({Path(place.filename).name}:{place.lineno})"


def note_of(error: BaseException, mode: str = "eval") -> Note:
    """An error of a measurement as a sentence with its cause, the same for all errors that arose from one.

    Args:
        error: The error.
        mode: Mode of the module in the measurement.

    >>> note_of(KeyError("conf")).cause
    "error: KeyError: 'conf'"
    """
    root = error
    while isinstance(root, SloppyError) and not root.cause and root.__cause__ is not None:
        root = root.__cause__
    said = in_words(root)
    cause = getattr(root, "cause", "") if isinstance(root, SloppyError) else ""
    if isinstance(root, (MemoryError, torch.OutOfMemoryError)):
        cause = "memory"
    sentence = in_words(error)
    frames = traceback.extract_tb(error.__traceback__)
    if mode == "eval" and any(each.name == "forward" and not each.filename.startswith(NOT_THEIRS) for each in frames):
        sentence += " in forward. Measurements run in eval mode; if it works in train mode, pass mode='train'."
    return Note(sentence, cause=cause or f"error: {said[:60]}")
