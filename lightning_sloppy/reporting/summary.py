"""The closing summary: the card, then the results of all instruments as text.

The functions take plain data and return plain text, without a Trainer, a logger or colour codes. A missing value is
reported as missing, with the reason from the measurement.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from lightning_sloppy.display import counted
from lightning_sloppy.quantities import RESERVED
from lightning_sloppy.records import Status
from lightning_sloppy.reporting.actions import WHAT_YOU_CAN_DO, advice
from lightning_sloppy.reporting.card import card, doubts
from lightning_sloppy.reporting.layout import start_tags
from lightning_sloppy.reporting.phrases import brief, number
from lightning_sloppy.reporting.report_parts import other_seconds
from lightning_sloppy.reporting.tags import OVERHEAD, tag
from lightning_sloppy.runs.run import Run, RunFacts

WIDTH = 100

Length = Literal["short", "full"]
"""How long a summary is: the card and where the values are, or with all conditions and details."""

ADDRESS = "http://localhost:6006"
"""Where TensorBoard serves its page by default."""


def summarise(run: Run, length: Length = "full") -> str:
    """Return the closing summary of a run, wrapped at 100 columns (except for commands and addresses).

    Args:
        run: The record of the fit.
        length: "short": the card, and where the values are. "full": also every instrument with its conditions.
    """
    texts = [card(run).text(WIDTH), ""]
    sections = list(run.instruments.values())
    if length == "full":
        warnings = [*run.facts.warnings, *doubts(run)[1:]]
        texts += [_section("Warnings", [f"- {warning}" for warning in warnings])] if warnings else []
        possible = [f"- {paragraph}" for paragraph in advice(run)]
        texts += [_section(WHAT_YOU_CAN_DO, possible)] if possible else []
        texts += [_section(section.declaration.title, section.paragraphs) for section in sections]
        texts.append(_section("Stop", [" ".join([_end(run.facts), *run.facts.end_sentences])]))
        texts.append(_section("Cost", [_cost(run)]))
    return "\n".join(["Summary", "=======", *texts, *_places(run)]).rstrip()


def _end(facts: RunFacts) -> str:
    ended = counted(facts.epochs, "epoch"), counted(facts.steps, "optimiser step")
    return f"Training {facts.end or 'is running'} after {' and '.join(ended)}."


def _cost(run: Run) -> str:
    """The same total and ratio as in the card, and its parts."""
    sections, facts = list(run.instruments.values()), run.facts
    spent = [sum(event.cost.seconds for event in section.measurements) for section in sections]
    parts = [
        f"{section.declaration.title} {seconds:.1f} s ({counted(len(section.measurements), 'measurement')})"
        for section, seconds in zip(sections, spent, strict=True)
    ]
    parts += [f"{what} {seconds:.1f} s" for what, seconds in other_seconds(run)]
    ratio = "" if facts.overhead is None else f", a ratio of {number(facts.overhead, digits=2)}"
    said = f"Measuring took {facts.measuring_seconds:.1f} s beside {facts.training_seconds:.1f} s of training{ratio}"
    sentences = [f"{said}{': ' + ', '.join(parts) if parts else ''}."]
    failed = [
        (section.declaration.title, [e for e in section.measurements if e.status is Status.FAILED])
        for section in sections
    ]
    if any(events for _, events in failed):
        where = ", ".join(f"{title} {len(events):,}" for title, events in failed if events)
        reasons = (brief(note) for _, events in failed for event in events for note in event.notes)
        sentences.append(
            f"Failed measurements (gaps in the curves): {where}. The first: {next(reasons, 'no reason is known')}"
        )
    return " ".join(sentences)


def _places(run: Run) -> list[str]:
    """Each logger with the place of its values, and how to look at them."""
    lines = ["Where the values are"]
    if not run.facts.loggers:
        return [*lines, *_wrap("The Trainer has no logger. The values are in the callbacks: see `measurements`.")]
    for name, where in run.facts.loggers:
        if where and any(Path(where).glob("events.out.tfevents.*")):
            lines += [f"  {name}: event files in {where}", *_wrap("To see the curves, run"), ""]
            lines += [f"    tensorboard --logdir {shlex.quote(where)}", ""]
            if _has_neighbours(Path(where)):
                lines += _wrap("or, for all runs in the folder above side by side,")
                lines += ["", f"    tensorboard --logdir {shlex.quote(str(Path(where).parent))}", ""]
            lines += [*_wrap("and open (first the charts to look at first, then all charts by topic)"), ""]
            lines += [f"    {address}" for address in addresses(run)]
            lines += ["", *_wrap("Set the smoothing to 0 on both pages: a smoothed bound is no bound."), ""]
        else:
            lines.append(f"  {name}: {where or 'where it keeps them'}")
    return lines


def _has_neighbours(folder: Path) -> bool:
    """Whether other runs lie beside the folder of a run."""
    return any(each.parent.name != folder.name for each in folder.parent.glob("*/events.out.tfevents.*"))


def addresses(run: Run, server: str = ADDRESS) -> list[str]:
    """Addresses of TensorBoard's pages: one with the first charts pinned and no smoothing, and the Custom Scalars page.

    Args:
        run: The record of the fit.
        server: Where TensorBoard serves.
    """
    tags = start_tags([each.declaration for each in run.instruments.values() if each.latest is not None])
    measured = {
        tag(event.group, name)
        for each in run.instruments.values()
        for event in each.measurements
        for name in event.estimates
    }
    kept = [each for each in tags if each in measured or each == tag(RESERVED, OVERHEAD.name)]
    pins = [{"plugin": "scalars", "tag": f"{run.facts.prefix}{each}"} for each in kept]
    pinned = quote(json.dumps(pins, separators=(",", ":")), safe="/:,")
    return [f"{server}/?pinnedCards={pinned}&smoothing=0#timeseries", f"{server}/#custom_scalars&_smoothingWeight=0"]


def _section(title: str, paragraphs: Sequence[str]) -> str:
    return "\n".join([title, *(line for paragraph in paragraphs for line in _wrap(paragraph)), ""])


def _wrap(paragraph: str) -> list[str]:
    indent = "    " if paragraph.startswith("- ") else "  "
    # A value and its error stay on one line: textwrap does not break at a no-break space.
    text = " ".join(paragraph.split()).replace(" +- ", "\N{NO-BREAK SPACE}+-\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=indent)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
