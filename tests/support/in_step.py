"""What ranks do together, as one rank of two: sums, failures and lost steps."""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lightning_sloppy.evaluation.ranks import gathered_over_ranks, keep_step, least_over_ranks, sum_over_ranks, together
from support import ranks


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

    def fail_at_the_end() -> Any:
        value = sum_over_ranks(torch.tensor(float(rank + 1)))
        if rank == 1:
            raise ValueError("no disk")  # behind the last reduction nobody would notice by it
        return value.item()

    def out_of_step() -> Any:
        return sum_over_ranks(torch.ones(2 + rank)).tolist()

    def leaves_early() -> Any:
        return 0.0 if rank == 1 else sum_over_ranks(torch.ones(2)).tolist()

    def mixed() -> Any:
        raise torch.OutOfMemoryError("7 GiB") if rank == 0 else ValueError("no file")

    return {
        "sum": lambda: sum_over_ranks(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist(),
        "least": lambda: least_over_ranks(float(10 - rank)),
        "gather": lambda: (keep_step(), gathered_over_ranks({"rank": rank}))[1],
        "one fails": lambda: fail(ValueError("no file")),
        "one fails behind the last reduction": fail_at_the_end,
        "both fail": lambda: fail(ValueError(f"no file on {rank}"), alone=False),
        "one without memory": lambda: fail(torch.OutOfMemoryError("7 GiB")),
        "one without memory, one without a file": mixed,
        "out of step": out_of_step,
        "one leaves early": leaves_early,
        "and all is well again": lambda: sum_over_ranks(torch.ones(1)).item(),
    }


def second_try(rank: int) -> Any:
    """Whether what the first try held is gone when its error has been dealt with."""
    held: list[Any] = []

    def first() -> Any:
        large = torch.ones(10)
        held.append(weakref.ref(large))
        if rank == 1:
            raise torch.OutOfMemoryError(f"no room beside {len(large)}")
        return sum_over_ranks(large).tolist()

    with suppress(torch.OutOfMemoryError):
        together(first)
    gone = held[0]() is None
    return together(lambda: gone)


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = {name: outcome(case) for name, case in cases(rank).items()}
    gc.disable()
    results["memory is free for a second try"] = ["value", str(second_try(rank))]
    Path(sys.argv[1]).write_text(json.dumps(results))
    distributed.barrier()
    ranks.leave()
