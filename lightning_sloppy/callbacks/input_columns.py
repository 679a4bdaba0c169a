"""Names of the columns of the inputs; notes on columns that are constant, set aside or carry the same information."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_sloppy.display import percent
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_groups import THRESHOLD, ColumnGroup
from lightning_sloppy.inputs.frames import is_frame
from lightning_sloppy.inputs.incomplete import IncompleteMoments
from lightning_sloppy.inputs.moment_blocks import AnyMoments
from lightning_sloppy.inputs.shared_columns import constant_columns
from lightning_sloppy.records import Spectrum
from lightning_sloppy.reporting.phrases import number

ATTRIBUTES = (
    "feature_names", "feature_names_in_", "feature_cols", "feature_columns", "feat_cols", "features", "column_names",
    "columns", "col_names", "cont_names", "continuous_cols", "numerical_cols", "var_names", "input_names",
)  # fmt: skip
"""Attributes in which data sets hold the names of their columns, by what public data sets call them."""

NAMED = 8
"""Names in one note; the count says how many there are."""

NAMED_GROUPS = 6

DEPTH = 4
"""Data sets inside one another (subsets, wrappers) in which names are looked for."""


def checked_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of columns as given by the user.

    Raises:
        ConfigurationError: No sequence of different texts.
    """
    if names is None:
        return None
    if isinstance(names, str) or (not isinstance(names, Sequence) and not hasattr(names, "tolist")):
        raise ConfigurationError(f"feature_names={names!r} is no list of names; pass one name for each column.")
    found = tuple(str(name) for name in names)
    twice = sorted({name for name in found if found.count(name) > 1})
    if not found or twice:
        what = f"holds {twice[0]!r} twice" if twice else "is empty"
        raise ConfigurationError(f"feature_names {what}; pass a different name for each column.")
    return found


def column_names(given: tuple[str, ...] | None, holders: Sequence[Any], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the d columns: as given, else as a data set tells them, else their positions counted from 0.

    Args:
        given: By the user, or None.
        holders: Objects that may tell them: the data set, the data module.
        shape: Of the inputs of one sample; d is the product.

    Raises:
        ConfigurationError: Another number of names than columns was given.
    """
    d = int(np.prod(shape))
    if given is not None:
        if len(given) != d:
            raise ConfigurationError(
                f"feature_names has {len(given):,} names, but the inputs have {d:,} columns; pass one name for each."
            )
        return given
    for holder in holders:
        for told in _told(holder, DEPTH):
            if len(told) == d and len(set(told)) == d:
                return told
    return tuple(",".join(map(str, index)) for index in np.ndindex(*shape)) if shape else ("0",)


def _told(holder: Any, depth: int) -> Iterator[tuple[str, ...]]:
    """Names that an object or one inside it holds."""
    own = _attributes(holder)
    for value in (own.get(name, getattr(type(holder), name, None)) for name in ATTRIBUTES):
        if isinstance(value, property):
            value = _of_property(holder, value)
        texts = _texts(value)
        if texts is not None:
            yield texts
    for value in own.values():
        if is_frame(value):
            yield tuple(str(name) for name in value.columns)
    if depth:
        if "dataset" in own:
            yield from _told(own["dataset"], depth - 1)
        for inside in list(own.get("datasets", ()))[:1] if isinstance(own.get("datasets"), (list, tuple)) else ():
            yield from _told(inside, depth - 1)


def _attributes(holder: Any) -> dict[str, Any]:
    return dict(getattr(holder, "__dict__", {}))


def _of_property(holder: Any, found: property) -> Any:
    try:
        return None if found.fget is None else found.fget(holder)
    except Exception:  # a property of the user may fail in any manner; then it tells no names
        return None


def _texts(value: Any) -> tuple[str, ...] | None:
    """The texts of a list, a tuple, an array or an index of texts; None for anything else."""
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        value = value.tolist() if np.ndim(value) == 1 else None
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    return None


def column_notes(
    moments: AnyMoments,
    names: Sequence[str],
    groups: Sequence[ColumnGroup],
    spectrum: Spectrum,
    decades: tuple[float | None, float | None],
) -> list[str]:
    """What is to be said of columns.

    Args:
        moments: Of all samples.
        names: Of all columns.
        groups: Columns that carry the same information.
        spectrum: Of the main matrix.
        decades: With the repeats and without, where known.
    """
    return [*_constant(moments, names), *_same(groups, decades), *_missing(moments, names, spectrum)]


def _constant(moments: AnyMoments, names: Sequence[str]) -> list[str]:
    found = [name for name, constant in zip(names, constant_columns(moments), strict=True) if constant]
    return [f"Constant columns, which are not among the features: {listed(found)}."] if found else []


def _same(groups: Sequence[ColumnGroup], decades: tuple[float | None, float | None]) -> list[str]:
    if not groups:
        return []
    shown = [
        f"{listed(group.names)} (|r| with {group.representative} at least {group.lowest:.2f})"
        for group in groups[:NAMED_GROUPS]
    ]
    more = f"; and {len(groups) - NAMED_GROUPS:,} more groups" if len(groups) > NAMED_GROUPS else ""
    drop = [name for group in groups for name, _, _ in group.drop]
    said = [
        f"Columns that carry the same information (|r| above {THRESHOLD:g}; the first stands for its group): "
        f"{'; '.join(shown)}{more}. {len(drop):,} could be left out: {listed(drop)}."
    ]
    with_all, without = decades
    if with_all is not None and without is not None:
        said.append(
            f"Repeated columns make decades say little: {number(with_all)} with them, {number(without)} without."
        )
    return [" ".join(said)]


def _missing(moments: AnyMoments, names: Sequence[str], spectrum: Spectrum) -> list[str]:
    if not isinstance(moments, IncompleteMoments):
        return []
    how = {
        "pairwise": f"each correlation is over the samples that both columns have "
        f"(at least {moments.smallest_overlap:,})",
        "em": f"the matrix is that of the Gaussian model ({moments.iterations} iterations"
        f"{'' if moments.converged else ', not converged'})",
    }[moments.method]
    completely = "completely " if moments.method == "pairwise" else ""
    said = [
        f"{percent(moments.missing_rate, 2)} of the numbers are missing; {how}, and values are taken as missing "
        f"{completely}at random, which no data can show."
    ]
    if moments.undefined_pairs and moments.method == "pairwise":
        said.append(
            f"{moments.undefined_pairs:,} pairs of columns have fewer than {moments.overlap_limit} samples in common; "
            "their correlation is taken as 0."
        )
    negative = int(spectrum.detail.get("negative_eigenvalues", 0))
    if negative:
        smallest = float(spectrum.detail["smallest_eigenvalue"])
        said.append(
            f"{negative:,} eigenvalues were negative, down to {number(smallest)}, and are set to zero: none below "
            f"{number(spectrum.noise_floor)} is known."
        )
    aside = [name for name, out in zip(names, moments.set_aside, strict=True) if out]
    if aside:
        said.append(f"Set aside because they are hardly observed: {listed(aside)}.")
    return [" ".join(said)]


def listed(names: Sequence[str]) -> str:
    """Some names, and how many there are if not all are named.

    >>> listed(["a", "b"]), listed([str(i) for i in range(10)])
    ('a, b', '0, 1, 2, 3, 4, 5, 6, 7, ... (10 in all)')
    """
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown}, ... ({len(names):,} in all)"
