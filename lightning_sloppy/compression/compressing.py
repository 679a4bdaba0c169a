"""Make a network smaller: linear and convolution layers of low rank in the metric of their own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_sloppy.compression.compressed import Compressed, CompressionTable, CurvePoint, LayerRecord
from lightning_sloppy.compression.copies import independent_copy
from lightning_sloppy.compression.effects import IncomparableError, effects
from lightning_sloppy.compression.low_rank import Directions
from lightning_sloppy.compression.matrix_layers import Layer, find_layers
from lightning_sloppy.compression.sharing import UNCHANGED, Choice, Shares, keeping
from lightning_sloppy.compression.sizes import stored_numbers
from lightning_sloppy.compression.statistics import Seen, see
from lightning_sloppy.compression.structure import Structure, pair_of, put
from lightning_sloppy.compression.target import refuse_wrong_target
from lightning_sloppy.compression.trial import refuse_unused_pairs
from lightning_sloppy.display import Progress, counted
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.preserve import random_streams
from lightning_sloppy.evaluation.stand_ins import unwrapped
from lightning_sloppy.reporting.terminal_progress import told

Evaluate = Callable[[nn.Module], float]
"""``evaluate(module) -> float``, larger is better."""

MOST_EVALUATIONS = 12
"""Evaluations of ``max_drop``: that of the module given, and those of the bisection."""

EVALUATING = "evaluating sizes"
"""The stage of progress in which ``evaluate`` runs, which may print or draw itself."""

CLOSE = 1.02
"""The bisection ends when the sizes on its two sides differ by less than this factor."""

SMALLEST = "The smallest size is within max_drop. If evaluate returns a loss, return minus the loss: larger is better."

ENOUGH = 2
"""Rows for each direction, below which the statistics of a layer are called few."""

CURVE_POINTS = 24
"""Sizes of the curve of variance kept."""


def compress(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    keep: float | None = None,
    size: float | None = None,
    max_drop: float | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Replace linear and convolution layers by two smaller ones each, best for the data that the layers see.

    A layer ``W x + b`` becomes ``U_r (U_r^T W) x + b'`` with the leading eigenvectors ``U_r`` of the centred covariance
    of its outputs on the batches: the map of rank r that loses the least of its output variance. The mean is folded
    into the bias. A layer is replaced only where that is smaller. Give exactly one of ``keep``, ``size`` and
    ``max_drop``.

    Args:
        module: Any module. It is not changed: the result is a copy without gradients, hooks and modes included.
        batches: Re-iterable of ``(inputs, targets)``, of inputs alone (tensors), or of dicts, from which ``forward``
            receives the keywords that it accepts. Training samples; a few thousand are enough. They run in eval mode.
        keep: Share of its centred output variance that every layer keeps, between 0 and 1.
        size: At most this fraction of the numbers that the module stores. Ranks are shared out so that the sum of
            their effects on the module's outputs is least: the mean squared change, measured on the first batches
            with one layer cut at a time, divided by the variance of the outputs. That takes six forwards for each
            layer and batch, on batches that hold 64 samples together (128 of a larger batch).
        max_drop: Largest loss of ``evaluate``, for the smallest size that a bisection finds (at most 12 evaluations).
            The metric need not fall steadily with the size, so a smaller size that the bisection has not tried may do.
        evaluate: ``evaluate(module) -> float``, larger is better: return minus the loss, not the loss, which cannot be
            told from a score. Judge on samples that you do not report on. It gets a module that it may change.
        progress: Told what is being done, how many steps are done, and how many there are (0 if unknown). None: a bar
            on a terminal for what takes longer than two seconds, and a line for each evaluation, which may draw itself.

    Returns:
        The smaller module, a table with a record for each layer, and the curve of the sizes tried. The size counts all
        numbers in ``state_dict()``: parameters and persistent buffers, shared tensors once.

    Raises:
        ConfigurationError: If not exactly one of the three is given or it is out of range, ``max_drop`` has no
            ``evaluate``, no layer can be compressed, ``size`` is below the smallest one, the batches are empty, a layer
            is not finite on them, or ``evaluate`` gives no finite number.
        UnsupportedError: If ``forward`` does not run with pairs in the place of its layers, or does not call them.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> inputs = torch.randn(100, 2) @ torch.randn(2, 16)  # 16 inputs in two dimensions
    >>> compress(nn.Linear(16, 8), [inputs], keep=0.999).module
    Sequential(
      (0): Linear(in_features=16, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=8, bias=True)
    )
    """
    refuse_wrong_target(keep, size, max_drop)
    if evaluate is not None and not callable(evaluate):
        raise ConfigurationError(f"evaluate={evaluate!r} must be a function of a module that returns a number.")
    if max_drop is not None and evaluate is None:
        raise ConfigurationError(
            "max_drop= needs evaluate=, a function of a module that returns a number, larger is better, such as the "
            "accuracy on validation samples."
        )
    with _own_streams(batches), told(progress, apart=[EVALUATING]) as tell:
        most = 2 if max_drop is None else MOST_EVALUATIONS
        task = _Task(unwrapped(module), batches, evaluate, tell, most=most, size=size, by_effect=keep is None)
        if keep is not None:
            return task.result(keeping(keep, task.found))
        if size is not None:
            return task.result(task.within(size * task.size))
        return task.result(*task.bisected(max_drop or 0.0))


@contextmanager
def _own_streams(batches: object) -> Iterator[None]:
    """Restore the generators with which a DataLoader shuffles: a training that reads it goes on as without us."""
    holders = (batches, getattr(batches, "sampler", None))
    found = [each for holder in holders if isinstance(each := getattr(holder, "generator", None), torch.Generator)]
    states = [each.get_state() for each in found]
    try:
        yield
    finally:
        for generator, state in zip(found, states, strict=True):
            generator.set_state(state)


class _Task:
    """One compression: the layers with their directions, and what was evaluated.

    Args:
        module: The module given.
        batches: The batches.
        evaluate: The function of the user, or None.
        tell: Told of each step.
        most: Evaluations, at most.
        size: The fraction asked for, or None.
        by_effect: Whether ranks are to be shared out, so that the effects of ranks are worth their time.

    Raises:
        ConfigurationError: What can be known before ranks are chosen.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Iterable[Any],
        evaluate: Evaluate | None,
        tell: Progress,
        *,
        most: int,
        size: float | None,
        by_effect: bool,
    ) -> None:
        self.module, self.batches = module, batches
        self._evaluate, self._tell, self._most, self.by_effect = evaluate, tell, most, by_effect
        self.points: dict[Ranks, CurvePoint] = {}
        self.evaluations = 0
        self.notes: list[str] = []
        with random_streams():
            copy = independent_copy(module)
            self.layers = find_layers(copy)
        self.size = stored_numbers(module)
        if evaluate is not None:
            self.metric(None)  # a mistake in it is told before the work
        with random_streams():
            self.seen = {each.layer.name: each for each in see(copy, _open(self.layers), batches, tell)}
        self.reasons = {layer.name: _reason(layer, self.seen.get(layer.name)) for layer in self.layers}
        open_layers = [layer for layer in self.layers if not self.reasons[layer.name]]
        if not open_layers:
            raise ConfigurationError(f"{type(module).__name__} has no layer that can be compressed{self._whys()}.")
        self.rest = self.size - sum(layer.parameters for layer in open_layers)
        self.least = self.rest + sum(layer.size_at(1) for layer in open_layers)
        if size is not None:
            self._refuse_too_small(size * self.size)
        self.found: list[tuple[Layer, Directions]] = []
        for done, layer in enumerate(open_layers):
            tell("directions of layers", done, len(open_layers))
            self.found.append((layer, self.seen[layer.name].directions()))
        self.shares = Shares(self.found, self._effects(copy) if by_effect else None)

    def _effects(self, copy: nn.Module) -> Mapping[str, list[float]] | None:
        """The effects of ranks; None, with a note, if they cannot be measured."""
        try:
            with random_streams():
                return effects(copy, self.found, self.batches, self._tell)
        except IncomparableError as error:
            self.notes.append(
                f"The effects of ranks on the module's outputs cannot be measured, because {error}; ranks were shared "
                "out by the share of its own output variance that each layer loses, a worse rule."
            )
            return None

    def _whys(self) -> str:
        listed = [f"{layer.name or 'itself'}: {self.reasons[layer.name]}" for layer in self.layers[:3]]
        return f" ({'; '.join(listed)})" if listed else ": it has no linear or convolution layer"

    def within(self, budget: float) -> Mapping[str, Choice]:
        """The choice of each layer for a module of at most this size."""
        return self.shares.within(math.floor(budget + 1e-9) - self.rest)

    def _refuse_too_small(self, budget: float) -> None:
        if budget < self.least:
            raise ConfigurationError(
                f"size={budget / self.size:.3g} was asked for, but {self.least:,} of {self.size:,} numbers remain even "
                f"with rank 1 everywhere; pass at least {math.ceil(1000 * self.least / self.size) / 1000}."
            )

    def total(self, chosen: Mapping[str, Choice]) -> int:
        """The size of the module with these choices."""
        return self.rest + sum(choice.size for choice in chosen.values())

    def built(self, chosen: Mapping[str, Choice]) -> nn.Module:
        """A copy of the module given with these layers replaced."""
        with random_streams():
            made = independent_copy(self.module)
            layers = {layer.name: made.get_submodule(layer.name) for layer, _ in self.found}
            for layer, directions in self.found:
                rank = chosen[layer.name].rank
                if rank != UNCHANGED:
                    made = put(made, layers[layer.name], pair_of(layers[layer.name], rank, directions))
        return made

    def _built_and_tried(self, chosen: Mapping[str, Choice]) -> nn.Module:
        made = self.built(chosen)
        refuse_unused_pairs(made, _replaced(chosen), self.batches)
        return made

    def metric(self, chosen: Mapping[str, Choice] | None) -> float:
        """What ``evaluate`` gives for these choices, or for the module given.

        Raises:
            ConfigurationError: If it is no finite number.
        """
        assert self._evaluate is not None
        known = self.points.get(_ranks(chosen))
        if known is not None and known.metric is not None:
            return known.metric
        self._tell(EVALUATING, self.evaluations, self._most)
        candidate = independent_copy(self.module) if chosen is None else self.built(chosen)
        with random_streams():  # every size is judged with the same random numbers
            value = self._evaluate(candidate)
        self.evaluations += 1
        try:
            metric = float(value) + 0.0  # minus a loss of zero is shown as 0
        except (TypeError, ValueError, RuntimeError) as error:  # such as a tensor of several numbers
            raise ConfigurationError(
                f"evaluate returned a {type(value).__name__}; return one number, larger is better."
            ) from error
        if not math.isfinite(metric):
            of = "the module given" if chosen is None else f"{100 * self.total(chosen) / self.size:.3g} % of the size"
            raise ConfigurationError(f"evaluate returned {metric} for {of}; return a finite number, larger is better.")
        self.points[_ranks(chosen)] = self._point(chosen, metric)
        return metric

    def bisected(self, max_drop: float) -> tuple[Mapping[str, Choice] | None, tuple[str, ...]]:
        """The smallest size of a bisection whose metric is at most ``max_drop`` below that of the module given."""
        least = self.metric(None) - max_drop
        smallest = self.within(self.least)
        self._built_and_tried(smallest)  # before the evaluations
        low, high = float(self.total(smallest)), float(self.size)
        best: Mapping[str, Choice] | None = None
        failed = False
        while high > CLOSE * low and self.evaluations < MOST_EVALUATIONS - 1:
            chosen = self.within(math.sqrt(low * high))
            total = self.total(chosen)
            if self.metric(chosen) >= least - 1e-12:
                if total >= high:
                    break
                best, high = chosen, float(total)
            else:
                failed, low = True, math.sqrt(low * high)  # sizes in between have the same choices
        if not failed and self.metric(smallest) >= least - 1e-12:
            return smallest, (SMALLEST,)
        if best is None:
            return None, ("No smaller size that was tried is within max_drop, so nothing was replaced.",)
        return best, ()

    def result(self, chosen: Mapping[str, Choice] | None, notes: tuple[str, ...] = ()) -> Compressed:
        """The compressed module with its table and curve."""
        before = after = None
        if self._evaluate is not None:
            before, after = self.metric(None), self.metric(chosen)
        if chosen is None:
            chosen = {layer.name: Choice(UNCHANGED, layer.parameters, 0.0) for layer, _ in self.found}
        made = self._built_and_tried(chosen)
        return Compressed(
            module=made,
            table=CompressionTable(tuple(self._records(chosen)), self.size, stored_numbers(made)),
            curve=self._curve(chosen),
            structure=_replaced(chosen),
            metric_before=before,
            metric_after=after,
            evaluations=self.evaluations,
            notes=(*notes, *self.notes, *self._few(chosen)),
        )

    def _few(self, chosen: Mapping[str, Choice]) -> list[str]:
        """A note if a layer saw too few rows to know its directions."""
        rows = {layer: self.seen[layer.name].num_rows for layer, _ in self.found if chosen[layer.name].rank}
        few = {layer: count for layer, count in rows.items() if count < ENOUGH * layer.full_rank}
        if not few:
            return []
        layer, count = min(few.items(), key=lambda pair: pair[1] / pair[0].full_rank)
        return [
            f"{counted(len(few), 'layer')} saw few rows ({layer.name or 'the module'!r} {count:,} for up to "
            f"{layer.full_rank:,} directions), so more variance is lost on other samples than the table says; pass "
            "more batches."
        ]

    @property
    def _unneeded(self) -> str:
        """Why a layer that can be compressed was left alone."""
        if self.by_effect:
            return "the size is reached by the other layers"
        return "no rank that makes it smaller keeps this share"

    def _records(self, chosen: Mapping[str, Choice]) -> Iterable[LayerRecord]:
        nothing = "" if any(_ranks(chosen)) or not self.by_effect else "nothing was replaced"
        for layer in self.layers:
            seen, choice = self.seen.get(layer.name), chosen.get(layer.name)
            replaced = choice is not None and choice.rank != UNCHANGED
            reason = self.reasons[layer.name] or ("" if replaced else nothing or self._unneeded)
            yield LayerRecord(
                name=layer.name,
                kind=layer.kind,
                rank=choice.rank if choice is not None and replaced else None,
                full_rank=layer.full_rank if not layer.reason else None,
                effective_rank=None if seen is None else seen.effective_rank,
                parameters_before=layer.parameters,
                parameters_after=choice.size if choice is not None and replaced else layer.parameters,
                variance_kept=1 - choice.lost if choice is not None and replaced else 1.0,
                reason=reason,
            )

    def _point(self, chosen: Mapping[str, Choice] | None, metric: float | None) -> CurvePoint:
        total = self.size if chosen is None else self.total(chosen)
        lost = 0.0 if chosen is None else sum(choice.lost for choice in chosen.values()) / len(chosen)
        return CurvePoint(total, total / self.size, 1 - lost, metric)

    def _curve(self, chosen: Mapping[str, Choice]) -> tuple[CurvePoint, ...]:
        points = dict(self.points)
        if not points:
            along = [
                self.least * (self.size / self.least) ** (step / CURVE_POINTS) + 1e-6 for step in range(CURVE_POINTS)
            ]
            for some in (None, chosen, *map(self.within, along)):
                points[_ranks(some)] = self._point(some, None)
        return tuple(sorted(points.values(), key=lambda point: -point.size))


Ranks = tuple[int, ...]
"""The rank of each layer that can be compressed; empty for the module given."""


def _ranks(chosen: Mapping[str, Choice] | None) -> Ranks:
    ranks = () if chosen is None else tuple(choice.rank for choice in chosen.values())
    return ranks if any(ranks) else ()


def _replaced(chosen: Mapping[str, Choice]) -> Structure:
    return {name: choice.rank for name, choice in chosen.items() if choice.rank != UNCHANGED}


def _open(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if not layer.reason]


def _reason(layer: Layer, seen: Seen | None) -> str:
    """Why a layer is left alone at every size; empty if it is not."""
    if layer.reason or seen is None:
        return layer.reason
    if seen.reason:
        return seen.reason
    if seen.moments is None:
        return "never called on the batches"
    return "" if layer.largest_rank else "no rank makes it smaller"
