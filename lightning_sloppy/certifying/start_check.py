"""Start check: whether the initial weights can be an initialisation, judged by their errors."""

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
"""Number of initialisations for comparison: one valid start in 201 has fewer mistakes than all of them."""
LOOKED_AT = 2_000
"""Maximum number of samples on which they are evaluated."""
LEVEL = 1e-3
"""Probability that the comparison with unseen samples refuses valid weights."""


@dataclass(frozen=True)
class StartCheck:
    """Errors of the initial weights on the certifying samples, compared with new initialisations and unseen samples.

    Attributes:
        error: Error rate of the initial weights.
        samples: Number of samples for ``error``.
        tried: Number of new initialisations that were evaluated: until one makes no more mistakes, at most 200.
        below: Whether all 200 make more mistakes.
        drawn: Whether some parameters can be initialised again.
        kept: Names of parameters that cannot, although others can.
        constant: Whether the prediction is the same for every sample, so that at most a class can have been learnt.
        unseen_error: Error rate on samples that the weights cannot have seen; NaN without such samples.
        unseen_samples: Number of samples for ``unseen_error``.
        level: Probability of so few mistakes on the certifying samples for weights that have seen neither kind.
        seen: Whether it is below 1e-3, and also below that of every new initialisation, if there are any.
        looked_for_unseen: Whether there were validation samples.
        stated: Whether the user states that the weights come from other data, so that nothing is initialised.
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
        """The error of the initial weights, and the results of the comparisons."""
        found = f"The initial weights have an error of {self.error:.4f} on {self.samples:,} samples"
        if self.constant:
            found += ", with the same prediction for all of them"
        elif self.tried and self.below:
            found += f"; all of {self.tried} new initialisations have a larger error"
        elif self.tried:
            found += f"; {_ordinal(self.tried)} new initialisation does not have a larger error"
        if self.unseen_samples:
            found += f"; on {self.unseen_samples:,} validation samples it is {self.unseen_error:.4f}"
        return found + "."

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What was not checked, as conditions."""
        if self.stated:
            return (
                "The initial weights were not compared with new initialisations, because the user states that they "
                "come from other data.",
            )
        if not self.drawn:
            return (
                "The initial weights are an initialisation. This was not checked, because the module cannot be "
                "initialised again: its layers have no reset_parameters, and it has no saved hyper-parameters from "
                "which to construct it.",
            )
        if self.kept:
            return (
                f"The initial weights were checked only in part: {len(self.kept)} of the parameters cannot be "
                f"initialised again (first: {self.kept[0]}).",
            )
        return ()


PRETRAINED = ("pretrained", "pretrained_split")
"""Priors with which the user states that the initial weights come from other data."""


def start_reasons(check: StartCheck, prior: str) -> list[str]:
    """Reasons why there is no bound with these initial weights.

    Args:
        check: The start check.
        prior: The user's statement.
    """
    stated = prior in PRETRAINED
    if check.seen:
        return [
            Reason(
                f"The initial weights have an error of {check.error:.4f} on {check.samples:,} certifying samples, but "
                f"{check.unseen_error:.4f} on {check.unseen_samples:,} validation samples. For weights that have seen "
                f"neither, this has a probability of {check.level:.1g}; start from weights that do not depend on the "
                "certifying samples (or, if the validation samples come from another distribution, use others).",
                flag="prior_depends_on_sample",
            )
        ]
    if check.below and not stated:
        return [
            Reason(
                f"The initial weights are not an initialisation: their error on {check.samples:,} samples is "
                f"{check.error:.4f}, and all of {check.tried} new initialisations of the module have a larger one; "
                "start from new weights, or, if they were trained on other data than these samples, pass "
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
    """Evaluate the initial weights on certifying and on unseen samples, and compare them with new initialisations.

    For valid weights about six initialisations are evaluated, because one of them soon makes no more mistakes. For
    weights that are refused, all 200 are, with a forward of at most 2,000 samples each. The result of rank 0 is used on
    all ranks.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        objective: Computes outputs.
        classifier: Defines mistakes.
        source: The certifying samples.
        start: Initial parameters, and buffers that have changed, by name.
        prior: The user's statement. If it is about other data, nothing is initialised.
        validation: Loaders of samples that the weights cannot have seen. The first one is used.
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
    """Samples on which networks are evaluated."""

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
    # If all predictions are equal (a head that starts at zero), at most a class can have been learnt.
    constant = seen.says_one_thing(start)
    below, suspicious = drawn and not constant, level < LEVEL and not (drawn and constant)
    tried = 0
    while fresh is not None and drawn and (below or suspicious) and not constant and tried < FRESH:
        table = start | fresh.draw(tried)
        tried += 1
        others = seen.mistakes(table)
        below = below and others > mistakes
        if suspicious and unseen is not None:
            # If validation samples come from another distribution, the errors of new weights differ, too.
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
    """Probability of at most so many mistakes on the seen samples, given the total (Fisher's exact test, one-sided)."""
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
    """The samples of the first validation loader, if they can be evaluated like those of the training.

    Returns:
        The samples, and the number of mistakes of the initial weights on them.
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
    with suppress(Exception):  # of classes that are not plain modules
        return Initialisations(module, start, _rebuild(module))
    return None


def _rebuild(module: LightningModule) -> Callable[[], nn.Module] | None:
    """A constructor of the module from its hyper-parameters; None if they contain modules or are incomplete."""
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
    """An ordinal number.

    >>> _ordinal(1), _ordinal(22), _ordinal(113)
    ('the 1st', 'the 22nd', 'the 113th')
    """
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"the {number}{ending}"
