"""What loggers with pages get besides curves: the layout, a text to read first, and final numbers to sort runs by.

All are functions of a :class:`Run`. A logger without such a page gets nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.errors import Note
from lightning_sloppy.quantities import RESERVED, Declaration
from lightning_sloppy.reporting.actions import WHAT_YOU_CAN_DO, advice
from lightning_sloppy.reporting.card import card, final_numbers
from lightning_sloppy.reporting.guide import GUIDE
from lightning_sloppy.reporting.layout import holds, write_layout
from lightning_sloppy.reporting.phrases import usable
from lightning_sloppy.reporting.tags import tag
from lightning_sloppy.reporting.writers import attempt, no_prefix
from lightning_sloppy.runs.run import InstrumentRun, Run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

READ_ME_FIRST = "sloppy_summary/read_me_first"
"""Tag of the text."""

FINAL = "final"
"""Group of the final numbers: ``sloppy_final/...``."""

LASTING = ("loss", "samples", "index", "module")
"""Causes that stay for a whole fit: what they took from the first measurements does not come later."""

# The tag under which the HParams page looks for the metrics of a run.
_HPARAMS_KEY = b"_hparams_/experiment"


def introduce(
    trainer: Trainer,
    run: Run,
    *,
    step: int,
    prefix_of: Callable[[object], str] = no_prefix,
    at_once: bool = False,
) -> bool:
    """Write layout and text when every instrument has measured, so that nothing is announced that cannot come.

    Call it on rank 0.

    Args:
        trainer: The Trainer.
        run: The record so far.
        step: The x-value.
        prefix_of: The prefix that a logger puts before the names of scalars.
        at_once: Do not wait for instruments without a measurement.

    Returns:
        Whether they were written.
    """
    waiting = [each for each in run.instruments.values() if not each.measurements and not each.declaration.once]
    if waiting and not at_once:
        return False
    write_layout(trainer, [_drawable(each) for each in run.instruments.values() if _has_curves(each)], prefix_of)
    write_text(trainer, read_me_first(run, begins=True), step=step, prefix_of=prefix_of)
    return True


def write_text(trainer: Trainer, text: str, *, step: int, prefix_of: Callable[[object], str] = no_prefix) -> None:
    """Write the text to every logger with a page for texts.

    Args:
        trainer: The Trainer.
        text: Markdown.
        step: The x-value.
        prefix_of: The prefix that a logger puts before the names of scalars.
    """
    for logger in trainer.loggers:
        with attempt(trainer, logger, "write the text to read first"):
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_text"):
                experiment.add_text(f"{prefix_of(logger)}{READ_ME_FIRST}", text, step)


def write_final_numbers(
    trainer: Trainer, run: Run, *, step: int, prefix_of: Callable[[object], str] = no_prefix
) -> None:
    """Write the final numbers as metrics of the hyperparameters, so that runs can be sorted by them.

    Only to loggers whose ``log_hyperparams`` takes metrics, as TensorBoard's does. TensorBoard shows only the first
    record of a run. By default Lightning writes one with ``hp_metric = -1`` at the start: then nothing is written, and
    a message says how to change it.

    Args:
        trainer: The Trainer.
        run: The record.
        step: The x-value.
        prefix_of: The prefix that a logger puts before the names of scalars.
    """
    found = {tag(FINAL, name): each for name, each in final_numbers(run).items()}
    if not found:
        return
    for logger in trainer.loggers:
        with attempt(trainer, logger, "log the final numbers with the hyperparameters"):
            accepted = inspect.signature(logger.log_hyperparams).parameters
            if "metrics" not in accepted:
                continue
            experiment: Any = getattr(logger, "experiment", None)
            if holds(experiment, _HPARAMS_KEY) and not holds(experiment, tag(FINAL, "").encode()):
                rank_zero_info(
                    "The final numbers are not in TensorBoard's HParams table, because it shows only the first record "
                    "of a run, and this run has one from its start; pass default_hp_metric=False to the "
                    f"{type(logger).__name__}."
                )
                continue
            known = getattr(logger, "hparams", None)
            params = {**_facts(run), **(dict(known) if isinstance(known, Mapping) else {})}
            logger.log_hyperparams(params, found, **({"step": step} if "step" in accepted else {}))
            if prefix_of(logger) and hasattr(experiment, "add_scalar"):
                # The page looks for the names without the prefix that the logger gave to the values.
                for name, each in found.items():
                    experiment.add_scalar(name, each, step)


def read_me_first(run: Run, *, begins: bool) -> str:
    """The text to read first, as Markdown: the card, and how to read each group.

    Args:
        run: The record.
        begins: Whether the training has just begun, so that there are no answers yet.
    """
    found = card(run)
    lines = ["# lightning_sloppy: read me first", ""]
    if begins:
        lines += [
            "The training has begun. At its end this text is written again, with the answers of the whole run. So far:",
            "",
        ]
    lines += [f"* **{heading}:** {text}" for heading, text in found.lines]
    lines += ["", *([f"**Warning.** {found.warning}", ""] if found.warning else [])]
    possible = [] if begins else advice(run)
    if possible:
        lines += [f"## {WHAT_YOU_CAN_DO}", "", *(f"* {paragraph}" for paragraph in possible), ""]
    lines += [
        "The page **Custom Scalars** shows related curves together; its first category, *Start here*, has the charts "
        "to look at first. Set the smoothing to 0: a smoothed bound is no bound.",
        "",
        "## The groups of curves",
        "",
    ]
    for each in run.instruments.values():
        lines += _about(each)
    return "\n".join([*lines, *_section(f"sloppy_{RESERVED}", "cost")])


def _has_curves(instrument: InstrumentRun) -> bool:
    """Whether an instrument has brought anything, and is measured again."""
    brought = any(event.status.ok or event.estimates for event in instrument.measurements)
    return brought and (not instrument.declaration.once or instrument.declaration.detail == "all")


def _drawable(instrument: InstrumentRun) -> Declaration:
    """The declaration of what can have a curve.

    It is without bands whose edges are missing: TensorBoard draws a band only if all steps have them. If a note names a
    cause that lasts, it is without the charts of which nothing was measured. Without such a note they may come: some
    quantities need two measurements.
    """
    declaration, measured = instrument.declaration, instrument.measurements
    known = {name for event in measured for name, estimate in event.estimates.items() if usable(estimate)}
    seen = {name for event in measured for name in event.estimates}
    lasting = any(isinstance(note, Note) and note.cause in LASTING for event in measured for note in event.notes)
    charts = {each.chart for each in declaration.quantities if each.name in seen or not lasting}
    quantities = [
        replace(each, band=None) if each.band and each.name in known and not known.issuperset(each.band) else each
        for each in declaration.quantities
        if each.chart in charts
    ]
    return replace(declaration, quantities=quantities)


def _about(instrument: InstrumentRun) -> list[str]:
    declaration = instrument.declaration
    group = f"sloppy_{declaration.name}"
    if instrument.kind in GUIDE:
        return _section(group, instrument.kind)
    lines = [f"### {group}", ""]
    lines += [f"* **{each.name.replace('_', ' ')}**: {each.explanation}" for each in declaration.headlines]
    return [*lines, ""]


def _section(group: str, kind: str) -> list[str]:
    advice = GUIDE[kind]
    return [
        f"### {group}: {advice.question}",
        "",
        advice.meaning,
        "",
        *([advice.single] if advice.single else []),
        *(f"* **If it {course}:** {meaning}" for course, meaning in advice.courses),
        "",
    ]


def _facts(run: Run) -> dict[str, float]:
    facts = {"num_parameters": run.facts.num_parameters, "num_training_samples": run.facts.num_training_samples}
    return {name: number for name, number in facts.items() if number}
