"""Sums over the processes of a distributed run."""

from __future__ import annotations

from torch import Tensor, distributed

from lightning_sloppy.errors import ConfigurationError


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, the same on all; every rank must call it."""
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


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
