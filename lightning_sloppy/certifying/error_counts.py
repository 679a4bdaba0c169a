"""The networks of a certificate at work: mistakes of given weights on given samples, and the loss they learn from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import backward_in_eval
from lightning_sloppy.evaluation.batches import Batch, joined, picked, private, sample_count
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.evaluation.local_noise import LocalNoise, RandomWeight
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.posteriors.coordinates import Coordinates
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, probe_indices

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CACHE_BYTES = 256 * 1024**2
"""A data set up to this size stays on the device between evaluations; larger ones are read anew."""


class ErrorCounter:
    """``counter(point, indices)``: the number of samples that the network gets wrong, in eval mode.

    Args:
        trainer: The running Trainer; its transfer hooks apply to the samples.
        context: The fit.
        source: Where the samples come from.
        objective: Gives outputs and loss.
        classifier: What is a mistake.
        coordinates: In which points are given; None: they are the flat weights themselves.
    """

    def __init__(
        self,
        trainer: Trainer,
        context: FitContext,
        source: SampleSource,
        objective: Objective,
        classifier: Classifier,
        coordinates: Coordinates | None = None,
    ) -> None:
        self._trainer = trainer
        self._classifier = classifier
        self._context = context
        self._source = source
        self._objective = objective
        # A certificate's points come in float64, where a turn is a turn to 15 digits; all others are quick.
        self._exact = coordinates
        self._quick = None if coordinates is None else coordinates.to(objective.device, objective.dtype)
        self._reached = False
        self._guess_error: float | None = None
        self._held: Batch | None = None
        first = context.samples.read(trainer, source, torch.arange(1), 1)[0]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(first))
        if size * len(source) <= CACHE_BYTES:
            everything = context.samples.read(trainer, source, torch.arange(len(source)), READ_CHUNK)
            self._held = joined(objective.prepare(everything))

    def __call__(self, point: Tensor, indices: Tensor) -> int:
        """Mistakes of the network of a point, shape (p,)."""
        coordinates = self._exact if point.dtype == torch.float64 else self._quick
        weights = point if coordinates is None else coordinates.weights(point.to(coordinates.origin))
        return self.mistakes(weights, indices)

    def mistakes(self, weights: Tensor, indices: Tensor) -> int:
        """Mistakes of the network with these flat weights, shape (p,)."""
        return self.mistakes_of(self._context.layout.table(weights), indices)

    def mistakes_of(self, table: Mapping[str, Tensor], indices: Tensor) -> int:
        """Mistakes of the network with these parameters and buffers, by name, and its own otherwise."""
        found = self._over(table, indices, lambda outputs, targets: self._classifier.mistakes(outputs, targets).sum())
        return int(torch.stack(found).sum()) if found else 0

    def says_one_thing(self, table: Mapping[str, Tensor], indices: Tensor) -> bool:
        """Whether that network says the same of all these samples; no where only its mistakes are known."""
        labels = self._classifier.labels
        if labels is None:
            return False
        ends = self._over(table, indices, lambda outputs, _: torch.stack(labels(outputs).aminmax()))
        every = torch.stack(ends)
        return bool((every == every[0, 0]).all())

    def guess_error(self, most: int | None = None, seed: int = 0) -> float:
        """Error rate of calling every sample the most frequent label; NaN where targets are no labels.

        Args:
            most: Count at most so many samples, drawn at random. None: all of them.
            seed: Seed of the draw.
        """
        if self._guess_error is None:
            indices = probe_indices(len(self._source), len(self._source) if most is None else most, seed)
            self._guess_error = self._counted_guess_error(indices)
        return self._guess_error

    def _counted_guess_error(self, indices: Tensor) -> float:
        labels: Counter[float] = Counter()
        with self._source.untouched():
            for batch in self._batches(indices):
                if not isinstance(batch[1], Tensor) or batch[1].numel() != len(batch[1]):
                    return math.nan
                labels.update(batch[1].reshape(-1).tolist())
        return 1.0 - max(labels.values()) / len(indices)

    def _over(self, table: Mapping[str, Tensor], indices: Tensor, look: Callable[[Any, Any], Tensor]) -> list[Tensor]:
        """What is seen in the outputs of each batch."""
        table = {name: self._cast(tensor) for name, tensor in table.items()}

        def run() -> list[Tensor]:
            batches = (private(batch) for batch in self._batches(indices))
            return [look(self._objective.output_values(table, inputs), targets) for inputs, targets in batches]

        with self._source.untouched():
            # A rule of the user's may look at the module as well: it must not see other weights than the forward.
            return self._objective.swapped(table, run)

    def _cast(self, tensor: Tensor) -> Tensor:
        dtype = self._objective.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._objective.device, dtype)

    def surrogate(self, point: Tensor, indices: Tensor) -> tuple[float, int, Tensor]:
        """Mean loss on these samples, the mistakes, and the loss's slope in the point."""
        leaf = self._leaf(point if self._quick is None else self._quick.weights(point.to(self._quick.origin)))
        loss, wrong, (slope,) = self._differentiated(self._context.layout.table(leaf), indices, [leaf], nullcontext)
        return loss, wrong, (slope if self._quick is None else self._quick.slope(slope)).to(point)

    def local(
        self, means: Tensor, variances: Tensor, indices: Tensor, generator: torch.Generator
    ) -> tuple[float, int, Tensor, Tensor]:
        """The same of weights drawn inside the network, for each sample apart where layers allow it.

        Raises:
            RuntimeError: Where no noise reaches the loss: the forward goes around the functions of torch.
        """
        scales = None if self._quick is None else self._quick.scales
        leaves = [self._leaf(part) for part in _scaled(means, variances, scales)]
        table, laws = self._laws(*leaves)
        loss, wrong, slopes = self._differentiated(table, indices, leaves, lambda: LocalNoise(table, laws, generator))
        if not self._reached:  # once, for it waits for the device
            if not bool(slopes[1].any()):
                raise RuntimeError("no noise of the weights reaches the loss")
            self._reached = True
        by_mean, by_variance = _scaled(slopes[0], slopes[1], scales)
        return loss, wrong, by_mean.to(means), by_variance.to(means)

    def _laws(self, means: Tensor, variances: Tensor) -> tuple[dict[str, Tensor], dict[str, RandomWeight]]:
        """What the forward is run with, and what each of it stands for."""
        layout = self._context.layout
        centres, spreads = layout.table(means), layout.table(variances)
        if self._quick is None:
            return centres, {name: RandomWeight(centres[name], spreads[name]) for name in centres}
        origins = layout.table(self._quick.origin)
        laws = {}
        for (name, mean), basis in zip(centres.items(), self._quick.bases, strict=True):
            left, right = basis or (None, None)
            shape = mean.shape if left is None or right is None else (len(left), len(right))
            laws[name] = RandomWeight(
                mean.reshape(shape), spreads[name].reshape(shape), origin=origins[name], left=left, right=right
            )
        return origins, laws

    def _leaf(self, weights: Tensor) -> Tensor:
        return weights.detach().to(self._objective.device, self._objective.dtype).requires_grad_()

    def _differentiated(
        self,
        table: dict[str, Tensor],
        indices: Tensor,
        leaves: list[Tensor],
        noise: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[float, int, list[Tensor]]:
        """Loss, mistakes and slopes; the weights are in place also while a checkpointed forward is run again.

        The noise is not: drawn anew it would belong to another loss. Such a forward fails here, and one draw serves.
        """
        loss_fn = self._objective.loss_fn
        assert loss_fn is not None
        total, wrong = 0.0, 0
        slopes = [torch.zeros_like(leaf) for leaf in leaves]
        with self._source.untouched(), backward_in_eval(self._objective.module):
            for batch in self._batches(indices):
                inputs, targets = private(batch)
                fraction = sample_count(batch) / len(indices)

                def run(
                    batch: Batch = batch, inputs: Any = inputs, targets: Any = targets, fraction: float = fraction
                ) -> tuple[float, int]:
                    with noise():
                        outputs = self._objective.outputs(table, inputs)
                    loss = self._objective.as_mean(loss_fn(outputs, targets), batch) * fraction
                    parts = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
                    for slope, part in zip(slopes, parts, strict=True):
                        slope += 0 if part is None else part
                    found = loss.detach()
                    mistaken = self._classifier.mistakes(outputs.detach(), targets).sum()
                    value, mistakes = torch.stack([found, mistaken.to(found)]).tolist()
                    return value, int(mistakes)

                one, mistakes = self._objective.swapped(table, run)
                total, wrong = total + one, wrong + mistakes
        return total, wrong, slopes

    def _batches(self, indices: Tensor) -> Iterator[Batch]:
        if self._held is None:
            # One batch at a time: a whole set of images would not fit.
            for part in torch.split(indices, self._source.batch_size):
                read = self._context.samples.read(self._trainer, self._source, part, len(part), untouched=False)
                yield from self._objective.prepare(read)
        else:
            for part in torch.split(indices, READ_CHUNK):
                yield picked(self._held, part)


def _scaled(first: Tensor, second: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means and variances, or slopes in them, of entries that are stretched."""
    if scales is None:
        return first, second
    return first.to(scales) * scales, second.to(scales) * scales.square()
