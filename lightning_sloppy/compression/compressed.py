"""The result of :func:`compress`: the smaller module, a record of each layer, and the sizes that were tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from lightning_sloppy.compression.curve_picture import draw_curve
from lightning_sloppy.compression.structure import Structure
from lightning_sloppy.display import Displayed, Shown, counted, number
from lightning_sloppy.runs.frame import frame_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

COLUMNS = ("layer", "kind", "rank", "of", "inputs", "before", "after", "kept", "left alone because")
"""Heads of the printed table."""


@dataclass(frozen=True)
class LayerRecord:
    """What became of one layer.

    Attributes:
        name: Its name in the module.
        kind: Name of its class.
        rank: Rank of the two layers in its place; None if it was left alone.
        full_rank: Largest rank of its weight; None if it has none of its own.
        effective_rank: Participation ratio of the centred covariance of its inputs (of a convolution: of its input
            channels over all positions); None if it was not measured.
        parameters_before: Numbers in its parameters.
        parameters_after: Numbers in the parameters in its place.
        variance_kept: Share of its centred output variance that is kept on the batches, given the inputs of the
            original network; 1 if it was left alone.
        reason: Why it was left alone; empty if it was replaced.
    """

    name: str
    kind: str
    rank: int | None
    full_rank: int | None
    effective_rank: float | None
    parameters_before: int
    parameters_after: int
    variance_kept: float
    reason: str = ""


@dataclass(frozen=True, repr=False)
class CompressionTable(Displayed):
    """One record for each layer with a weight matrix, and the totals. ``print`` shows all of it.

    Attributes:
        records: The layers in the order of the module.
        size_before: Numbers that the module given stores: parameters and buffers in its ``state_dict``, each shared
            tensor once.
        size_after: The same of the compressed module.
    """

    records: tuple[LayerRecord, ...]
    size_before: int
    size_after: int

    @property
    def fraction(self) -> float:
        """Size of the compressed module as a fraction of that of the module given."""
        return self.size_after / self.size_before

    def __iter__(self) -> Iterator[LayerRecord]:
        """The records."""
        return iter(self.records)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.records)

    def __getitem__(self, name: str) -> LayerRecord:
        """The record of a layer by its name."""
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(name)

    def to_frame(self) -> pandas.DataFrame:
        """A frame with a row for each layer and a column for each attribute of :class:`LayerRecord`.

        Raises:
            MissingExtraError: Without pandas.
        """
        return frame_of([vars(record) for record in self.records], list(LayerRecord.__annotations__))

    def __str__(self) -> str:
        """The whole table as text."""
        rows = [_row(record) for record in self.records]
        others = self.size_before - sum(record.parameters_before for record in self.records)
        if others > 0:
            rows.append(("other numbers", "", "", "", "", f"{others:,}", f"{others:,}", "", ""))
        rows.append(("all", "", "", "", "", f"{self.size_before:,}", f"{self.size_after:,}", "", ""))
        wide = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        lines = []
        for row in (COLUMNS, *rows):
            cells = [
                text.ljust(width) if place in (0, 1, 8) else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, wide, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _shown(self) -> Shown:
        replaced = sum(record.rank is not None for record in self.records)
        return Shown(
            "CompressionTable",
            f"{replaced} of {counted(len(self.records), 'layer')} replaced",
            [("size", f"{self.size_before:,} -> {self.size_after:,}"), ("fraction", number(self.fraction, digits=3))],
        )


def _row(record: LayerRecord) -> tuple[str, ...]:
    effective = "" if record.effective_rank is None else number(record.effective_rank, digits=3)
    return (
        record.name or "(itself)",
        record.kind,
        "-" if record.rank is None else str(record.rank),
        "" if record.full_rank is None else str(record.full_rank),
        effective,
        f"{record.parameters_before:,}",
        f"{record.parameters_after:,}",
        "" if record.rank is None else f"{record.variance_kept:.4f}",
        record.reason,
    )


@dataclass(frozen=True)
class CurvePoint:
    """One size of the module.

    Attributes:
        size: Numbers that it stores.
        fraction: The same as a fraction of the module given.
        variance_kept: Mean share of the output variance that its layers keep, of those that can be compressed.
        metric: What ``evaluate`` gave; None if it was not called for this size.
    """

    size: int
    fraction: float
    variance_kept: float
    metric: float | None = None


@dataclass(frozen=True, repr=False)
class Compressed(Displayed):
    """A compressed module.

    Attributes:
        module: The smaller module, of the same class, with ``nn.Sequential`` pairs in the place of layers.
        table: One record for each layer, and the totals.
        curve: Size against metric: the module given, and every size that was evaluated, largest first. Without
            ``evaluate`` the sizes along the way, without a metric.
        structure: Rank by name of each replaced layer, for :func:`restructured`.
        metric_before: What ``evaluate`` gave for the module given; None without it.
        metric_after: The same for the compressed module.
        evaluations: Number of calls of ``evaluate``.
        notes: What else to know, as sentences.
    """

    module: nn.Module = field(repr=False)
    table: CompressionTable
    curve: tuple[CurvePoint, ...]
    structure: Structure
    metric_before: float | None = None
    metric_after: float | None = None
    evaluations: int = 0
    notes: tuple[str, ...] = ()

    def plot(self) -> Figure:
        """The picture of the curve: the metric against the size; without ``evaluate`` the output variance kept.

        Raises:
            MissingExtraError: Without matplotlib.
        """
        return draw_curve(self.curve, self.table.size_after)

    def _shown(self) -> Shown:
        table = self.table
        rows = [("size", f"{table.size_before:,} -> {table.size_after:,} ({100 * table.fraction:.3g} %)")]
        before, after = self.metric_before, self.metric_after
        if before is not None and after is not None:
            rows.append(("metric", f"{number(before)} -> {number(after)} ({counted(self.evaluations, 'evaluation')})"))
        ranks = ", ".join(f"{name or 'itself'} {rank}" for name, rank in self.structure.items())
        rows.append(("ranks:", ranks or "nothing was replaced"))
        return Shown("Compressed", type(self.module).__name__, rows)
