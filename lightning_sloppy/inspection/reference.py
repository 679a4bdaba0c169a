"""What a report keeps of its table so that later rows can be compared with it: in the JSON and in the arrays."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_kinds import as_word
from lightning_sloppy.inputs.encoded_table import EncodedTable
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import NAMES, CutMoments, Presence, RowParts, row_parts

PREFIX = "drift_"
"""Of the names of the arrays that comparing needs."""

_PRESENCE = ("departs", "varies", "gaps")
_BY_COLUMN = ("low", "high", "usual")


@dataclass(frozen=True)
class Reference:
    """A table that later rows are compared with.

    Attributes:
        origin: What was read.
        rows: n.
        columns: Of the table, targets not counted.
        names: Columns used, after encoding, (d,).
        parents: Of each of them the column of the table.
        targets: Columns that were kept apart.
        categories: Of each text column its categories, with those that have no column of 0 and 1 of their own.
        constant: The value of each constant column, None where it is not known.
        set_aside: Columns that were not used.
        codes: Words that mean a missing value, beside the usual ones.
        shift, scale: Mean and deviation of each column used, (d,).
        autocorrelation: Median lag-1.
        parts: CutMoments of parts of the rows; None for more columns than are compared.
    """

    origin: str
    rows: int
    columns: tuple[str, ...]
    names: tuple[str, ...]
    parents: tuple[str, ...]
    targets: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    constant: Mapping[str, float | str | None]
    set_aside: tuple[str, ...]
    codes: tuple[str, ...]
    shift: Floats
    scale: Floats
    autocorrelation: float
    parts: RowParts | None

    def details(self) -> dict[str, Any]:
        """What the JSON keeps of it, beside what the report says itself."""
        return {
            "columns": list(self.columns),
            "parents": list(self.parents),
            "targets": list(self.targets),
            "categories": {name: list(words) for name, words in self.categories.items()},
            "constant": dict(self.constant),
            "missing_codes": list(self.codes),
        }

    def arrays(self) -> dict[str, Any]:
        """What the file of the arrays keeps of it."""
        if self.parts is None:
            return {}
        kept: dict[str, Any] = {name: getattr(self.parts, name) for name in _BY_COLUMN}
        kept |= self.parts.moments.arrays()
        kept |= {name: getattr(self.parts.presence, name) for name in _PRESENCE}
        return {PREFIX + name: array for name, array in kept.items()}


def reference_of(
    table: EncodedTable, targets: Sequence[str], codes: Sequence[str], autocorrelation: float
) -> Reference:
    """The reference that a table is.

    Args:
        table: Encoded.
        targets: Columns kept apart.
        codes: Words that mean a missing value.
        autocorrelation: Median lag-1 of its columns.
    """
    texts = [table.kinds[name] for name in table.encoded]
    constant = {
        name: kind.first if kind.texts + kind.dates == 0 else next(iter(kind.seen), None)
        for name in table.constant
        for kind in (table.kinds[name],)
    }
    return Reference(
        table.origin, table.rows, table.columns, table.names, table.parents, tuple(targets),
        {kind.name: tuple(sorted({*kind.seen, *map(as_word, kind.different_numbers)})) for kind in texts},
        constant, tuple(table.set_aside), tuple(codes), table.shift, table.scale, autocorrelation,
        row_parts(table.values),
    )  # fmt: skip


def read_reference(path: str | Path, arrays: Path) -> Reference:
    """Read what a report keeps for comparing.

    Args:
        path: Of the JSON.
        arrays: Of the arrays that belong to it.

    Raises:
        ConfigurationError: No such file, no report of ``inspect``, one of another version, or arrays that are missing
            or belong to another report.
    """
    path = Path(path).expanduser()
    # What is no report may be the user's table: never advise to write there.
    needed = "pass the FILE that lightning-sloppy inspect TABLE --json FILE wrote"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}; {needed}.") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no report of inspect ({_first_line(error)}); {needed}.") from error
    if not isinstance(found, dict) or not isinstance(found.get("details"), dict) or "spectrum" not in found:
        raise ConfigurationError(f"{path} is no report of inspect; {needed}.")
    again = f"write it again with lightning-sloppy inspect TABLE --json {path}"
    if found.get("version") != 1:
        raise ConfigurationError(
            f"{path} has the version {found.get('version')}, but this version of lightning-sloppy reads 1; {again}."
        )
    kept = found["details"].get("reference")
    if kept is None:
        raise ConfigurationError(
            f"{path} was written by a version of lightning-sloppy whose reports cannot be compared with; {again}."
        )
    if not arrays.is_file():
        raise ConfigurationError(
            f"The arrays of {path} are missing: there is no file {arrays}; put it into the folder of the report, or "
            f"{again}."
        )
    try:
        with np.load(arrays, allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files if name.startswith(PREFIX)}
            held |= {name: archive[name] for name in ("names", "means", "deviations")}
        return _reference(found, kept, held)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"{arrays} does not hold the arrays of {path} ({_first_line(error)}); {again}."
        ) from error


def _reference(found: Mapping[str, Any], kept: Mapping[str, Any], held: Mapping[str, Any]) -> Reference:
    details = found["details"]
    names = tuple(details["names"])
    if tuple(held["names"].tolist()) != names:
        raise ValueError("their columns differ")
    parts = None
    if PREFIX + "rows" in held:
        own = {name.removeprefix(PREFIX): array for name, array in held.items() if name.startswith(PREFIX)}
        parts = RowParts(
            own["low"],
            own["high"],
            own["usual"],
            CutMoments(**{name: own[name] for name in NAMES if name in own}),
            Presence(*(own[name] for name in _PRESENCE)),
        )
        d = len(names)
        shapes = {parts.moments.sums.shape[1], parts.presence.gaps.shape[1], len(parts.low)}
        if shapes != {d} or parts.moments.products.shape[1] != d * (d - 1) // 2:
            raise ValueError("their sizes differ")
    autocorrelation = details["autocorrelation"]
    return Reference(
        details["origin"], found["rows"], tuple(kept["columns"]), names, tuple(kept["parents"]),
        tuple(kept["targets"]), {name: tuple(words) for name, words in kept["categories"].items()},
        dict(kept["constant"]), tuple(details["set_aside"]), tuple(kept["missing_codes"]), held["means"],
        held["deviations"], autocorrelation if autocorrelation is not None else math.nan, parts,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
