"""The parser of all commands that build classes: whole names only, and messages of a few lines."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn
from weakref import WeakSet

from lightning.pytorch.cli import LightningArgumentParser

from lightning_sloppy.command_line.complaints import complain
from lightning_sloppy.command_line.faults import WRONG_INPUT
from lightning_sloppy.command_line.mistakes import explained
from lightning_sloppy.command_line.vocabulary import Vocabulary


class Parser(LightningArgumentParser):
    """A parser that accepts whole names only, and says in a few lines what is wrong.

    Attributes:
        debug: Whether to raise an error instead of printing it.
        made: The parsers of this command line.
    """

    debug: ClassVar[bool] = False
    made: ClassVar[WeakSet[Parser]] = WeakSet()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would be taken for an option of another name: --trainer.max_epoch for max_epochs.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        Parser.made.add(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause, the nearest name and where to read more, and exit with code 2."""
        if not self.exit_on_error:  # a parser inside another one, which reports the error
            super().error(message, ex)
        if Parser.debug:
            raise ex or ValueError(message)
        # What a subcommand does not accept is reported by the parser above it.
        named = re.match(r"(?:Validation failed: )?Subcommand '(\w+)'", message)
        verb = named[1] if named else self._verb
        below = [parser for parser in Parser.made if parser._verb == verb != self._verb]
        complain(explained(message, (below[0] if below else self)._vocabulary()), verb)
        sys.exit(WRONG_INPUT)

    @classmethod
    @contextmanager
    def raising(cls) -> Iterator[None]:
        """While this is open, an error of a parser is raised."""
        before, Parser.debug = Parser.debug, True
        try:
            yield
        finally:
            Parser.debug = before

    @property
    def _verb(self) -> str:
        """The last word of the usage; empty for the parser above all verbs."""
        words = str(self.prog).split()
        return words[-1] if len(words) > 1 else ""

    def _vocabulary(self) -> Vocabulary:
        words = list(getattr(self, "args", None) or sys.argv[1:])
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        types = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        return Vocabulary(
            options=[name for name in options if not name.endswith(".help")],
            arguments_of=arguments_of,
            classes_for=lambda option: class_names(_type_of(option, types)),
            config_files=list(_config_files(words)),
        )


def _type_of(option: str, types: Mapping[str, Any]) -> Any:
    """The type of an option, or of the nearest one above it: an argument of a callback may be a callback."""
    while option not in types and "." in option:
        option = option.rpartition(".")[0]
    return types.get(option)


def _config_files(words: Sequence[str]) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("-c", "--config"):
            yield following
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class, with those that it passes on to the classes that it inherits from."""
    module, _, name = class_path.rpartition(".")
    try:
        owner = getattr(__import__(module, fromlist=[name]), name)
        found: dict[str, None] = {}
        for base in owner.__mro__:
            if "__init__" in vars(base):
                parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
                named = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
                found |= dict.fromkeys(named)
                if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                    break
        return list(found)
    except Exception:  # names for a suggestion: without them the message is still right
        return []


def class_names(annotation: Any) -> list[str]:
    """Names of the known classes that an annotation accepts; the abstract ones and the private ones are left out."""
    found: dict[str, None] = {}
    for base in _classes_in(annotation):
        for known in _with_subclasses(base):
            if not inspect.isabstract(known) and not known.__name__.startswith("_"):
                found[known.__name__] = None
    return list(found)


def _classes_in(annotation: Any) -> Iterator[type]:
    arguments = typing.get_args(annotation)
    if isinstance(annotation, type) and not arguments and annotation not in (bool, int, float, str, type(None)):
        yield annotation
    for argument in arguments:
        yield from _classes_in(argument)


def _with_subclasses(base: type) -> Iterator[type]:
    yield base
    known: type
    for known in type.__subclasses__(base):
        yield from _with_subclasses(known)
