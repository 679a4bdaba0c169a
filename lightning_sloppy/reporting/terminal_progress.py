"""A bar on a terminal for long work outside a fit. Inside one there is :mod:`lightning_sloppy.reporting.progress`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_sloppy.display import Progress, untold

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE_SECONDS = 2.0
"""Work that takes less shows no bar."""

REFRESH_SECONDS = 0.1
"""The bar is drawn at most so often."""


@contextmanager
def shown_progress(console: Console, *, apart: Collection[str] = (), lines: bool = True) -> Iterator[Progress]:
    """A bar on a terminal for what takes longer than two seconds; gone at the end.

    It is drawn when the work tells of a step, by the thread that does the work: a data set may start processes, and
    they must not inherit the lock of another thread.

    Args:
        console: Of the error stream, so that the page can be redirected.
        apart: Stages that may draw or print themselves, as a function of the user does. The bar is taken away first.
        lines: Whether a line of text tells of a step of such a stage.
    """
    from rich import progress as bars

    begun = time.monotonic()
    bar: bars.Progress | None = None
    shown, drawn = "", begun

    def take_away() -> None:
        nonlocal bar
        if bar is not None:
            bar.stop()
            bar = None

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal bar, shown, drawn
        now = time.monotonic()
        if stage in apart:
            take_away()
            if lines and console.is_terminal and now - begun > PATIENCE_SECONDS:
                said = f"{stage}: {done:,}{f' of at most {total:,}' if total else ''} done"
                console.print(said, markup=False, highlight=False)
        elif console.is_interactive and now - begun > PATIENCE_SECONDS:
            count = f"{done:,} of {total:,}" if total else f"{done:,}" if done else ""
            if bar is None:
                texts = bars.TextColumn("{task.description}"), bars.TextColumn("{task.fields[count]}")
                columns = texts[0], bars.BarColumn(), texts[1]
                bar = bars.Progress(*columns, console=console, transient=True, auto_refresh=False)
                bar.add_task(stage, total=total or None, completed=done, count=count)
                bar.start()
            bar.update(bar.task_ids[0], description=stage, total=total or None, completed=done, count=count)
            if stage != shown or now - drawn >= REFRESH_SECONDS:
                shown, drawn = stage, now
                bar.refresh()

    try:
        yield tell
    finally:
        take_away()


@contextmanager
def told(progress: Progress | None, *, apart: Collection[str] = (), lines: bool = True) -> Iterator[Progress]:
    """The function of the user that is told of progress; without one a bar on the terminal of the error stream.

    Args:
        progress: The function, or None.
        apart: As for :func:`shown_progress`.
        lines: As for :func:`shown_progress`.
    """
    if progress is not None:
        yield progress
    elif find_spec("rich") is None:  # which comes with the extra "cli"
        yield untold
    else:
        from rich.console import Console

        with shown_progress(Console(stderr=True), apart=apart, lines=lines) as tell:
            yield tell
