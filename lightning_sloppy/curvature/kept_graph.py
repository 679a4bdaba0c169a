"""What Hessian and Gauss-Newton products share: one graph for each batch, kept when it fits."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import counted_graph, free_bytes
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator

Method = Literal["auto", "kept graph", "recomputed"]
Graph = TypeVar("Graph")

GRAPH_SHARE = 0.25
"""Share of the free memory that kept graphs may take: training needs the rest at its next step."""


class KeptGraphOperator(SymmetricOperator, Generic[Graph]):
    """Products as a sum over batches, each through a graph that is built once, or anew when the graphs do not fit.

    Batches are weighted by their sample counts, so the matrix is that of the mean loss whatever the batch sizes. A
    product on kept graphs costs about half of one from scratch.

    Args:
        objective: Module and loss.
        layout: Trainable parameters.
        batches: Prepared batches.
        method: "auto" decides by the memory that the first batch's graph takes.

    Attributes:
        method: How it was decided, "kept graph" or "recomputed".
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        super().__init__(layout.dim, dtype=objective.dtype, device=objective.device)
        self._objective = objective
        self._layout = layout
        self._batches = batches
        self._leaves = layout.leaves(objective.module, objective.dtype)
        total = sum(sample_count(batch) for batch in batches)
        self._shares = [sample_count(batch) / total for batch in batches]
        self._kept: list[Graph] = []
        self.method: str = "recomputed"
        if method != "recomputed":
            self._keep(forced=method == "kept graph")

    @abstractmethod
    def _build(self, index: int) -> Graph:
        """The graph of one batch, with the batch's share of the mean loss in it."""

    @abstractmethod
    def _multiply(self, graph: Graph, pieces: list[Tensor]) -> list[Tensor | None]:
        """One batch's part of the product with a vector in the shapes of the parameters; the graph stays."""

    def _keep(self, *, forced: bool) -> None:
        """Build all graphs, or none when the first one says that they will not fit."""
        kept: list[Graph] = []
        for index in range(len(self._batches)):
            with counted_graph() as graph_bytes:
                kept.append(self._build(index))
            needed = graph_bytes[0] * len(self._batches)
            if index == 0 and not forced and needed > GRAPH_SHARE * free_bytes(self.device):
                return
        self._kept, self.method = kept, "kept graph"

    def _apply(self, vector: Tensor) -> Tensor:
        result = torch.zeros_like(vector)
        pieces = self._layout.unflatten(vector)
        for index in range(len(self._batches)):
            graph = self._kept[index] if self._kept else self._build(index)
            product = self._multiply(graph, pieces)
            if any(part is not None for part in product):
                result += self._layout.flatten(product)
        return result
