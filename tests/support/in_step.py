"""What ranks do together, as one rank of two: sums, failures and lost steps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks
import torch
from torch import distributed

from lightning_sloppy.evaluation.ranks import gathered_over_ranks, keep_step, sum_over_ranks, together


def outcome(function: Callable[[], Any]) -> list[str]:
    """What came of it: a value, or the kind and text of an error."""
    try:
        return ["value", str(together(function))]
    except Exception as error:
        return [type(error).__name__, str(error)]


def cases(rank: int) -> dict[str, Callable[[], Any]]:
    """By name."""

    def fail(error: Exception, *, alone: bool = True) -> Any:
        value = sum_over_ranks(torch.tensor(float(rank + 1)))
        if rank == 1 or not alone:
            raise error
        return sum_over_ranks(value).item()

    def out_of_step() -> Any:
        return sum_over_ranks(torch.ones(2 + rank)).tolist()

    def leaves_early() -> Any:
        return 0.0 if rank == 1 else sum_over_ranks(torch.ones(2)).tolist()

    def mixed() -> Any:
        raise torch.OutOfMemoryError("7 GiB") if rank == 0 else ValueError("no file")

    return {
        "sum": lambda: sum_over_ranks(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist(),
        "gather": lambda: (keep_step(), gathered_over_ranks({"rank": rank}))[1],
        "one fails": lambda: fail(ValueError("no file")),
        "both fail": lambda: fail(ValueError(f"no file on {rank}"), alone=False),
        "one without memory": lambda: fail(torch.OutOfMemoryError("7 GiB")),
        "one without memory, one without a file": mixed,
        "out of step": out_of_step,
        "one leaves early": leaves_early,
        "and all is well again": lambda: sum_over_ranks(torch.ones(1)).item(),
    }


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    Path(sys.argv[1]).write_text(json.dumps({name: outcome(case) for name, case in cases(rank).items()}))
    distributed.barrier()
    ranks.leave()
