"""Base class of Hessian and Gauss-Newton products: one graph per batch, kept if it fits, else recomputed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_sloppy.curvature.memory import counted_graph, free_bytes
from lightning_sloppy.curvature.micro_batches import divided, divisible
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator

Method = Literal["auto", "kept_graph", "recomputed", "central_differences"]
Graph = TypeVar("Graph")
Result = TypeVar("Result")

GRAPH_FRACTION = 0.25
"""Fraction of the free memory that graphs may take. The training needs the rest at its next step."""


class KeptGraphOperator(SymmetricOperator, Generic[Graph]):
    """Products as a sum over batches. The graph of each batch is built once, or for each product if it does not fit.

    Batches are weighted by the sample weights of the loss, so the matrix is that of the mean loss over the whole probe,
    for any batch sizes. A product on kept graphs costs about half of a recomputed one. Several vectors share one pass
    (:meth:`matmat`). If the graph of a single batch does not fit, the batch is divided into micro-batches.

    Args:
        objective: Module and loss.
        layout: Chosen parameters.
        batches: Prepared batches.
        method: "auto" decides by the memory of the first batch's graph.

    Attributes:
        method: The method in use, "kept_graph" or "recomputed", with the size of micro-batches if there are any.
        unused: Names of the parameters that the loss does not use. Their rows are zero. Known after a pass.
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        super().__init__(layout.dim, dtype=objective.dtype, device=objective.device)
        self._objective = objective
        self.layout = layout
        self._leaves = layout.leaves(objective.module, objective.dtype)
        self._sources = list(self._leaves.values())
        self._seen: set[int] = set()
        self._take(batches)
        self._kept: list[Graph] = []
        self.method = "recomputed"
        self._tried = False
        self._refused_together(lambda: self._plan(method))

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters without a gradient."""
        return tuple(name for index, name in enumerate(self.layout.names) if index not in self._seen)

    @abstractmethod
    def _build(self, index: int) -> Graph:
        """Build the graph of one batch, scaled by its fraction of the mean loss, and record the used parameters."""

    @abstractmethod
    def _multiply(self, graph: Graph, pieces: Sequence[Tensor], where: Sequence[int]) -> list[Tensor | None]:
        """Compute the part of one batch in the product, for the block of parameters ``where``. The graph is kept."""

    def _take(self, batches: list[Batch], fractions: list[float] | None = None) -> None:
        fractions = self._objective.batch_fractions(batches) if fractions is None else fractions
        held = [(batch, fraction) for batch, fraction in zip(batches, fractions, strict=True) if fraction > 0]
        self._batches = [batch for batch, _ in held]
        self._fractions = [fraction for _, fraction in held]

    def _plan(self, method: Method) -> None:
        """Keep all graphs, or none if they do not fit by the size of the first one."""
        budget = float("inf") if method == "kept_graph" else GRAPH_FRACTION * free_bytes(self.device)
        kept: list[Graph] = []
        try:
            for index in range(len(self._batches)):
                with counted_graph() as graph_bytes:
                    kept.append(self._build(index))
                if index == 0 and (method == "recomputed" or graph_bytes[0] * len(self._batches) > budget):
                    if graph_bytes[0] > budget:
                        self._divide(int(-(-graph_bytes[0] // budget)))
                    return
        except torch.OutOfMemoryError:
            if method == "kept_graph":
                raise
            kept.clear()
            self._divide(2)
            return
        self._kept, self.method = kept, "kept_graph"

    def _divide(self, parts: int) -> bool:
        """Divide every batch into ``parts`` micro-batches, with the same matrix; return False if not possible."""
        size = max(max(sample_count(batch) for batch in self._batches) // parts, 1)
        if not divisible(self._objective, self._leaves, self._batches, size):
            return False
        # Each rank divides if it needs to, because the fractions of the pieces do not depend on other ranks.
        pieces: list[Batch] = []
        fractions: list[float] = []
        for batch, fraction in zip(self._batches, self._fractions, strict=True):
            mine = divided([batch], size)
            weights = [self._objective.batch_weight(piece) for piece in mine]
            pieces += mine
            fractions += [fraction * weight / sum(weights) for weight in weights]
        self._take(pieces, fractions)
        self.method = f"recomputed, micro-batches of {size}"
        return True

    def _apply(self, vector: Tensor) -> Tensor:
        return self._apply_several(vector.unsqueeze(1)).squeeze(1)

    def _apply_several(self, vectors: Tensor) -> Tensor:
        return self.block_product(vectors, range(len(self.layout.names)))

    def block_product(self, vectors: Tensor, where: Sequence[int]) -> Tensor:
        """Product of the block of the parameters ``where`` with (p_block, c) vectors, in one pass over the batches."""
        while True:
            try:
                product = self._refused_together(
                    lambda: self._objective.swapped(self._leaves, lambda: self._block_product(vectors, where))
                )
                self._tried = True
                return self._objective.add_up(product)
            except torch.OutOfMemoryError:  # noqa: PERF203 - a second try is the point
                largest = max(sample_count(batch) for batch in self._batches)
                if self._kept or largest == 1 or not self._divide(2):
                    raise

    def _refused_together(self, work: Callable[[], Result]) -> Result:
        """Until the first product, make a missing double backward on one rank fail on all ranks.

        A rank without samples calls no layer, so it would continue while the others switch to differences.
        """
        if self._tried or self._objective.ranks.count == 1:
            return work()
        try:
            result = work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self._objective.ranks.least(False)
            raise
        if not self._objective.ranks.least(True):
            raise UnsupportedError("The samples of another rank use an operation without second derivatives.")
        return result

    def _block_product(self, vectors: Tensor, where: Sequence[int]) -> Tensor:
        part = self.layout.part(where)
        columns = vectors.unbind(1)
        results = [torch.zeros_like(column) for column in columns]
        for index in range(len(self._batches)):
            graph = self._kept[index] if self._kept else self._build(index)
            for column, result in zip(columns, results, strict=True):
                product = self._multiply(graph, part.unflatten(column), where)
                if any(piece is not None for piece in product):
                    result += part.flatten(product)
        return results[0].unsqueeze(1) if len(results) == 1 else torch.stack(results, dim=1)


class Blocked(Protocol):
    """A matrix over the parameters of a layout whose diagonal blocks can be multiplied with."""

    layout: ParameterLayout
    dtype: torch.dtype
    device: torch.device
    rounding: float

    def block_product(self, vectors: Tensor, where: Sequence[int]) -> Tensor:
        """Product of the block of the parameters ``where`` with (p_block, c) vectors."""
        ...


class LayerBlock(SymmetricOperator):
    """A diagonal block of a matrix: the rows and columns of the parameters of one layer.

    It uses the graphs of the whole matrix; a product goes back through the layers behind this one only.

    Args:
        whole: Products with the whole matrix.
        where: Indices of the layer's parameters in the layout.
    """

    def __init__(self, whole: Blocked, where: Sequence[int]) -> None:
        super().__init__(whole.layout.part(where).dim, dtype=whole.dtype, device=whole.device)
        self.rounding = whole.rounding
        self._whole = whole
        self._where = where

    def _apply(self, vector: Tensor) -> Tensor:
        return self._apply_several(vector.unsqueeze(1)).squeeze(1)

    def _apply_several(self, vectors: Tensor) -> Tensor:
        return self._whole.block_product(vectors, self._where)


def need_outputs(objective: Objective) -> None:
    """Refuse an objective that is only known as a whole training step.

    Raises:
        UnsupportedError: When outputs and loss are not known apart.
    """
    if not objective.has_outputs:
        raise UnsupportedError(
            "The Gauss-Newton and Fisher matrices need outputs and loss apart, but the loss is only known as a whole "
            "training step; pass loss_fn=, the mean-reduced loss of (outputs, targets), as a dotted path in YAML.",
            cause="loss",
        )
