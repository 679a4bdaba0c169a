"""``lightning-sloppy report RUN_DIR [OTHER ...]``: the report of a run, or of several next to each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sloppy.command_line.plain_parser import PlainParser
from lightning_sloppy.command_line.plain_verb import exit_code, require_place, writing
from lightning_sloppy.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_sloppy.runs.run import Run

OF_SEVERAL = "runs_report.html"
"""Name of the report of several runs, in the working folder."""


def run_report(arguments: Sequence[str], *, debug: bool = False) -> int:
    """Read runs and write their report.

    Args:
        arguments: Behind ``report``.
        debug: Whether to raise errors instead of printing them.

    Returns:
        Exit code: 0, or 2 with one sentence on the error stream.

    Raises:
        Exception: An error that is not of this package, or any error with ``debug``.
    """
    options = _parser().parse_args(arguments)
    places, out = [Path(folder) for folder in options.runs], None if options.out is None else Path(options.out)
    return exit_code(
        lambda: _report(places, out),
        debug=debug,
        short_of_memory="The memory does not suffice for all of these runs; name fewer.",
    )


def _parser() -> PlainParser:
    parser = PlainParser(
        "report",
        description="Write the report of a run as one HTML page: five answers, picture, numbers with their errors, "
        "conditions of the guarantee, what is missing and why, costs. Several runs are compared, differences first. A "
        "run that is going on or was killed has a report, too.",
        epilog="Exit code 2: a folder without a run, or a page that cannot be written.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder of a run, such as trainer.log_dir")
    parser.add_argument(
        "--out", metavar="FILE", help=f"the page; default: report.html in RUN_DIR, or {OF_SEVERAL} for several runs"
    )
    return parser


def _report(places: Sequence[Path], out: Path | None) -> int:
    from lightning_sloppy.reporting.run_html import REPORT, run_html
    from lightning_sloppy.reporting.run_settings import settings_in
    from lightning_sloppy.reporting.web_page import require_page, write_page
    from lightning_sloppy.runs.run_file import load_run, run_file_in

    files = [run_file_in(place) for place in places]
    folders = [file.resolve().parent for file in files]
    repeated = next((folder for folder in folders if folders.count(folder) > 1), None)
    if repeated is not None:
        raise ConfigurationError(f"{repeated} is given more than once; name each run once.")
    path = out or (files[0].parent / REPORT if len(files) == 1 else Path(OF_SEVERAL))
    require_place(path)
    require_page(path)
    runs = [_there(load_run(file), folder) for file, folder in zip(files, folders, strict=True)]
    page = run_html(runs, settings=[settings_in(folder) for folder in folders])
    with writing(path):
        sys.stdout.write(f"Written: {write_page(page, path)}\n")
    return 0


def _there(run: Run, folder: Path) -> Run:
    """The run in the folder where it is now: it may have been moved."""
    return replace(run, facts=replace(run.facts, folder=str(folder)))
