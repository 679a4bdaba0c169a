"""The file of a run: every measurement with its arrays, appended as it is made, and read again as a :class:`Run`.

The format is JSON Lines (https://jsonlines.org): one JSON object in a line, one line for each event, in UTF-8. Every
line is complete in itself, so a run that is killed loses the line at which it was killed, and none before it. Any
language reads it without this package.

Numbers are plain decimals. 200 measurements of four instruments with 1,280 eigenvalues each are 37 MB, are written in a
few milliseconds each and are read in 1.3 s. Compressing every line would make the file 2.5 times smaller and writing
twice as slow; arrays in base64 would halve it. ``grep``, ``jq`` and pandas could then no longer read it directly.

Events, by the key "event":

* "head", at the start of a fit: "format", "begins_at" (effective batches before it: 0, or where a resumed run goes on),
  "instruments" (kind and declaration of each), "facts" (all of :class:`RunFacts`).
* "measurement": the fields of a :class:`Measurement`, and "facts" with what has changed since the line before.
* "end": "paragraphs" (text of the closing summary by instrument) and "facts" with what has changed.

A run that is resumed into the same folder appends a new head. Reading joins the parts: from an earlier part come the
measurements at steps before the later part begins. Those behind are of weights that the resumed run does not come from,
and are left out. A fit that begins at step 0 in the same folder so replaces all before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement
from lightning_sloppy.runs.json_values import from_json, to_json
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from lightning_sloppy.user_warnings import warn_user

FILE = "sloppy_run.jsonl"
"""Name of the file, in the folder of the run."""

FORMAT = 1
"""Version of the format. A new key does not change it; one that is renamed, removed or means something else does."""

_DEPTH = 3
"""Folders below the given one in which a run is looked for: logger, name, version."""


def head(instruments: Sequence[InstrumentRun], facts: RunFacts, *, begins_at: int) -> dict[str, Any]:
    """The first event of a fit.

    Args:
        instruments: In the order in which they run.
        facts: About the fit.
        begins_at: Effective batches before the fit, which are more than 0 in a resumed run.
    """
    declared = [{"kind": each.kind, "declaration": to_json(each.declaration)} for each in instruments]
    return {"event": "head", "format": FORMAT, "begins_at": begins_at, "instruments": declared, "facts": to_json(facts)}


def measured(measurement: Measurement, facts: RunFacts, known: RunFacts) -> dict[str, Any]:
    """The event of a measurement.

    Args:
        measurement: The measurement. Its eigenvectors are left out.
        facts: About the fit so far.
        known: The facts that the events before tell.
    """
    return {"event": "measurement", **to_json(measurement), "facts": _changed(facts, known)}


def ended(run: Run, known: RunFacts) -> dict[str, Any]:
    """The last event of a fit.

    Args:
        run: The fit.
        known: The facts that the events before tell.
    """
    paragraphs = {name: list(each.paragraphs) for name, each in run.instruments.items()}
    return {"event": "end", "paragraphs": paragraphs, "facts": _changed(run.facts, known)}


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Append an event as one line.

    The line is with the operating system when this returns, so killing the process does not lose it. The rest of a line
    that was torn before is ended first.

    Args:
        path: The file. It and its folder are created.
        event: The event.
    """
    line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def load_run(path: str | os.PathLike[str]) -> Run:
    """The record of a fit, from the file that the callbacks have written beside the logger's files.

    It works while the fit is running, and after it was killed: ``facts.end`` is then "", and the instruments have no
    paragraphs. A run that was resumed into the same folder is joined: see ``facts.resumed_at``.

    Args:
        path: The folder of the run (``trainer.log_dir``), one above it if it holds a single run, or the file.

    Returns:
        Measurements as in :attr:`~lightning_sloppy.SloppyMonitor.measurements`, every number exact, without
        eigenvectors; and facts about the fit.

    Raises:
        ConfigurationError: If there is no run, if there are several, or if the file has another format.
    """
    file = run_file_in(Path(path))
    parts: list[_Part] = []
    unreadable = 0
    torn = False
    for event in _events(file):
        if event is None:
            unreadable, torn = unreadable + torn, True
            continue
        # A line that was torn by the end of a process is the last one, or comes before the head of a resumed run.
        unreadable, torn = unreadable + (torn and event.get("event") != "head"), False
        if event.get("event") == "head" and event.get("format") != FORMAT:
            raise ConfigurationError(
                f"{file} has format {event.get('format')!r}, and this version of lightning_sloppy reads format "
                f"{FORMAT}; read it with the version that wrote it ({_software(event)})."
            )
        try:
            _take(parts, event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            unreadable += 1
    if not parts:
        raise ConfigurationError(f"{file} holds no run; pass the folder of a fit that was logged with this package.")
    if unreadable:
        lines = "A line" if unreadable == 1 else f"{unreadable:,} lines"
        warn_user(f"{lines} of {file} cannot be read; what is there is left out.")
    return _joined(parts)


@dataclass
class _Part:
    """One fit in the file."""

    begins_at: int
    instruments: list[tuple[str, Declaration]]
    facts: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    paragraphs: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _changed(facts: RunFacts, known: RunFacts) -> dict[str, Any]:
    before = to_json(known)
    return {name: value for name, value in to_json(facts).items() if value != before[name]}


def run_file_in(path: Path) -> Path:
    """The file of a run.

    Args:
        path: The folder of the run, one above it if it holds a single run, or the file.

    Raises:
        ConfigurationError: If there is none, or if there are several.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist; pass the folder of a run, such as trainer.log_dir.")
    if (path / FILE).is_file():
        return path / FILE
    found = sorted(each for depth in range(1, _DEPTH + 1) for each in path.glob("*/" * depth + FILE))
    if not found:
        raise ConfigurationError(
            f"{path} has no {FILE}; pass the folder of a run, such as trainer.log_dir. The file is written beside the "
            "values of a logger that has a folder, such as TensorBoardLogger or CSVLogger."
        )
    if len(found) > 1:
        some = ", ".join(str(each.parent) for each in found[:4]) + (", ..." if len(found) > 4 else "")
        raise ConfigurationError(f"{path} has {len(found):,} runs below it; pass the folder of one of them: {some}.")
    return found[0]


def _events(file: Path) -> Iterator[dict[str, Any] | None]:
    """The events of a file; None for a line that cannot be read."""
    with file.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield event if isinstance(event, dict) else None


def _software(event: Mapping[str, Any]) -> str:
    facts = event.get("facts")
    return str(facts.get("software") or "unknown") if isinstance(facts, dict) else "unknown"


def _take(parts: list[_Part], event: Mapping[str, Any]) -> None:
    """Add an event to the parts. Kinds of events that later versions may add are ignored."""
    kind = event["event"]
    if kind == "head":
        declared = [(each["kind"], from_json(Declaration, each["declaration"])) for each in event["instruments"]]
        parts.append(_Part(int(event["begins_at"]), declared, dict(event["facts"])))
    elif kind == "measurement":
        parts[-1].measurements.append(from_json(Measurement, event))
    elif kind == "end":
        parts[-1].paragraphs = event["paragraphs"]
    if kind in ("measurement", "end"):
        parts[-1].facts.update(event.get("facts", {}))


def _joined(parts: Sequence[_Part]) -> Run:
    """The latest fit, with what belongs to it of the parts before."""
    limit: int | None = None
    kept: list[tuple[_Part, list[Measurement]]] = []
    for part in reversed(parts):
        found = [each for each in part.measurements if limit is None or each.step < limit]
        if limit is None or found:
            kept.insert(0, (part, found))
        limit = part.begins_at if limit is None else min(limit, part.begins_at)
    last = parts[-1]
    declared = {each.name: (kind, each) for part, _ in kept for kind, each in part.instruments}
    order = [each.name for _, each in last.instruments]
    instruments = {}
    for name in [*order, *(name for name in declared if name not in order)]:
        kind, declaration = declared[name]
        # A final certificate of an earlier part is for weights that the training has left.
        of_kind = kept[-1:] if kind == "certificate" else kept
        measurements = tuple(each for _, found in of_kind for each in found if each.group == name)
        if measurements or name in order:
            paragraphs = tuple(map(str, last.paragraphs.get(name, ())))
            instruments[name] = InstrumentRun(kind, declaration, measurements, paragraphs)
    facts = from_json(RunFacts, last.facts)
    first = from_json(RunFacts, kept[0][0].facts)
    resumed = tuple(part.begins_at for part, _ in kept if part.begins_at > 0)
    # The measurements of the parts before are in this record, so only what was before the first of them is missing.
    earlier = first.earlier_seconds
    return Run(instruments, replace(facts, started=first.started, earlier_seconds=earlier, resumed_at=resumed))
