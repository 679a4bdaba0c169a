"""What a rank of a layer is worth: how far the module's outputs move when this layer alone is cut.

The shares of their own output variance that layers lose are not comparable. A layer that writes little to a residual
stream may lose half of its variance for nothing; one whose outputs drive all that follows may not lose a hundredth. So
each layer alone is cut at a few ranks, and the module runs on a few samples. The effect of a rank is the mean squared
change of the module's outputs divided by their variance; no labels are needed. Between the ranks tried, the effect for
each share of variance lost is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.compression.low_rank import Directions
from lightning_sloppy.compression.matrix_layers import Layer
from lightning_sloppy.compression.statistics import ForwardError, number_of, pairs, quiet, runner
from lightning_sloppy.display import Progress, untold
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, as_pair, some_of
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.preserve import preserved, random_streams

SAMPLES = 64
"""Batches are used until they hold this many samples. The effects of ranks differ by factors, so few are enough."""

LARGE = 128
"""Of a larger batch this many samples are used, evenly spread."""

RANKS = 6
"""Ranks tried of each layer, from 1 to the largest in equal steps of the logarithm."""

NUMBERS_AT_ONCE = 2**22
"""Numbers of the outputs that are taken to float64 together: 32 MB."""

LARGEST = 1e6
"""Effects are at most this; also of a cut after which outputs are not finite, or the forward fails."""


class IncomparableError(Exception):
    """The outputs of the module cannot be compared; the message says why, as the end of a sentence."""


def effects(
    module: nn.Module, found: Sequence[tuple[Layer, Directions]], batches: Iterable[Any], tell: Progress = untold
) -> Mapping[str, list[float]]:
    """The effect of each rank, from 1 to the largest that makes the layer smaller, by the layer's name.

    Args:
        module: A copy that hooks may be put on.
        found: Layers of this copy with their directions.
        batches: As for :func:`~lightning_sloppy.compression.compressing.compress`.
        tell: Told of each cut.

    Raises:
        IncomparableError: If the outputs cannot be compared: no tensor of numbers that differs between samples, or
            another number or shape of tensors at every call.
    """
    moved: dict[str, dict[int, list[Tensor]]] = {
        layer.name: {rank: [] for rank in _tried(layer.largest_rank)} for layer, _ in found
    }
    spread: list[_Spread] = []
    samples = done = read = 0
    with preserved(module), quiet():
        run = runner(module)
        for whole in pairs(batches, module):
            batch, before = _measured(run, whole)
            spread = spread or [_Spread() for _ in before]
            if len(spread) != len(before):
                raise IncomparableError("forward returns another number of tensors for another batch")
            for one, leaf in zip(spread, before, strict=True):
                one.add(leaf)
            rows = max((len(leaf) for leaf in before), default=1)
            total = done + sum(map(len, moved.values())) * _batches_left(
                SAMPLES - samples, rows, number_of(batches) - read
            )
            for layer, directions in found:
                for rank, known in moved[layer.name].items():
                    tell("effects of ranks", done, total)
                    change = _change(run, batch, before, layer, directions, rank)
                    moved[layer.name][rank] = [a + b for a, b in zip(known, change, strict=True)] if known else change
                    done += 1
            samples, read = samples + rows, read + 1
            if samples >= SAMPLES:
                break
    squares = torch.tensor([one.squares for one in spread], dtype=torch.float64)
    used = squares > 0
    if not bool(used.any()):
        raise IncomparableError(_why(squares))
    worth = {
        name: {rank: _worth(change, squares, used) for rank, change in tried.items()} for name, tried in moved.items()
    }
    return {layer.name: _between(worth[layer.name], directions, layer.largest_rank) for layer, directions in found}


def _batches_left(samples: int, rows: int, left: int) -> int:
    """About how many batches of so many rows are used for these samples; of a list no more than are left."""
    needed = math.ceil(samples / max(rows, 1))
    return min(needed, left) if left > 0 else needed


def _change(
    run: Callable[[Any], Any], batch: Any, before: Sequence[Tensor], layer: Layer, directions: Directions, rank: int
) -> list[Tensor]:
    """Sum of squares of the change of each output with one layer cut; infinite if the forward fails then.

    Raises:
        IncomparableError: If the outputs have other shapes than before.
    """
    try:
        with _cut(layer.module, directions, rank):
            after = _numbers(run, batch)
    except ForwardError:
        return [torch.tensor(math.inf, dtype=torch.float64) for _ in before]
    if [leaf.shape for leaf in after] != [leaf.shape for leaf in before]:
        raise IncomparableError("forward returns tensors of another shape at another call")
    return [_squares(new, old) for new, old in zip(after, before, strict=True)]


def _why(squares: Tensor) -> str:
    """Why outputs with these squares about their mean cannot be compared."""
    if not len(squares):
        return "forward returns no tensor of floating-point numbers with a row for each sample"
    if not bool(torch.isfinite(squares).all()):
        return "the outputs are not finite"
    return "the outputs are the same for all samples"


class _Spread:
    """Sum of squares of outputs about their mean over the samples of all batches, for each shape of one sample."""

    def __init__(self) -> None:
        self._parts: dict[torch.Size, tuple[int, Tensor, Tensor]] = {}

    def add(self, outputs: Tensor) -> None:
        """Add the outputs of a batch, by the update of Chan, Golub and LeVeque (1983)."""
        count, mean, squares = self._parts.get(outputs.shape[1:], (0, torch.zeros(()), torch.zeros(())))
        for part in _parts_of(outputs):
            values, new = _accurate(part), len(part)
            own = values.mean(0)
            step = own - mean
            squares = squares + (values - own).square().sum() + count * new / (count + new) * step.square().sum()
            count += new
            mean = mean + step * (new / count)
        self._parts[outputs.shape[1:]] = (count, mean, squares)

    @property
    def squares(self) -> float:
        """The sum over all shapes."""
        return sum(float(squares) for _, __, squares in self._parts.values())


def _measured(run: Callable[[Any], Any], whole: Batch) -> tuple[Batch, list[Tensor]]:
    """A batch and the outputs for it; of a large one a part, if the module runs on that."""
    try:
        part = some_of(whole, LARGE)
    except ConfigurationError:  # there is no tensor to count samples by, as in a list of texts
        part = whole
    if part is not whole:
        try:
            return as_pair(part), _numbers(run, part)
        except ForwardError:  # its first dimension is not that of the samples
            pass
    return whole, _numbers(run, whole)


def _tried(largest: int) -> list[int]:
    return sorted({round(largest ** (step / (RANKS - 1))) for step in range(RANKS)})


def _numbers(run: Callable[[Any], Any], batch: Any) -> list[Tensor]:
    """The outputs that are floating tensors with a first dimension. Every call has the same random numbers.

    A single number, such as a loss beside the outputs, is left out: it is no output of a sample.
    """
    with random_streams():
        leaves = tensors_of(run(batch))
    return [leaf.detach() for leaf in leaves if leaf.is_floating_point() and leaf.ndim]


def _squares(new: Tensor, old: Tensor) -> Tensor:
    """Sum of squares of a change. It stays on the device: the host does not wait for every cut of every layer."""
    found = torch.zeros(())
    for a, b in zip(_parts_of(new), _parts_of(old), strict=True):
        found = found + (_accurate(a) - _accurate(b)).square().sum()
    return found


def _parts_of(outputs: Tensor) -> Sequence[Tensor]:
    """Rows of the outputs of a batch, few enough at once: in float64 all of them may be large."""
    if not len(outputs):
        return ()
    return torch.split(outputs, max(1, NUMBERS_AT_ONCE * len(outputs) // max(outputs.numel(), 1)))


def _accurate(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _worth(change: Sequence[Tensor], squares: Tensor, used: Tensor) -> float:
    value = (torch.tensor([float(each) for each in change], dtype=torch.float64)[used] / squares[used]).mean()
    return min(float(torch.nan_to_num(value, nan=LARGEST, posinf=LARGEST)), LARGEST)


@contextmanager
def _cut(layer: nn.Module, directions: Directions, rank: int) -> Iterator[None]:
    """The layer as if of this rank: its outputs y become mu + U_r U_r^T (y - mu), which is what the two layers give."""

    def hook(_: nn.Module, __: Any, outputs: Tensor) -> Tensor:
        channels = -1 if isinstance(layer, nn.Linear) else -(len(layer.kernel_size) + 1)  # type: ignore[arg-type]
        rows = outputs.movedim(channels, -1)
        basis, mean = directions.vectors[:, :rank].to(rows), directions.mean.to(rows)
        return (mean + (rows - mean) @ basis @ basis.T).movedim(-1, channels)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _between(tried: Mapping[int, float], directions: Directions, largest: int) -> list[float]:
    """The effect of every rank: the share lost times the effect for each share, log-linear between the ranks tried."""
    lost = (1 - directions.kept).clamp(min=0).tolist()
    known = [
        (math.log(rank), math.log(max(effect, 1e-30) / lost[rank - 1]))
        for rank, effect in tried.items()
        if lost[rank - 1] > 1e-12
    ]
    if not known:
        return [0.0] * largest
    return [lost[rank - 1] * math.exp(_line(known, math.log(rank))) for rank in range(1, largest + 1)]


def _line(known: Sequence[tuple[float, float]], place: float) -> float:
    """Piecewise linear through the known points, constant outside."""
    if place <= known[0][0]:
        return known[0][1]
    for (left, a), (right, b) in pairwise(known):
        if place <= right:
            return a + (b - a) * (place - left) / (right - left)
    return known[-1][1]
