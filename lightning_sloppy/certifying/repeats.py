"""Samples that come more than once: which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.digests import first_of_equals
from lightning_sloppy.probing.samples import SampleSource

Duplicates = Literal["natural", "copies"]
"""The user's word on equal rows: draws of their own, as tables of few values have them, or copies of one draw."""

_NATURAL = "Equal samples are independent draws that came out alike, as the user states (duplicates='natural')."
_COPIES = "Equal samples are copies of one draw, as the user states (duplicates='copies'), and count once."

GROUPED = (
    "Equal samples lie on one side of the split, and each is taken for copies of one draw (duplicates='natural' in "
    "PriorSplit and in the certificate states that they are draws of their own, and splits them as such)."
)


@dataclass(frozen=True)
class Rows:
    """The samples of a certificate.

    Attributes:
        source: The samples; each counts once that is there several times by its index.
        distinct: Indices of the different ones, where a bound must hold on these as well; None where it need not.
        conditions: What is granted about equal ones.
    """

    source: SampleSource
    distinct: Tensor | None = None
    conditions: tuple[str, ...] = ()


def require_duplicates(duplicates: str | None) -> None:
    """Check the user's word.

    Raises:
        ConfigurationError: For any other.
    """
    if duplicates not in (None, "natural", "copies"):
        raise ConfigurationError(
            f"duplicates={duplicates!r} is no known statement; pass 'natural' for equal samples that are draws of "
            "their own, 'copies' for copies of one draw, or None for a bound that holds either way."
        )


def certifying_rows(
    context: FitContext,
    source: SampleSource,
    duplicates: str | None,
    conditions: tuple[str, ...] = (),
    *,
    grouped: bool = False,
) -> Rows:
    """Which samples a bound counts.

    A sample that a subset, a concatenation or a sampler has several times is one. Samples of equal content may be
    either: with the same targets they are what copies look like, and what draws from a table of few values do. The
    larger of the bound on all and the bound on the different ones holds in both cases; not for a mixture of them.

    Args:
        context: Of the fit.
        source: The samples as they are given.
        duplicates: The user's word; None for the bound that holds either way.
        conditions: What is granted about the samples besides.
        grouped: Whether equal samples lie on one side of a split, which takes them for one draw.
    """
    once = source.each_once()
    digests = context.samples.digests(once)
    if not digests.copies:
        return Rows(once, None, conditions)
    if duplicates == "natural":
        return Rows(once, None, (*conditions, _NATURAL))
    distinct = first_of_equals(once)
    if duplicates == "copies":
        return Rows(once.only(distinct), None, (*conditions, _COPIES))
    if grouped:
        return Rows(once.only(distinct), None, conditions)
    return Rows(
        once,
        distinct,
        (
            *conditions,
            f"{len(once) - len(distinct):,} of the {len(once):,} samples equal others. The bound is the larger of the "
            f"one on all and the one on the {len(distinct):,} different ones: it holds if all samples are independent "
            "draws, and if all repeats are copies and no value has a probability of its own, but not for a mixture of "
            "the two (duplicates='natural' or 'copies' states which it is).",
        ),
    )
