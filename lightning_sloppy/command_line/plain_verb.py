"""What the verbs without classes share: exit codes, one sentence for what is refused, files that can be written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_sloppy.command_line.plain_parser import BAD_INPUT
from lightning_sloppy.errors import ConfigurationError, SloppyError


def exit_code(work: Callable[[], int], *, debug: bool, short_of_memory: str) -> int:
    """Do the work of a verb.

    Args:
        work: What the verb does; it prints its own results, and returns its exit code.
        debug: Whether to raise errors instead of printing them.
        short_of_memory: The sentence for a MemoryError.

    Returns:
        Exit code: that of the work, or 2 with one sentence on the error stream.

    Raises:
        Exception: An error that is not of this package, or any error with ``debug``.
    """
    try:
        return work()
    except (SloppyError, MemoryError) as error:
        if debug:
            raise
        said = short_of_memory if isinstance(error, MemoryError) else str(error)
        sys.stderr.write(f"error: {said}\n")
        return BAD_INPUT


def require_place(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is read.

    Raises:
        ConfigurationError: It is a folder, or lies in none that exists.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigurationError(f"The report cannot be written to {path}; name a file in a folder that exists.")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """While a file is written.

    Raises:
        ConfigurationError: The system refuses it.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"The report cannot be written to {path} ({error}).") from error
