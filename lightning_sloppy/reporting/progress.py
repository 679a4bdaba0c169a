"""Progress display for long measurements, compatible with Lightning's progress bars.

With the Rich bar, the work is an additional task of the same display, because a second live display would corrupt the
screen. With the TQDM bar it is an additional line below, or a widget in a notebook. Where the output is neither a
terminal nor such a widget, as in a log file, nothing can be drawn again, so one line says once what takes long. An
error in the display causes one warning and disables the display, but does not affect the measurement.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PATIENCE_SECONDS = 2.0
"""Work that takes less time than this is not displayed."""

_REFRESH_SECONDS = 0.2

# Hidden Rich tasks that can be shown again, for each display. Lightning indexes the tasks by position, so none may be
# removed, and a new one for each measurement would accumulate.
_idle_tasks: WeakKeyDictionary[Any, dict[bool, list[Any]]] = WeakKeyDictionary()


_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


class Display(Protocol):
    """A display of the progress of some work."""

    def advance(self, steps: int) -> None:
        """Show that ``steps`` more steps are done."""

    def close(self) -> None:
        """Remove the display."""


class Progress:
    """The object that :func:`progress` yields. It receives finished steps and decides whether to show them."""

    def __init__(self, open_display: Callable[[], Display | None], *, patience: float) -> None:
        """Start the clock; ``open_display`` is called once, at the first step after ``patience`` seconds."""
        self._open_display: Callable[[], Display | None] | None = open_display
        self._display: Display | None = None
        self._due = time.monotonic() + patience
        self._unseen = 0

    def advance(self, steps: int = 1) -> None:
        """Report ``steps`` finished steps. Never raises."""
        self._unseen += steps
        if self._open_display is not None and time.monotonic() >= self._due:
            open_display, self._open_display = self._open_display, None
            self._guarded(lambda: setattr(self, "_display", open_display()))
        if self._display is not None:
            unseen, self._unseen = self._unseen, 0
            display = self._display
            self._guarded(lambda: display.advance(unseen))

    def close(self) -> None:
        """Remove the display. Never raises."""
        self._open_display = None
        if self._display is not None:
            display, self._display = self._display, None
            self._guarded(display.close)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._display = None
            warn_user(
                f"The progress display failed ({type(error).__name__}: {error}); the work itself continues without it. "
                "Pass enable_progress_bar=False to the Trainer to disable it."
            )


@contextmanager
def progress(
    trainer: Trainer, title: str, total: int | None = None, *, patience: float = PATIENCE_SECONDS
) -> Iterator[Progress]:
    """Show the progress of work inside a hook, with a display that suits the Trainer's progress bar.

    Nothing is shown for work shorter than ``patience``, if the user disabled the bar, and on other ranks. Otherwise it
    shows a task in a live Rich bar, a line under a TQDM bar, or else, once for each title, one line of text.

    Args:
        trainer: The running Trainer.
        title: Name of the work, for instance "Hessian: measuring on 1,024 samples". A bar shows only the part before
            the colon, because a long text would reduce the width of Lightning's bars.
        total: Number of steps, or None if it is unknown.
        patience: Seconds before anything is shown.

    Yields:
        An object whose ``advance(steps)`` reports finished steps.
    """
    shown = Progress(lambda: _display(trainer, title, total), patience=patience)
    try:
        yield shown
    finally:
        shown.close()


def _display(trainer: Trainer, title: str, total: int | None) -> Display | None:
    bar: Any = trainer.progress_bar_callback
    if bar is None or getattr(bar, "is_disabled", False):
        return None
    short = title.partition(":")[0]
    live = getattr(getattr(bar, "progress", None), "live", None)
    if live is not None and live.is_started and _redraws(live.console):
        return _RichTask(bar, short, total)
    if hasattr(bar, "process_position") and (sys.stdout.isatty() or _has_widgets()):
        return _TqdmLine(bar, short, total)
    if title not in (said := _said_to(trainer)):
        said.add(title)
        rank_zero_info(f"{title}, ...")
    return None


def _redraws(console: Any) -> bool:
    """Whether a console of Rich can draw a bar more than once."""
    return bool(console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal))


def _has_widgets() -> bool:
    """Whether Lightning's bars are widgets of a notebook, which have no lines to move between."""
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    # By name: the module of this class imports ipywidgets.
    return any(kind.__name__ == "tqdm_notebook" for kind in Tqdm.__mro__)


def _said_to(trainer: Trainer) -> set[str]:
    """The titles that were told in this fit as a line of text."""
    try:
        return _said.setdefault(trainer, set())
    except TypeError:  # without weak references
        return set()


class _RichTask:
    def __init__(self, bar: Any, title: str, total: int | None) -> None:
        self._progress = bar.progress
        self._finite = total is not None
        size = math.inf if total is None else total
        idle = self._idle()
        if idle:
            self._task = idle.pop()
            self._progress.reset(self._task, total=size, description=title, visible=True)
        else:
            self._task = self._progress.add_task(title, total=size)
        self._refreshed = 0.0

    def _idle(self) -> list[Any]:
        # Lightning uses a separate class for tasks of infinite size, so the two kinds are not interchangeable.
        return _idle_tasks.setdefault(self._progress, {}).setdefault(self._finite, [])

    def advance(self, steps: int) -> None:
        self._progress.update(self._task, advance=steps)
        if time.monotonic() - self._refreshed >= _REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._progress.refresh()

    def close(self) -> None:
        self._progress.update(self._task, visible=False)
        self._idle().append(self._task)
        self._progress.refresh()


class _TqdmLine:
    def __init__(self, bar: Any, title: str, total: int | None) -> None:
        # Imported here, because a Trainer with another bar does not need tqdm.
        from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

        # Lightning's train and validation bars use two lines from process_position on, if there is a train bar.
        lines = 2 if _has_train_bar(bar) else 0
        self._line = Tqdm(
            desc=title, total=total, position=2 * bar.process_position + lines, leave=False, file=sys.stdout
        )

    def advance(self, steps: int) -> None:
        self._line.update(steps)

    def close(self) -> None:
        self._line.close()


def _has_train_bar(bar: Any) -> bool:
    try:
        return bar.train_progress_bar is not None
    except TypeError:  # raised by the property while the bar does not exist
        return False
