"""The command line: which verb runs, its help, and what every verb has in common. Imports torch only when needed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence

import lightning_sloppy
from lightning_sloppy.command_line import help_pages, json_file
from lightning_sloppy.command_line.vocabulary import nearest
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.version import __version__

WRONG_INPUT, FAILED = 2, 1
"""Exit codes, as in ``command_line.faults``, which imports more."""

HELP = ("--help", "-h")
NOT_CONFIGURED = frozenset({"SpectralReducer"})
"""Names that no configuration holds. Half a second of every start would go into importing scikit-learn for them."""

CERTIFY_NEEDS = "pip install 'lightning-sloppy[cli]'"


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name. None: those of the process.

    Raises:
        SystemExit: On help and ``--version``, and with an exit code other than 0: 1 if the verb failed or there is no
            certificate, 2 for wrong input. See docs/command_line.md.
        Exception: An error in the user's own code, or any error with ``--debug``.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    # As `python -m` does: modules in the working folder can be named in a configuration.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    code = _run(words, debug)
    if code is not None:
        sys.exit(code)


def _run(words: list[str], debug: bool) -> int | None:
    """Run the verb; None if a verb of Lightning went well, so that Python code can go on after ``main``."""
    verb = next((word for word in words if word in help_pages.VERBS), "")
    if not words or words[0] in HELP:
        sys.stdout.write(help_pages.main_page())
        return 0
    if words[0] == "--version":
        sys.stdout.write(_versions() + "\n")
        return 0
    if words[0] not in help_pages.VERBS and (not words[0].startswith("-") or not verb):
        return _unknown(words[0])
    if verb == "inspect":
        return _inspect(words[1:], debug)
    if verb == "report":
        from lightning_sloppy.report_command import run_report

        return run_report(words[1:], debug=debug)
    if any(word in HELP for word in words):
        words, shown = _help(verb, words)
        if shown is not None:
            sys.stdout.write(shown)
            return 0
    if importlib.util.find_spec("jsonargparse") is None:
        return _complain(f"{verb} needs jsonargparse, which is not installed: {CERTIFY_NEEDS}.", FAILED)
    try:
        words, json_to = json_file.taken_out(words)
        if json_to is not None and verb == "predict":
            raise ConfigurationError("predict has no numbers for --json; write the predictions with a callback.")
    except ConfigurationError as error:
        if debug:
            raise
        return _complain(str(error), WRONG_INPUT)
    _know_names()
    from lightning_sloppy.command_line.lightning_verbs import run_lightning_verb

    return run_lightning_verb(words, json_to=json_to, debug=debug) or None


def _inspect(words: list[str], debug: bool) -> int:
    if any(word.startswith("--data") for word in words):
        _know_names()
    from lightning_sloppy.inspect_command import run_inspect

    return run_inspect(words, debug=debug)


def _help(verb: str, words: list[str]) -> tuple[list[str], str | None]:
    """The page of a verb; or the arguments with which the parser prints the help of one class, or of everything."""
    at = next(index for index, word in enumerate(words) if word in HELP)
    topic = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("-") else ""
    if not topic:
        return words, help_pages.page(verb)
    if topic == "all":
        return [verb, "--help"], None
    _know_names()
    from lightning_sloppy.command_line.lightning_verbs import help_of

    return help_of(verb, topic)


def _unknown(word: str) -> int:
    if word.startswith("-"):
        return _complain(f"The first argument is a verb, but {word} is an option.", WRONG_INPUT)
    found = nearest(word, help_pages.VERBS)
    said = f"Did you mean {found}?" if found else f"There are {', '.join(help_pages.VERBS)}."
    return _complain(f"There is no verb {word}.\n{said}", WRONG_INPUT)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"error: {text}\nMore: lightning-sloppy --help\n")
    return code


def _versions() -> str:
    """Versions of this package and of what the numbers depend on, read without importing them."""
    found = [f"Python {platform.python_version()}", *map(_version, ("torch", "lightning", "jsonargparse"))]
    return f"lightning-sloppy {__version__} ({', '.join(found)})"


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def _know_names() -> None:
    """A class is found by its bare name only once its module is imported, and the public names are loaded lazily."""
    shown = sys.stderr.isatty() and "lightning" not in sys.modules
    if shown:  # it takes seconds
        sys.stderr.write("Loading torch and Lightning ...")
        sys.stderr.flush()
    try:
        importlib.import_module("lightning_sloppy.demo")
        for name in dir(lightning_sloppy):
            if name not in NOT_CONFIGURED:
                getattr(lightning_sloppy, name)
    finally:
        if shown:
            sys.stderr.write("\r\033[K")
