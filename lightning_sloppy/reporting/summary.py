"""The closing summary: the results of all instruments as text.

The functions take plain data and return plain text, without a Trainer, a logger or colour codes. A missing value is
reported as missing, with the reason from the measurement.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence

from lightning_sloppy.records import Status
from lightning_sloppy.reporting.phrases import brief
from lightning_sloppy.runs.run import InstrumentRun

WIDTH = 100


def summarise(
    sections: Sequence[InstrumentRun],
    *,
    stop: str,
    warnings: Sequence[str] = (),
    log_dirs: Sequence[str] = (),
    fit_seconds: float | None = None,
) -> str:
    """Return the closing summary of a run, wrapped at 100 columns (except for the TensorBoard command).

    Args:
        sections: One for each instrument of the fit, including those without a measurement.
        warnings: The warnings of the fit, each once. The sections refer to them.
        stop: Why and when the training stopped, as a sentence.
        log_dirs: Folders with event files.
        fit_seconds: Wall-clock seconds of the whole fit, for the fraction that measuring took.
    """
    texts = [_section("Warnings", [f"- {warning}" for warning in warnings])] if warnings else []
    texts += [_section(section.declaration.title, section.paragraphs) for section in sections]
    texts.append(_section("Stop", [stop]))
    texts.append(_section("Cost", [_cost(sections, fit_seconds)]))
    return "\n".join(["Summary", "=======", *texts, _event_files(log_dirs)])


def _cost(sections: Sequence[InstrumentRun], fit_seconds: float | None) -> str:
    spent = [sum(event.cost.seconds for event in section.measurements) for section in sections]
    each = ", ".join(
        f"{section.declaration.title} {seconds:.1f} s ({_times(len(section.measurements))})"
        for section, seconds in zip(sections, spent, strict=True)
    )
    total, part = sum(spent), ""
    if fit_seconds is not None and fit_seconds > 0:
        part = f", {100 * total / fit_seconds:.0f} % of the {fit_seconds:.1f} s of the fit"
    sentences = [f"Measuring took {total:.1f} s{part}{': ' + each if each else ''}."]
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


def _times(count: int) -> str:
    return "1 measurement" if count == 1 else f"{count:,} measurements"


def _event_files(log_dirs: Sequence[str]) -> str:
    if not log_dirs:
        return "Event files\n  None were written, because the Trainer has no logger with a folder."
    lines = ["Event files"]
    for folder in log_dirs:
        lines += [*_wrap(f"They are in {folder}. To view the curves, run:"), ""]
        lines += [f"    tensorboard --logdir {shlex.quote(folder)}", ""]
    return "\n".join(lines).rstrip()


def _section(title: str, paragraphs: Sequence[str]) -> str:
    return "\n".join([title, *(line for paragraph in paragraphs for line in _wrap(paragraph)), ""])


def _wrap(paragraph: str) -> list[str]:
    indent = "    " if paragraph.startswith("- ") else "  "
    # A value and its error stay on one line: textwrap does not break at a no-break space.
    text = " ".join(paragraph.split()).replace(" +- ", "\N{NO-BREAK SPACE}+-\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=indent)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
