"""``lightning-sloppy inspect PATH``: look at the data before any model, or compare them with a report of others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sloppy.command_line.plain_parser import PlainParser
from lightning_sloppy.command_line.plain_verb import exit_code, require_place, writing
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_groups import THRESHOLD
from lightning_sloppy.inspection.data_report import arrays_beside

DRIFT = 1
"""Exit code for drift."""


def run_inspect(arguments: Sequence[str], *, debug: bool = False) -> int:
    """Read, inspect, print the page.

    Args:
        arguments: Behind ``inspect``.
        debug: Whether to raise errors instead of printing them.

    Returns:
        Exit code: 0, or 2 with one sentence on the error stream. With ``--against`` 1 for drift.

    Raises:
        Exception: An error in the user's data module, or any error with ``debug``.
    """
    arguments, of_data = _split(arguments)
    options = _parser().parse_args(arguments)
    if options.path is None and options.target and Path(options.target[-1]).is_file():
        options.path = options.target.pop()  # the path behind the targets
    return exit_code(
        lambda: _inspect(options, of_data),
        debug=debug,
        short_of_memory=f"The memory does not suffice for {options.path or 'these data'}; select columns first.",
    )


def _inspect(options: argparse.Namespace, of_data: list[str]) -> int:
    if (options.path is None) == (not of_data):
        raise ConfigurationError(
            "Give the PATH of a table, or a LightningDataModule with --data CLASS_PATH"
            + (", not both." if of_data else "; lightning-sloppy inspect --help shows more.")
        )
    if options.against is not None and options.html is not None:
        raise ConfigurationError("--html writes the page of one table; leave out --html or --against.")
    _check_files(options)
    data = _of_datamodule(of_data) if of_data else options.path

    from rich.console import Console

    from lightning_sloppy.inspection.inspecting import inspect
    from lightning_sloppy.reporting.data_page import print_page
    from lightning_sloppy.reporting.terminal_progress import shown_progress

    if options.against is not None:
        return _compared(options, data)
    with shown_progress(Console(stderr=True)) as progress:
        report = inspect(
            data,
            target=options.target or (),
            missing=options.missing_method,
            missing_codes=options.missing or (),
            header=options.header,
            threshold=options.threshold,
            shrinkage=options.shrinkage,
            intervals=not options.no_intervals,
            seed=options.seed,
            progress=progress,
        )
    written: list[str] = []
    if options.json is not None:
        with writing(options.json):
            written += [options.json, str(report.save(options.json))]
    if options.html is not None:
        from lightning_sloppy.reporting.data_html import data_html
        from lightning_sloppy.reporting.web_page import write_page

        with writing(options.html):
            write_page(data_html(report), options.html)
        written.append(options.html)
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_page(report, console)
    if written:
        console.print(f"\nWritten: {' and '.join(written)}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _compared(options: argparse.Namespace, data: Any) -> int:
    """Compare with a report, print the page, and write the report of the later rows with the comparison."""
    from rich.console import Console

    from lightning_sloppy.drift.comparing import checked_alpha, drift_report, reference_from
    from lightning_sloppy.inspection.inspecting import inspect
    from lightning_sloppy.reporting.drift_page import print_drift
    from lightning_sloppy.reporting.terminal_progress import shown_progress

    checked_alpha(options.alpha)
    reference = reference_from(options.against)
    target, codes = options.target or (), options.missing or ()
    with shown_progress(Console(stderr=True)) as progress:
        found = drift_report(
            data, reference, alpha=options.alpha, target=target, missing_codes=codes, header=options.header,
            seed=options.seed, progress=progress,
        )  # fmt: skip
        report = None
        if options.json is not None:
            report = inspect(
                data, target=[*dict.fromkeys([*target, *found.targets])], missing=options.missing_method,
                missing_codes=[*reference.codes, *codes], header=options.header, threshold=options.threshold,
                shrinkage=options.shrinkage, intervals=not options.no_intervals, seed=options.seed, progress=progress,
            )  # fmt: skip
    arrays = None
    if report is not None:
        with writing(options.json):
            arrays = report.save(options.json, comparison=found.to_dict())
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_drift(found, console)
    if report is not None:
        console.print(f"\nWritten: {options.json} and {arrays}", markup=False, highlight=False, soft_wrap=True)
    return DRIFT if found.is_drift else 0


def _parser() -> argparse.ArgumentParser:
    parser = PlainParser(
        "inspect",
        description="Look at a table before any model: columns that repeat each other, independent directions, missing "
        "values, noise, and how sure all of it is. Prints one page.",
        epilog="--data CLASS_PATH [--data.ARGUMENT VALUE ...] takes the training samples of a LightningDataModule "
        "instead of a PATH. Exit code 2: a table that cannot be read, used or compared. With --against 1: drift.",
        more=["--data"],
    )
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="text (.csv, .tsv, .txt, ...), .parquet, .npy, .npz or IDX file"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="columns to keep apart and to report by themselves",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the report to FILE, and the arrays to a file of the same name with the ending .npz; with --against "
        "the comparison, too",
    )
    parser.add_argument(
        "--against",
        metavar="OLD.json",
        help="compare with the table of which --json wrote this report: columns, correlations, spectrum",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.05,
        help="part of unchanged tables that --against may call drift (0.05)",
    )
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page, with pictures, to FILE")
    parser.add_argument(
        "--missing",
        action="append",
        metavar="CODE",
        help="a word or number that means a missing value, beside empty, NaN, NA and ?; may be repeated",
    )
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line of a file of text names the columns (as it looks; a line of numbers is a row)",
    )
    parser.add_argument(
        "--missing-method",
        choices=["pairwise", "em", "error"],
        default="pairwise",
        help="correlations over common rows (pairwise), the Gaussian model (em), or refuse",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="R",
        help=f"absolute correlation above which columns carry the same information ({THRESHOLD:g})",
    )
    parser.add_argument(
        "--shrinkage",
        choices=["ledoit_wolf", "oas"],
        help="also the participation ratio of the correlation shrunk towards the identity",
    )
    parser.add_argument(
        "--no-intervals", action="store_true", help="leave out the intervals, which take most of the time"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ours, and those of the data module: ``--data`` and ``--data.name``, each with what follows up to an option."""
    ours: list[str] = []
    of_data: list[str] = []
    into = ours
    for word in arguments:
        if word.startswith("--"):
            into = of_data if word.split("=")[0].split(".")[0] == "--data" else ours
        into.append(word)
    return ours, of_data


def _of_datamodule(arguments: list[str]) -> Any:
    """The training data set of a data module.

    Raises:
        ConfigurationError: It has none.
        SystemExit: Arguments that cannot be parsed.
    """
    from lightning.pytorch import LightningDataModule

    from lightning_sloppy.command_line.faults import own_part, told
    from lightning_sloppy.command_line.parser import Parser

    parser = Parser(prog="lightning-sloppy inspect", exit_on_error=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, fail_untyped=False)
    # The method was renamed in jsonargparse 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    parsed = parser.parse_args(arguments)
    try:
        module: LightningDataModule = instantiate(parsed).data
    except Exception as error:
        mistake = told(error, "building")
        if mistake is None:
            raise own_part(error) from None
        raise ConfigurationError(" ".join(mistake[1])) from error
    module.prepare_data()
    module.setup("fit")
    loader = module.train_dataloader()
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        raise ConfigurationError(
            f"{type(module).__name__} gives a {type(loader).__name__} for training, but one DataLoader is needed; "
            "give the data as a file instead."
        )
    return dataset if hasattr(dataset, "__len__") else loader


def _check_files(options: argparse.Namespace) -> None:
    """Refuse, before anything is read, files that cannot be written or that are the table or each other.

    Raises:
        ConfigurationError: For such a file.
    """
    taken = set() if options.path is None else {Path(options.path).resolve()}
    if options.against is not None:
        taken |= {Path(options.against).resolve(), arrays_beside(Path(options.against)).resolve()}
    for option, name in (("--json", options.json), ("--html", options.html)):
        if name is None:
            continue
        path = Path(name)
        files = [path, arrays_beside(path)] if option == "--json" else [path]
        for file in files:
            require_place(file)
        over = next((file for file in files if file.resolve() in taken), None)
        if over is not None:
            what = options.path if over.resolve() == Path(options.path or ".").resolve() else over
            raise ConfigurationError(f"The report would overwrite {what}; choose another name for {option}.")
        taken |= {file.resolve() for file in files}
