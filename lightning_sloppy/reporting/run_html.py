"""The report of one run, or of several next to each other, as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.reporting import report_parts
from lightning_sloppy.reporting.actions import advice
from lightning_sloppy.reporting.card import Card, card, doubts
from lightning_sloppy.reporting.compared import run_names
from lightning_sloppy.reporting.comparison import compare
from lightning_sloppy.reporting.picture import MOST_RUNS, picture, pictures
from lightning_sloppy.reporting.report_parts import CostOfInstrument, Missing, NumbersOfInstrument
from lightning_sloppy.reporting.run_settings import settings_in
from lightning_sloppy.reporting.web_page import PagePicture, as_page_picture, rendered, require_page, write_page
from lightning_sloppy.runs.run import Run

REPORT = "report.html"
"""Name of the report in the folder of its run."""


@dataclass(frozen=True)
class ShownCertificate:
    """A certificate of a run.

    Attributes:
        title: Title of the instrument.
        certificate: The certificate.
        explanation: How the bound comes about and how to make it smaller.
        numbers: Everything that it depends on.
    """

    title: str
    certificate: Certificate
    explanation: list[str]
    numbers: list[tuple[str, str]]


@dataclass(frozen=True)
class RunPage:
    """Everything that the report shows of one run.

    Attributes:
        name: Name of the run.
        ending: How it ended.
        ended: Whether it did.
        card: The five answers.
        doubts: What makes numbers unreliable.
        advice: What can be done, with what was measured elsewhere.
        picture: The picture, if it could be drawn.
        no_picture: Why not.
        numbers: Of each instrument.
        certificates: The latest of each instrument.
        missing: What has no value.
        irregular: Instruments with irregular intervals.
        warnings: The warnings of the fit.
        costs: Of each instrument.
        facts: About the run.
    """

    name: str
    ending: str
    ended: bool
    card: Card
    doubts: list[str]
    advice: list[str]
    picture: PagePicture | None
    no_picture: str
    numbers: list[NumbersOfInstrument]
    certificates: list[ShownCertificate]
    missing: list[Missing]
    irregular: list[str]
    warnings: tuple[str, ...]
    costs: list[CostOfInstrument]
    facts: list[tuple[str, str]]


def run_html(
    runs: Run | Sequence[Run], *, names: Sequence[str] = (), settings: Sequence[Mapping[str, str]] = ()
) -> str:
    """The report of a run, or of several next to each other. The page loads nothing from anywhere.

    Args:
        runs: One run or several, for instance ``monitor.record()`` or ``load_run(folder)``.
        names: A name for each run. Default: the shortest ends of their folders that tell them apart.
        settings: For each run its settings by name. Those that differ are shown.

    Returns:
        HTML. All texts of the runs are escaped.

    Raises:
        ConfigurationError: Without a run, or with another number of names or settings than runs.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    if not several:
        raise ConfigurationError("run_html got no run; pass one or several.")
    called = list(names) or run_names(several)
    if len(called) != len(several) or len(settings) not in (0, len(several)):
        raise ConfigurationError(
            f"run_html got {len(several)} runs, {len(called)} names and {len(settings)} settings; pass one of each "
            "for each run."
        )
    pages = [_page(run, name) for run, name in zip(several, called, strict=True)]
    title = f"{several[0].facts.module or 'Run'}: {called[0]}" if len(several) == 1 else f"{len(several)} runs compared"
    return rendered(
        "run.html",
        title=title,
        pages=pages,
        comparison=compare(several, settings) if len(several) > 1 else None,
        together=_together(several, called),
    )


def write_report(run: Run) -> Path:
    """Write the report of a run into its folder.

    Args:
        run: A run with a folder.

    Returns:
        The file.

    Raises:
        ConfigurationError: There is another file of this name.
        OSError: It cannot be written.
    """
    folder = Path(run.facts.folder)
    folder.mkdir(parents=True, exist_ok=True)
    require_page(folder / REPORT)
    return write_page(run_html(run, settings=[settings_in(folder)]), folder / REPORT)


def _together(runs: Sequence[Run], names: Sequence[str]) -> PagePicture | None:
    """The picture of several runs in one frame, if there are not too many and matplotlib is there."""
    if not 1 < len(runs) <= MOST_RUNS:
        return None
    try:
        drawn = pictures(runs, names)
    except MissingExtraError:
        return None
    said = f"Spectra, effective dimensions over the steps, and error rates of {', '.join(names)} in one frame."
    return as_page_picture(drawn, said, wide=True)


def _page(run: Run, name: str) -> RunPage:
    drawn, why_not = None, ""
    try:
        drawn = as_page_picture(
            picture(run),
            f"Spectra, effective dimensions over the steps, and error rates of {name}. The tables hold the numbers.",
            wide=True,
        )
    except MissingExtraError as error:
        why_not = str(error)
    return RunPage(
        name=name,
        ending=report_parts.ending(run.facts, report_parts.all_measurements(run)),
        ended=bool(run.facts.end),
        card=card(run),
        doubts=doubts(run),
        advice=advice(run),
        picture=drawn,
        no_picture=why_not,
        numbers=[report_parts.numbers(each) for each in run.instruments.values()],
        certificates=[
            ShownCertificate(title, found, report_parts.explanation(found), report_parts.certificate_numbers(found))
            for title, found in report_parts.certificates(run)
        ],
        missing=report_parts.missing(run),
        irregular=report_parts.irregular(run),
        warnings=run.facts.warnings,
        costs=report_parts.costs(run),
        facts=report_parts.facts_of(run.facts),
    )
