"""Compare the training inputs with a report of earlier ones, and act on drift before the first step."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.drift.comparing import compared, reference_from
from lightning_sloppy.drift.later_rows import LaterRows
from lightning_sloppy.drift.report import DriftReport, inside
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inspection.reference import Reference
from lightning_sloppy.probing.error_words import in_words

OnDrift: TypeAlias = Literal["warn", "error"] | Callable[[DriftReport], None]
"""What is done about drift."""

ORIGIN = "The training inputs"


def checked_on_drift(on_drift: Any, against: str | Path | None) -> OnDrift:
    """What is done about drift.

    Raises:
        ConfigurationError: Neither "warn", "error" nor a callable, or nothing to compare with, or no path.
    """
    if on_drift not in ("warn", "error") and not callable(on_drift):
        raise ConfigurationError(f"on_drift={on_drift!r} is unknown; pass 'warn', 'error' or a callable.")
    if against is None and on_drift != "warn":
        raise ConfigurationError(
            "on_drift was given, but nothing to compare with; pass against= the JSON that lightning-sloppy inspect "
            "wrote."
        )
    if against is not None and not isinstance(against, (str, Path)):
        raise ConfigurationError(
            f"InputSpectrum got against= a {type(against).__name__}; pass the path of the JSON that lightning-sloppy "
            "inspect wrote."
        )
    found: OnDrift = on_drift
    return found


@dataclass
class InputDrift:
    """The comparison in one fit.

    Args:
        against: The JSON of a report.
        alpha: Level.
        seed: Of the draws.

    Attributes:
        report: What was found, or None.
        failure: Why nothing could be compared, or "".
    """

    against: str | Path
    alpha: float
    seed: int
    report: DriftReport | None = None
    failure: str = ""
    reference: Reference = field(init=False, repr=False)
    _later: LaterRows | None = field(default=None, repr=False)
    _names: tuple[str, ...] = ()
    _used: list[int] = field(default_factory=list, repr=False)
    _constant: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Read the report, so that a file that cannot be used is refused before anything else happens."""
        self.reference = reference_from(self.against)

    def begin(self, names: Sequence[str]) -> None:
        """Take the names of the columns of the inputs."""
        reference = self.reference
        place = {name: index for index, name in enumerate(names)}
        parent = dict(zip(reference.names, reference.parents, strict=True))
        # A training leaves out constant columns and those set aside; that is no drift.
        unused = (*reference.constant, *reference.set_aside)
        self._names = tuple(dict.fromkeys([*(parent.get(name, name) for name in names), *unused]))
        present = np.array([name in place for name in reference.names])
        if 2 * int(present.sum()) < len(present):
            self.failure = (
                f"{ORIGIN} cannot be compared with {inside(reference.origin)}: they have {int(present.sum()):,} of the "
                f"{len(present):,} columns that are used there, and half are needed; pass feature_names= with the "
                "names of the report."
            )
            return
        constant = tuple(name for name, value in reference.constant.items() if name in place and not _is_text(value))
        self._used = [place.get(name, -1) for name in reference.names]
        self._constant = [place[name] for name in constant]
        self._later = LaterRows(reference, present, constant)

    def add(self, rows: Tensor) -> None:
        """Add samples, (n, D)."""
        if self._later is None:
            return
        if rows.is_floating_point():
            self._later.rounding = 4 * torch.finfo(rows.dtype).eps
        rounding = max(self._later.rounding, 1e-9)
        values = rows.detach().to("cpu").double().numpy()
        chosen = np.full((len(values), len(self._used)), np.nan)
        known = [index for index, place in enumerate(self._used) if place >= 0]
        chosen[:, known] = values[:, [self._used[index] for index in known]]
        wanted = [self.reference.constant[name] for name in self._later.constant]
        with np.errstate(invalid="ignore"):
            departing = [
                np.abs(values[:, place] - value) > rounding * (1 + abs(value))
                for place, value in zip(self._constant, wanted, strict=True)
                if isinstance(value, (int, float))
            ]
        self._later.add(chosen, np.stack(departing, axis=1) if departing else None)

    def finish(self, rank: int, over_ranks: Callable[[Any], list[Any]] | None) -> None:
        """Compare: rank 0 does, and all have its answer.

        Args:
            rank: Of this process.
            over_ranks: Gathers an object from all processes; None for one process. All of them must call this.
        """
        own = (None if self._later is None else self._later.packed(), self.failure, self._names)
        said = [own] if over_ranks is None else over_ranks(own)
        answer = self._answer(said) if rank == 0 else (None, "")
        self.report, self.failure = answer if over_ranks is None else over_ranks(answer)[0]
        self._later = None

    def refusal(self, said: str) -> str:
        """Why a fit is ended, and what to do."""
        lost = () if self.report is None else self.report.lost
        text = (
            f"The fit was ended before its first step by on_drift='error': {said} Inspect the new inputs with "
            f"--against {self.against}, correct them, or make a report of them to compare with from now on."
        )
        if not lost:
            return text
        options = " ".join(f"--target {shlex.quote(name)}" for name in lost[:5])
        return f"{text} If the model does not see the lost columns, make the reference without them: {options}."

    def _answer(self, said: list[Any]) -> tuple[DriftReport | None, str]:
        failure = next((each[1] for each in said if each[1]), "")
        if failure:
            return None, failure
        try:
            later = LaterRows.joined(self.reference, [each[0] for each in said if each[0] is not None])
            names = next(each[2] for each in said if each[2])
            return compared(later, self.reference, ORIGIN, names, alpha=self.alpha, seed=self.seed), ""
        except Exception as error:  # the measurement itself goes on
            return None, in_words(error)


def _is_text(value: Any) -> bool:
    return not isinstance(value, (int, float))
