"""Several processes as one: sums over the ranks, taken in step, and failures that are everybody's.

Before anything is exchanged all ranks meet: each says, in one small reduction, what it is about to do and whether it
has failed. So a rank on which something went wrong is never waited for, and ranks that have lost step notice instead of
exchanging what does not belong together. The price is one reduction of three numbers beside that of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lightning_sloppy.errors import ConfigurationError, RankError

Result = TypeVar("Result")

LEAVING = 0
GATHERING = -1
"""What a rank can be about to do, besides adding up so many numbers."""


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, the same on all; every rank must call it.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(tensor.numel())
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def gathered_over_ranks(thing: Any) -> list[Any]:
    """Every rank's object in the order of the ranks; it is pickled, so its tensors should be on the CPU.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    keep_step()
    return _gathered(thing)


def keep_step() -> None:
    """Wait for all ranks before they exchange something by other means.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(GATHERING)


def together(function: Callable[[], Result]) -> Result:
    """Run a function whose reductions other ranks take part in; when it fails on one rank it fails on all.

    Args:
        function: Called once on every rank.

    Raises:
        torch.OutOfMemoryError: When all failures are of that kind, so that all ranks may try again with less.
        RankError: On ranks that did well themselves; the message says which rank failed, and why.
        Exception: The rank's own error, as it was.
    """
    failure: Exception | None = None
    try:
        result = function()
    except Exception as error:
        failure = error
    met = isinstance(failure, RankError)
    if not met:
        try:
            _meet(LEAVING, failed=failure is not None)
        except RankError as error:
            met, failure = True, failure or error
    if failure is None:
        return result
    memory = isinstance(failure, torch.OutOfMemoryError)
    found = _gathered(None if isinstance(failure, RankError) else (memory, str(failure)))
    said = [(rank, *what) for rank, what in enumerate(found) if what is not None]
    # What memory would not have helped comes first.
    rank, all_memory, text = min(said, key=lambda what: what[1], default=(0, False, str(failure)))
    if all_memory:
        raise torch.OutOfMemoryError(f"Rank {rank}: {text}") from failure
    if memory or isinstance(failure, RankError):
        raise RankError(f"Rank {rank} of {len(found)} failed: {text}" if said else text) from failure
    raise failure


def need_ranks() -> None:
    """Check that there are ranks to add up over.

    Raises:
        ConfigurationError: Before :func:`torch.distributed.init_process_group`.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ConfigurationError(
            "over_ranks=True adds up over processes, but torch.distributed is not initialised; call "
            "init_process_group first, or leave it False."
        )


def _meet(plan: int, *, failed: bool = False) -> None:
    """Wait for all ranks, and see that all do well and plan the same."""
    word = torch.tensor([plan, -plan, int(failed)], dtype=torch.int64, device=_device())
    distributed.all_reduce(word, op=distributed.ReduceOp.MAX)
    most, least, any_failed = word.tolist()
    if any_failed:
        raise RankError("Another rank failed.")
    if most != -least:
        raise RankError(
            "The ranks have lost step: one is about to do what another is not. Their hardware or their data differ; "
            "measure on one process, or make them alike."
        )


def _gathered(thing: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, thing)
    return found


def _device() -> torch.device:
    """Where the default group can reduce."""
    on_cuda = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
