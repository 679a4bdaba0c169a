"""The parser of the verbs that take no classes: argparse, with its complaints in a few lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning_sloppy.command_line.complaints import COMMAND, complain
from lightning_sloppy.command_line.mistakes import explained
from lightning_sloppy.command_line.vocabulary import Vocabulary

BAD_INPUT = 2
"""Exit code for arguments that cannot be parsed, and for a file that cannot be read or written."""


class PlainParser(argparse.ArgumentParser):
    """Reports an argument that cannot be parsed in a few lines, with the nearest option.

    Args:
        verb: The verb.
        description: What it does.
        epilog: What stands below the options.
        more: Options that are parsed elsewhere.
    """

    def __init__(self, verb: str, *, description: str, epilog: str = "", more: Sequence[str] = ()) -> None:
        super().__init__(prog=f"{COMMAND} {verb}", description=description, epilog=epilog, allow_abbrev=False)
        self.verb = verb
        self.more = tuple(more)

    def error(self, message: str) -> NoReturn:
        """Print the cause and the nearest option, and exit with code 2."""
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        complain(explained(message, Vocabulary([*options, *self.more])), self.verb)
        sys.exit(BAD_INPUT)
