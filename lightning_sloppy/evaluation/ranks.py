"""Reductions over ranks that stay in step, and errors that are raised on all ranks.

Before every exchange the ranks synchronise: in one small reduction, each reports its next operation and whether it has
failed. So no rank waits for one that has failed, and ranks that are out of step raise an error instead of exchanging
unrelated data. The cost is one additional reduction of three numbers per product.
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
"""Operations other than a sum. For a sum, the number of elements is reported."""


def _itself(thing: Any) -> Any:
    """Sum or minimum over a single rank."""
    return thing


@dataclass(frozen=True)
class Ranks:
    """This process and the others that measure together.

    Attributes:
        rank: Rank of this process.
        count: Number of processes.
        add_up: Function that returns the sum of a tensor over all ranks.
        least: Function that returns the minimum of a number over all ranks. Decisions that depend on something that
            differs between processes, such as free memory, must use it: otherwise ranks get out of step.
    """

    rank: int = 0
    count: int = 1
    add_up: Callable[[Tensor], Tensor] = _itself
    least: Callable[[float], float] = _itself

    def together(self, function: Callable[[], Result]) -> Result:
        """Run a function so that it succeeds on all ranks or fails on all: see :func:`together`."""
        return function() if self.count == 1 else together(function)


ALONE = Ranks()
"""A single process."""


def all_ranks() -> Ranks:
    """This process in the default group of :mod:`torch.distributed`."""
    return Ranks(distributed.get_rank(), distributed.get_world_size(), sum_over_ranks, least_over_ranks)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of the tensors of all ranks, the same on each. All ranks must call it.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(tensor.numel())
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def least_over_ranks(number: float) -> float:
    """Return the minimum of the numbers of all ranks. All ranks must call it.

    Raises:
        RankError: When another rank has failed, or does something else.
    """
    _meet(COMPARING)
    least = torch.tensor(number, dtype=torch.float64, device=_device())
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return float(least)


def gathered_over_ranks(thing: Any) -> list[Any]:
    """Return the objects of all ranks in order. They are pickled, so their tensors should be on the CPU.

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
    """Run a function with reductions over ranks. If it fails on one rank, it fails on all.

    Args:
        function: Called once on every rank.

    Raises:
        torch.OutOfMemoryError: If all failures are of this kind, so that all ranks can retry with less memory.
        RankError: On ranks that did not fail themselves; the message says which rank failed, and why.
        Exception: On a rank that failed, its own error.
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
        # The error and this frame refer to each other. Without this, all objects of the function would stay in memory
        # until the next garbage collection, and a second try would lack that memory.
        del failure


def _verdict(failure: Exception) -> Exception:
    """The error that this rank raises, after all ranks have exchanged their errors."""
    memory = isinstance(failure, torch.OutOfMemoryError)
    found = _gathered(None if isinstance(failure, RankError) else (memory, str(failure)))
    said = [(rank, *what) for rank, what in enumerate(found) if what is not None]
    # Errors other than lack of memory come first.
    rank, all_memory, text = min(said, key=lambda what: what[1], default=(0, False, str(failure)))
    if all_memory:
        return torch.OutOfMemoryError(f"Rank {rank}: {text}")
    if memory or isinstance(failure, RankError):
        return RankError(f"Rank {rank} of {len(found)} failed: {text}" if said else text)
    return failure


def need_ranks() -> Ranks:
    """Return all ranks, after a check that :mod:`torch.distributed` is initialised.

    Raises:
        ConfigurationError: If :func:`torch.distributed.init_process_group` was not called.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ConfigurationError(
            "over_ranks=True sums over processes, but torch.distributed is not initialised; call init_process_group "
            "first, or leave it False."
        )
    return all_ranks()


def _meet(plan: int, *, failed: bool = False) -> None:
    """Wait for all ranks, and check that none has failed and that all have the same next operation."""
    word = torch.tensor([plan, -plan, int(failed)], dtype=torch.int64, device=_device())
    distributed.all_reduce(word, op=distributed.ReduceOp.MAX)
    most, least, any_failed = word.tolist()
    if any_failed:
        raise RankError("Another rank failed.")
    if most != -least:
        raise RankError(
            "The ranks are out of step: their next operations differ, so their hardware or their data differ; "
            "measure on one process, or make them alike."
        )


def _gathered(thing: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, thing)
    return found


def _device() -> torch.device:
    """The device on which the default group can reduce."""
    on_cuda = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
