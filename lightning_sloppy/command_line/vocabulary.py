"""The names that would have been right, and the nearest of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NEAR = 0.6
"""Similarity (0 to 1) from which a name is suggested."""


@dataclass(frozen=True)
class Vocabulary:
    """The names that would have been right.

    Attributes:
        options: Options of the command, such as "--trainer.max_epochs".
        arguments_of: From the import path of a class to the names of its arguments.
        classes_for: From an option that takes a class to the names of the classes that it knows.
        config_files: Configuration files that were given.
    """

    options: Sequence[str] = ()
    arguments_of: Callable[[str], Sequence[str]] = lambda _: ()
    classes_for: Callable[[str], Sequence[str]] = lambda _: ()
    config_files: Sequence[str] = ()


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that is most similar to a word, or None if none is near.

    >>> nearest("widht", ["lr", "widths", "optimizer"])
    'widths'
    """
    known = list(dict.fromkeys(names))
    plain = {name.lower(): name for name in reversed(known)}
    found = difflib.get_close_matches(word.lower(), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def nearest_option(option: str, options: Iterable[str]) -> str | None:
    """The nearest option; a forgotten prefix counts little.

    >>> nearest_option("--epochs", ["--trainer.max_epochs", "--trainer.devices", "--model"])
    '--trainer.max_epochs'
    >>> nearest_option("--trainer.callback", ["--trainer.callbacks", "--trainer.callbacks.help"])
    '--trainer.callbacks'
    """

    def similarity(known: str) -> float:
        whole = difflib.SequenceMatcher(a=option, b=known).ratio()
        tail = difflib.SequenceMatcher(a=_tail(option), b=_tail(known)).ratio()
        return max(whole if tail > NEAR else 0.0, 0.95 * tail)

    best = max(options, key=similarity, default=None)
    return best if best is not None and similarity(best) > 0.7 else None


def _tail(option: str) -> str:
    return option.lstrip("-").rpartition(".")[2]


def suggestion(found: str | None) -> list[str]:
    """The line that names the nearest name, if there is one."""
    return [f"Did you mean {found}?"] if found else []
