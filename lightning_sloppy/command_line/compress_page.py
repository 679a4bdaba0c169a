"""The page that ``lightning-sloppy compress`` prints: the answer first, then the layers, then its conditions."""

from __future__ import annotations

import sys

from lightning_sloppy.callbacks.compressing_trainer import CompressedCheckpoint
from lightning_sloppy.display import counted, number


def print_compressed(found: CompressedCheckpoint) -> None:
    """Print the page on the standard output."""
    sys.stdout.write("\n".join(["", *answers(found), "", str(found.compressed.table), "", *conditions(found)]) + "\n")


def answers(found: CompressedCheckpoint) -> list[str]:
    """Size, metrics and file, one line each."""
    done, table = found.compressed, found.compressed.table
    lines = [
        f"Size: {100 * table.fraction:.3g} % ({table.size_after:,} of {table.size_before:,} numbers; {found.target})"
    ]
    monitored = found.monitored
    if monitored is not None and done.metric_before is not None and done.metric_after is not None:
        before, after = monitored.score(done.metric_before), monitored.score(done.metric_after)
        sizes = counted(done.evaluations - 1, "size")
        chose = f"chose among {sizes}" if found.target.startswith("max_drop") else "chose nothing"
        lines.append(f"Validation: {monitored.name} {number(before)} -> {number(after)} (these samples {chose})")
    for name, (before, after) in found.tested.items():
        lines.append(f"Test: {name} {number(before)} -> {number(after)} (these samples chose nothing)")
    lines.append(f"Written: {found.out}")
    return lines


def conditions(found: CompressedCheckpoint) -> list[str]:
    """What the numbers are of, and what to do next."""
    monitored = found.monitored
    lines = [
        "rank: of the two layers in the place of one; inputs: effective rank of the inputs (participation ratio);",
        "kept: share of the layer's own output variance, at the inputs of the network before.",
        f"Statistics: {counted(found.num_samples, 'training sample')}. Size: parameters and buffers that a checkpoint "
        "stores.",
    ]
    if monitored is not None:
        better = "larger" if monitored.direction == "max" else "smaller"
        lines.append(f"Metric: {monitored.name}, {monitored.source}; {better} is better.")
    elif found.target.startswith(("size", "keep")):
        lines.append("No validation metric: it is not clear which one judges; --monitor NAME shows it.")
    if not found.tested and found.target.startswith("max_drop"):
        lines.append("No test samples: the metric after is of the samples that chose, and may be a little too good.")
    lines += found.compressed.notes
    lines.append(
        f"Fine-tune: fit ... --trainer.callbacks+=LowRank --trainer.callbacks.checkpoint {found.out}; to judge: "
        f"validate ... --ckpt_path {found.out}"
    )
    return lines
