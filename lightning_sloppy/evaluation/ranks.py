"""Several processes as one: sums over the ranks, taken in step, and failures that are everybody's.

Before anything is exchanged all ranks meet: each says, in one small reduction, what it is about to do and whether it
has failed. So a rank on which something went wrong is never waited for, and ranks that have lost step notice instead of
exchanging what does not belong together. The price is one reduction of three numbers beside that of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lightning_sloppy.errors import ConfigurationError, RankError

Result = TypeVar("Result")

LEAVING = 0
GATHERING = -1
COMPARING = -2
"""What a rank can be about to do, besides adding up so many numbers."""


def _itself(thing: Any) -> Any:
    """The sum or the least of a single one."""
    return thing


@dataclass(frozen=True)
class Ranks:
    """This process among those that measure together.

    Attributes:
        rank: Of this process.
        count: Of processes.
        add_up: The sum of every rank's tensor.
        least: The least of every rank's number. What is decided by something that differs between processes, such as
            free memory, is decided by it: ranks that decide otherwise would lose step.
    """

    rank: int = 0
    count: int = 1
    add_up: Callable[[Tensor], Tensor] = _itself
    least: Callable[[float], float] = _itself

    def together(self, function: Callable[[], Result]) -> Result:
        """Run it on every rank or on none: see :func:`together`."""
        return function() if self.count == 1 else together(function)


ALONE = Ranks()
"""A process that measures by itself."""


def all_ranks() -> Ranks:
    """This process in the default group of :mod:`torch.distributed`."""
    return Ranks(distributed.get_rank(), distributed.get_world_size(), sum_over_ranks, least_over_ranks)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, the same on all; every rank must call it.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(tensor.numel())
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def least_over_ranks(number: float) -> float:
    """The least of every rank's number; every rank must call it.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(COMPARING)
    least = torch.tensor(number, dtype=torch.float64, device=_device())
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return float(least)


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
        try:
            result = function()
        except Exception as error:
            failure = error
        if not isinstance(failure, RankError):  # else the ranks have met already
            try:
                _meet(LEAVING, failed=failure is not None)
            except RankError as error:
                failure = failure or error
        if failure is None:
            return result
        raise _verdict(failure)
    finally:
        # The error holds this frame, and this frame the error: without an end to it everything that the function held
        # would stay until the garbage collector comes by, the memory that a second try needs included.
        del failure


def _verdict(failure: Exception) -> Exception:
    """What this rank raises, after all have heard what went wrong on each."""
    memory = isinstance(failure, torch.OutOfMemoryError)
    found = _gathered(None if isinstance(failure, RankError) else (memory, str(failure)))
    said = [(rank, *what) for rank, what in enumerate(found) if what is not None]
    # What memory would not have helped comes first.
    rank, all_memory, text = min(said, key=lambda what: what[1], default=(0, False, str(failure)))
    if all_memory:
        return torch.OutOfMemoryError(f"Rank {rank}: {text}")
    if memory or isinstance(failure, RankError):
        return RankError(f"Rank {rank} of {len(found)} failed: {text}" if said else text)
    return failure


def need_ranks() -> Ranks:
    """All ranks, after a check that there are some to add up over.

    Raises:
        ConfigurationError: Before :func:`torch.distributed.init_process_group`.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ConfigurationError(
            "over_ranks=True adds up over processes, but torch.distributed is not initialised; call "
            "init_process_group first, or leave it False."
        )
    return all_ranks()


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
