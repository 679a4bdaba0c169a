"""Append a running fit to its file, as far as it is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_sloppy.runs import run_file
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from lightning_sloppy.user_warnings import warn_user


class RunWriter:
    """Appends the events of one fit to the file of its run.

    Every call appends what is not in the file yet, so a measurement that could not be written is written with the next
    one. An error gives one warning and never ends a training. Without a folder nothing is written.

    Args:
        begins_at: Effective batches before the fit. None: the step of its first measurement.
    """

    def __init__(self, *, begins_at: int | None = None) -> None:
        self._begins_at = begins_at
        self._path: Path | None = None
        self._known = RunFacts()
        self._written: dict[str, int] = {}
        self._warned = False

    def write(self, facts: RunFacts, instruments: Callable[[], Sequence[InstrumentRun]]) -> None:
        """Append the measurements that are new.

        Args:
            facts: About the fit so far.
            instruments: Gives what each instrument has measured so far; it is not called if nothing is written.
        """
        if facts.folder:
            try:
                self._append(facts, instruments())
            except Exception as error:
                self._warn(facts, error)

    def end(self, run: Run) -> None:
        """Append what is new, and the end of the fit.

        Args:
            run: The fit.
        """
        if run.facts.folder:
            try:
                path = self._append(run.facts, list(run.instruments.values()))
                run_file.append(path, run_file.ended(run, self._known))
            except Exception as error:
                self._warn(run.facts, error)

    def _append(self, facts: RunFacts, instruments: Sequence[InstrumentRun]) -> Path:
        if self._path is None:
            steps = [each.step for instrument in instruments for each in instrument.measurements]
            begins_at = min(steps, default=0) if self._begins_at is None else self._begins_at
            path = Path(facts.folder) / run_file.FILE
            run_file.append(path, run_file.head(instruments, facts, begins_at=begins_at))
            self._path, self._known = path, facts
        for instrument in instruments:
            name = instrument.declaration.name
            for each in instrument.measurements[self._written.get(name, 0) :]:
                run_file.append(self._path, run_file.measured(each, facts, self._known))
                self._known = facts
                self._written[name] = self._written.get(name, 0) + 1
        return self._path

    def _warn(self, facts: RunFacts, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warn_user(
                f"The file of the run could not be written in {facts.folder} ({type(error).__name__}: {error}); the "
                "training continues, and what is missing is written later if that succeeds."
            )
