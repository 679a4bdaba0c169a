"""How a command says what is wrong: at most five lines on the error stream."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMAND = "lightning-sloppy"

MOST_CHARACTERS = 600
"""Characters of a line."""


def complain(lines: Sequence[str], verb: str = "", *, hint: str = "") -> None:
    """Print a message on the error stream.

    Args:
        lines: What is wrong, and what may have been meant.
        verb: The verb, for the last line.
        hint: The last line instead of where to read more.
    """
    more = hint or f"More: {' '.join(filter(None, [COMMAND, verb, '--help']))}"
    first, *rest = [line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..." for line in lines]
    sys.stderr.write("\n".join([f"error: {first}", *rest, more]) + "\n")
