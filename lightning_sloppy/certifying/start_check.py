"""Whether the weights at the start can be an initialisation, judged by their own mistakes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scipy.stats import hypergeom
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sloppy.certificate import Reason
from lightning_sloppy.certifying import validity
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.evaluation.initialisations import Initialisations
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

FRESH = 200
"""Initialisations that weights are compared with: one honest start in 201 is below them all."""
LOOKED_AT = 2_000
"""Samples on which they are judged, at most."""
LEVEL = 1e-3
"""Probability with which honest weights are refused by samples that they cannot have seen."""


@dataclass(frozen=True)
class StartCheck:
    """What the weights at the start do on the samples that certify, beside what they should do.

    Attributes:
        error: Their error rate.
        samples: Samples behind it.
        tried: Fresh initialisations looked at: until one makes no more mistakes, at most 200.
        below: Whether all 200 make more mistakes.
        drawn: Whether some parameters can be initialised again.
        kept: Names of parameters that cannot, though others can.
        constant: Whether they say the same of every sample, and so have learnt a class at most.
        unseen_error: Error rate on samples that the weights cannot have seen; NaN without such samples.
        unseen_samples: Samples behind it.
        level: Probability of so many fewer mistakes on the certifying samples, had the weights seen neither kind.
        seen: Whether it is below 1e-3, and also below that of every fresh initialisation, where there are some.
        looked_for_unseen: Whether there were validation samples to look at.
        stated: Whether the user states that they come from other data, so that nothing is initialised.
    """

    error: float
    samples: int
    tried: int = 0
    below: bool = False
    drawn: bool = False
    kept: tuple[str, ...] = ()
    constant: bool = False
    unseen_error: float = math.nan
    unseen_samples: int = 0
    level: float = 1.0
    seen: bool = False
    looked_for_unseen: bool = False
    stated: bool = False

    @property
    def words(self) -> str:
        """The error of the weights at the start, and what it was compared with."""
        found = f"The weights at the start have an error of {self.error:.4f} on {self.samples:,} samples"
        if self.constant:
            found += ", of all of which they say the same"
        elif self.tried and self.below:
            found += f"; all of {self.tried} fresh initialisations tried have more"
        elif self.tried:
            found += f"; {_ordinal(self.tried)} fresh initialisation tried has no more"
        if self.unseen_samples:
            found += f"; on {self.unseen_samples:,} validation samples it is {self.unseen_error:.4f}"
        return found + "."

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What was not checked, as conditions."""
        if self.stated:
            return (
                "The start was not compared with fresh initialisations, for the user states that its weights come from "
                "other data.",
            )
        if not self.drawn:
            return (
                "The start was not checked: the module cannot be initialised again (its layers have no "
                "reset_parameters, and it keeps no hyper-parameters to be made from), so nobody has seen that its "
                "weights at the start are an initialisation.",
            )
        if self.kept:
            return (
                f"The start was checked only in part: {len(self.kept)} of the parameters cannot be initialised again "
                f"(first: {self.kept[0]}).",
            )
        return ()


PRETRAINED = ("pretrained", "pretrained_split")
"""Priors with which the user states that the weights at the start come from other data."""


def start_reasons(check: StartCheck, prior: str) -> list[str]:
    """Why the weights at the start forbid a bound.

    Args:
        check: What they do.
        prior: The user's statement.
    """
    stated = prior in PRETRAINED
    if check.seen:
        return [
            Reason(
                f"The weights at the start make {check.error:.4f} mistakes a sample on {check.samples:,} of those that "
                f"certify, but {check.unseen_error:.4f} on {check.unseen_samples:,} validation samples, which has "
                f"a probability of {check.level:.1g} for weights that have seen neither; start from weights that no "
                "certifying sample has shaped (or, if the validation samples come from another distribution, give "
                "others).",
                flag="prior_depends_on_sample",
            )
        ]
    if check.below and not stated:
        return [
            Reason(
                f"The weights at the start are no initialisation: their error on {check.samples:,} samples is "
                f"{check.error:.4f}, and {check.tried} fresh initialisations of the module all have more; start from "
                "fresh weights, or, if they were trained on other data than these samples, state so with "
                f"{'prior=' + repr('pretrained_split') if prior == 'split' else 'prior=' + repr('pretrained')}.",
                flag="prior_depends_on_sample",
            )
        ]
    return []


def checked_start(
    trainer: Trainer,
    context: FitContext,
    objective: Objective,
    classifier: Classifier,
    source: SampleSource,
    *,
    start: Mapping[str, Tensor],
    prior: str,
    validation: list[DataLoader[Any]],
) -> StartCheck:
    """Judge the weights at the start on the samples that certify, on unseen ones, and fresh initialisations beside.

    Of honest weights about six initialisations are looked at, for one is soon no better; of those that are refused all
    200, with a forward of at most 2,000 samples each. All ranks are told what the first has found.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        objective: Gives outputs.
        classifier: What is a mistake.
        source: The samples that certify.
        start: Parameters, and buffers that are others now, by name.
        prior: The user's statement; with one about other data nothing is initialised.
        validation: Loaders of samples that the weights cannot have seen; the first one counts.
    """
    seen = _Side(ErrorCounter(trainer, context, source, objective, classifier), len(source))
    unseen, unseen_mistakes = _unseen(trainer, context, objective, classifier, start, validation)
    fresh = None if prior in PRETRAINED else _initialisations(context.module, start)
    found = replace(
        _judged(seen, unseen, unseen_mistakes, dict(start), fresh),
        looked_for_unseen=bool(validation),
        stated=prior in PRETRAINED,
    )
    return found if context.ranks.count == 1 else gathered_over_ranks(found)[0]


class _Side:
    """Samples on which networks are judged."""

    def __init__(self, counter: ErrorCounter, total: int) -> None:
        self._counter = counter
        self._indices = probe_indices(total, LOOKED_AT, seed=5)
        self.samples = len(self._indices)

    def mistakes(self, table: Mapping[str, Tensor]) -> int:
        return self._counter.mistakes_of(table, self._indices)

    def says_one_thing(self, table: Mapping[str, Tensor]) -> bool:
        return self._counter.says_one_thing(table, self._indices)


def _judged(
    seen: _Side, unseen: _Side | None, unseen_mistakes: int, start: dict[str, Tensor], fresh: Initialisations | None
) -> StartCheck:
    mistakes = seen.mistakes(start)
    level = _level(mistakes, seen, unseen_mistakes, unseen)
    drawn = fresh is not None and bool(fresh.drawn)
    # Where every sample is called the same, nothing but a class can have been learnt: heads that start at zero.
    constant = seen.says_one_thing(start)
    below, suspicious = drawn and not constant, level < LEVEL and not (drawn and constant)
    tried = 0
    while fresh is not None and drawn and (below or suspicious) and not constant and tried < FRESH:
        table = start | fresh.draw(tried)
        tried += 1
        others = seen.mistakes(table)
        below = below and others > mistakes
        if suspicious and unseen is not None:
            # Validation samples of another distribution tell fresh weights apart, too.
            suspicious = _level(others, seen, unseen.mistakes(table), unseen) > level
    return StartCheck(
        error=mistakes / seen.samples,
        samples=seen.samples,
        tried=tried,
        below=below,
        drawn=drawn,
        kept=() if fresh is None else fresh.kept,
        constant=constant,
        unseen_error=math.nan if unseen is None else unseen_mistakes / unseen.samples,
        unseen_samples=0 if unseen is None else unseen.samples,
        level=level,
        seen=suspicious,
    )


def _level(mistakes: int, seen: _Side, unseen_mistakes: int, unseen: _Side | None) -> float:
    """Probability of at most so many mistakes among the seen, given those of both (Fisher's exact test, one-sided)."""
    if unseen is None:
        return 1.0
    both = seen.samples + unseen.samples
    return float(hypergeom.cdf(mistakes, both, mistakes + unseen_mistakes, seen.samples))


def _unseen(
    trainer: Trainer,
    context: FitContext,
    objective: Objective,
    classifier: Classifier,
    start: Mapping[str, Tensor],
    validation: list[DataLoader[Any]],
) -> tuple[_Side | None, int]:
    """The samples of the first validation loader, where they can be judged as those of the training are.

    Returns:
        Them, and the mistakes of the weights at the start on them.
    """
    if not validation:
        return None, 0
    with suppress(Exception):
        source = SampleSource(validation[0])
        if not validity.reads_differ(trainer, context, source):
            side = _Side(ErrorCounter(trainer, context, source, objective, classifier), len(source))
            return side, side.mistakes(start)
    return None, 0


def _initialisations(module: LightningModule, start: Mapping[str, Tensor]) -> Initialisations | None:
    with suppress(Exception):  # of classes that are no plain modules
        return Initialisations(module, start, _rebuild(module))
    return None


def _rebuild(module: LightningModule) -> Callable[[], nn.Module] | None:
    """The module's class called with its hyper-parameters; None where they hold modules or do not tell all."""
    given = dict(module.hparams)
    if any(isinstance(value, (nn.Module, Tensor)) for value in given.values()):
        return None
    parameters = inspect.signature(type(module).__init__).parameters
    if not given and len(parameters) > 1:
        return None
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    wanted = {name: value for name, value in given.items() if anything or name in parameters}
    # Copies: a constructor may keep or change what it is given.
    return lambda: type(module)(**deepcopy(wanted))


def _ordinal(number: int) -> str:
    """The position of a thing among others.

    >>> _ordinal(1), _ordinal(22), _ordinal(113)
    ('the 1st', 'the 22nd', 'the 113th')
    """
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"the {number}{ending}"
