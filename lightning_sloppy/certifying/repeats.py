"""Equal samples: which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.digests import first_of_equals
from lightning_sloppy.probing.samples import SampleSource

Duplicates = Literal["natural", "copies"]
"""The user's statement about equal samples: independent draws (as in tables with few values), or copies of one draw."""

_NATURAL = "Equal samples are independent draws that happen to be equal, as the user states (duplicates='natural')."
_COPIES = "Equal samples are copies of one draw, as the user states (duplicates='copies'), and count once."

GROUPED = (
    "Equal samples are on the same side of the split and are treated as copies of one draw (duplicates='natural' in "
    "PriorSplit and in the certificate states that they are independent draws, which are split one by one)."
)


@dataclass(frozen=True)
class Rows:
    """The samples of a certificate.

    Attributes:
        source: The samples, each index once.
        distinct: Indices of the different samples, if a bound must also hold on these; else None.
        conditions: Conditions of a bound that concern equal samples.
    """

    source: SampleSource
    distinct: Tensor | None = None
    conditions: tuple[str, ...] = ()


def require_duplicates(duplicates: str | None) -> None:
    """Check the user's statement.

    Raises:
        ConfigurationError: For an unknown one.
    """
    if duplicates not in (None, "natural", "copies"):
        raise ConfigurationError(
            f"duplicates={duplicates!r} is no known statement; pass 'natural' for equal samples that are independent "
            "draws, 'copies' for copies of one draw, or None for a bound that is valid in both cases."
        )


def certifying_rows(
    context: FitContext,
    source: SampleSource,
    duplicates: str | None,
    conditions: tuple[str, ...] = (),
    *,
    grouped: bool = False,
) -> Rows:
    """The samples that a bound counts.

    A sample that occurs several times in a subset, a concatenation or a sampler counts once. Samples with equal inputs
    and targets can be copies, or independent draws from a table with few values. The larger of the bound on all and the
    bound on the different ones is valid in both cases, but not for a mixture of them.

    Args:
        context: Context of the fit.
        source: The samples.
        duplicates: The user's statement; None for the bound that is valid in both cases.
        conditions: Other conditions that concern the samples.
        grouped: Whether equal samples are on the same side of a split, which treats them as one draw.
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
            f"{len(once) - len(distinct):,} of the {len(once):,} samples are equal to others. The bound is the larger "
            f"of the one on all samples and the one on the {len(distinct):,} different ones. It holds if all samples "
            "are independent draws, and if all repeats are copies and no value has a positive probability, but not for "
            "a mixture of the two (state the case with duplicates='natural' or 'copies').",
        ),
    )
