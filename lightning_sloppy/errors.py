"""The errors of this package: one root, few members, every message names the remedy.

The pattern of a message is: what was asked, what was found, what to do. A numerical disappointment
(not converged, not resolved) is no error: it is a :class:`~lightning_sloppy.records.Status`.
"""

from __future__ import annotations


class SloppyError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigurationError(SloppyError, ValueError):
    """An argument, a data set or a module cannot be used as asked."""


class UnsupportedError(SloppyError, RuntimeError):
    """The request is sensible, but this combination of software or hardware cannot serve it."""


class RankError(SloppyError, RuntimeError):
    """Another process of a distributed run failed, so this one cannot go on with what they do together."""


class MissingExtraError(SloppyError, ImportError):
    """An optional package is needed; the message names the extra to install."""
