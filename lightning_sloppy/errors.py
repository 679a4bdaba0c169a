"""The errors of this package, with a common base class.

Every message says what was requested, what was found, and what to do. A numerical failure (not converged, not resolved)
is not an error but a :class:`~lightning_sloppy.records.Status`.
"""

from __future__ import annotations


class SloppyError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ConfigurationError(SloppyError, ValueError):
    """An argument, a data set or a module cannot be used as requested."""


class UnsupportedError(SloppyError, RuntimeError):
    """The request is valid, but this combination of software or hardware does not support it."""


class RankError(SloppyError, RuntimeError):
    """Another process of a distributed run failed, so this one cannot continue their common work."""


class MissingExtraError(SloppyError, ImportError):
    """An optional package is needed; the message names the extra to install."""
