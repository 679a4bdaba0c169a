"""The errors of this package, and sentences about what is missing; both can name their cause.

Every message says what was requested, what was found, and what to do. A numerical failure (not converged, not resolved)
is not an error but a :class:`~lightning_sloppy.records.Status`. One cause can show in several callbacks of a fit. It is
then warned about once, and what else it affects refers to that warning in the few words of :data:`CAUSES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

CAUSES = {
    "loss": "the loss of outputs and targets is not known",
    "samples": "the training samples cannot be read by index",
    "index": "samples cannot be read by index",
    "not_finite": "there are numbers that are not finite",
    "memory": "the device does not have enough memory",
    "module": "the module cannot be measured",
    "summed": "the loss adds up its samples",
    "batchwise": "the loss of a batch is not the mean over its samples",
    "error": "an error occurred",
}
"""Causes that several callbacks can meet, in few words. Of several errors "error: ..." each is a cause of its own."""

NO_SUCH_PART = "no_such_part"
"""The cause of an error of a data module of this package that was asked for samples of a part that it does not have."""


class Note(str):
    """A sentence with the name of its cause.

    Args:
        sentence: What was found, and what to do.
        cause: Name of the cause; empty for a sentence that no warning gives.
        short: What is missing, in few words, where the sentence itself was given before. Empty: the words of the cause.

    >>> note = Note("The loss adds up its samples.", cause="summed", short="the loss is a sum")
    >>> note.cause, note.brief
    ('summed', 'the loss is a sum (see Warnings)')
    """

    cause: str
    short: str

    def __new__(cls, sentence: str, *, cause: str = "", short: str = "") -> Self:
        """Create a string with a cause."""
        made = super().__new__(cls, sentence)
        made.cause, made.short = cause, short
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        """Arguments for copies and pickles."""
        return (str(self),), {"cause": self.cause, "short": self.short}

    @property
    def brief(self) -> str:
        """A reference to the warning, in few words; without a cause and few words the sentence itself."""
        if not self.cause and not self.short:
            return str(self)
        return f"{self.short or CAUSES.get(self.cause.partition(':')[0], CAUSES['error'])} (see Warnings)"


class SloppyError(Exception):
    """Base class of all errors that this package raises on purpose.

    Args:
        message: What was requested, what was found, what to do.
        cause: Name of the cause, for an error that several callbacks of a fit can meet.
    """

    def __init__(self, *message: object, cause: str = "") -> None:
        super().__init__(*message)
        self.cause = cause


class ConfigurationError(SloppyError, ValueError):
    """An argument, a data set or a module cannot be used as requested."""


class UnsupportedError(SloppyError, RuntimeError):
    """The request is valid, but this combination of software or hardware does not support it."""


class RankError(SloppyError, RuntimeError):
    """Another process of a distributed run failed, so this one cannot continue their common work."""


class MissingExtraError(SloppyError, ImportError):
    """An optional package is needed; the message names the extra to install."""
