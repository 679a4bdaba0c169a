"""Warnings that point to the user's line, such as ``trainer.fit(...)``, not to a line of this package."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from functools import cache
from types import FrameType

from torch import distributed

PACKAGES = frozenset(
    {
        "lightning",
        "lightning_fabric",
        "lightning_sloppy",
        "lightning_utilities",
        "jsonargparse",
        "pytorch_lightning",
        "sklearn",
        "torch",
        "torchmetrics",
    }
)
"""Packages that are no code of the user."""

_STANDARD = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
_INSTALLED = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn on rank 0, at the innermost line of the stack that is the user's code.

    Args:
        message: The warning.
        category: Its class.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
        return
    frame = _users_frame(sys._getframe(1))
    # Not warnings.warn(stacklevel=): the number of frames between depends on decorators and contexts.
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
        # Without module_globals: with them Python asks the loader of the user's module for its text, and an error there
        # (a spawned __main__ has no loader) would end the training.
    )


def _users_frame(start: FrameType) -> FrameType:
    """The innermost frame of the user's code; the outermost frame if there is none, as in a command line."""
    frame = start
    while frame.f_back is not None:
        if not _is_foreign(frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))):
            break
        frame = frame.f_back
    return frame


@cache
def _is_foreign(filename: str, module: str) -> bool:
    """Whether a file is part of Python, of torch, of Lightning, or of this package."""
    if module.partition(".")[0] in PACKAGES or filename.startswith("<frozen"):
        return True
    return filename.startswith(_STANDARD) and not filename.startswith(_INSTALLED)
