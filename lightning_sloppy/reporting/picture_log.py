"""Draw the picture of a running fit now and then: into loggers that take images, and as a PNG beside the run."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning_sloppy.errors import MissingExtraError
from lightning_sloppy.reporting.canvas import Image, encoded, pixels, png, require_matplotlib
from lightning_sloppy.reporting.picture import picture
from lightning_sloppy.reporting.writers import attempt, no_prefix
from lightning_sloppy.runs.run import Run
from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from matplotlib.figure import Figure

TAG = "sloppy_summary/picture"
"""Tag of the picture in loggers."""

FILE = "sloppy_picture.png"
"""Name of the picture in the folder of the run."""

DRAWN_ROUNDS = (1, 2, 4, 8, 16, 32, 128, 512, 2048)
"""Rounds of measurements after which a picture is drawn. TensorBoard keeps ten images a tag and drops others at random,
so there are never more than ten: these nine and the one at the end."""

FILE_DPI = 150
"""Pixels per inch of the file, for print."""


class PictureLog:
    """The pictures of one fit. An error in drawing gives one warning, and no further picture is drawn.

    Args:
        resumed: Whether the fit continues an earlier one, whose pictures may be under the same tag. Loggers then get
            one at the end only, and the file is written as usual.
        prefix_of: The prefix that a logger puts before the names of scalars.
        drawing: Draws another picture than that of the run.
        tag: Its tag in loggers.
        file: Name of its file.
    """

    def __init__(
        self,
        *,
        resumed: bool,
        prefix_of: Callable[[object], str] = no_prefix,
        drawing: Callable[[Run], Figure] | None = None,
        tag: str = TAG,
        file: str = FILE,
    ) -> None:
        self._resumed = resumed
        self._prefix_of = prefix_of
        self._drawing, self._tag, self._file = drawing, tag, file
        self._rounds = 0
        self._seen: int | None = None
        self._wanted = False
        self._failed = False
        self._unwritable = False

    def measured(self, trainer: Trainer, step: int, run: Callable[[], Run], *, complete: bool) -> float:
        """Draw the picture if the round of measurements is complete, and one is wanted after it or an earlier one.

        Args:
            trainer: The Trainer.
            step: Step of the measurement that was just published.
            run: Gives the record so far.
            complete: Whether it is known to be the last of its round.

        Returns:
            Seconds that it took.
        """
        if step != self._seen:
            self._seen = step
            self._rounds += 1
            self._wanted = self._wanted or self._rounds in DRAWN_ROUNDS
        if not (self._wanted and complete):
            return 0.0
        self._wanted = False
        return self.draw(trainer, run, step=step, loggers=not self._resumed)

    def draw(
        self, trainer: Trainer, run: Callable[[], Run], *, step: int, loggers: bool = True, last: bool = False
    ) -> float:
        """Draw the picture, for the loggers and for the file.

        Args:
            trainer: The Trainer.
            run: Gives the record so far.
            step: Step at which it is logged.
            loggers: Whether loggers get it.
            last: Whether it is that of the whole fit, whose file has more pixels.

        Returns:
            Seconds that it took.
        """
        start = time.perf_counter()
        try:
            if not self._failed and why_no_picture() == "":
                self._draw(trainer, run(), step, loggers, last)
        except Exception as error:
            self._failed = True
            warn_user(
                f"The picture of the run could not be drawn: {type(error).__name__}: {error}. The training continues, "
                "and all values are logged; picture=False of the SloppyMonitor draws none."
            )
        return time.perf_counter() - start

    def _draw(self, trainer: Trainer, run: Run, step: int, loggers: bool, last: bool) -> None:
        takers = []
        for logger in trainer.loggers if loggers else ():
            with attempt(trainer, logger, "log the picture of the run"):
                if (way := _way(logger, f"{self._prefix_of(logger)}{self._tag}")) is not None:
                    takers.append((logger, way))
        folder = "" if self._unwritable else run.facts.folder
        if not takers and not folder:
            return
        drawn = picture(run) if self._drawing is None else self._drawing(run)
        image = pixels(drawn)
        for logger, way in takers:
            with attempt(trainer, logger, "log the picture of the run"):
                way(drawn, image, step)
        if not folder:
            return
        try:
            _write(Path(folder) / self._file, png(drawn, dpi=FILE_DPI) if last else encoded(image))
        except OSError as error:
            self._unwritable = True
            warn_user(
                f"The picture of the run could not be written in {folder} ({type(error).__name__}: {error}); the "
                "training continues, and loggers that take images still get it."
            )


_logs: WeakKeyDictionary[Any, PictureLog] = WeakKeyDictionary()


def picture_log(
    trainer: Trainer, *, resumed: bool = False, prefix_of: Callable[[object], str] = no_prefix
) -> PictureLog:
    """The pictures of the running fit of a Trainer.

    Args:
        trainer: The Trainer.
        resumed: Whether the fit continues an earlier one; of use at the first call of a fit only.
        prefix_of: The prefix that a logger puts before the names of scalars; likewise.
    """
    return _logs.setdefault(trainer, PictureLog(resumed=resumed, prefix_of=prefix_of))


def close_picture_log(trainer: Trainer, *, prefix_of: Callable[[object], str] = no_prefix) -> PictureLog:
    """The same, at the end of the fit: the next one of this Trainer begins anew."""
    return _logs.pop(trainer, PictureLog(resumed=False, prefix_of=prefix_of))


def why_no_picture() -> str:
    """Why pictures cannot be drawn here; empty if they can."""
    try:
        require_matplotlib()
    except MissingExtraError as error:
        return str(error)
    return ""


Way = Callable[["Figure", Image, int], Any]
"""How a logger takes a picture: as a figure or as an image, at a step."""


def _way(logger: Any, tag: str) -> Way | None:
    """How a logger takes a picture under a tag, by its abilities; None if it does not."""
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_image", None)):  # TensorBoard
        return lambda _, image, step: experiment.add_image(tag, image, step, dataformats="HWC")
    if callable(getattr(logger, "log_image", None)):  # Weights & Biases
        return lambda _, image, step: logger.log_image(tag, [image], step=step)
    log_figure = getattr(experiment, "log_figure", None)
    if not callable(log_figure):
        return None
    if "run_id" in inspect.signature(log_figure).parameters:  # MLflow
        return lambda drawn, _, step: log_figure(logger.run_id, drawn, f"{tag}/step_{step}.png")
    return lambda drawn, _, step: log_figure(tag, drawn, step=step)  # Comet


def _write(path: Path, content: bytes) -> None:
    """Replace the file as a whole, so that nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
