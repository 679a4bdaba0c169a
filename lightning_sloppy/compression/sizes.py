"""The size of a module: how many numbers it stores."""

from __future__ import annotations

from torch import nn

from lightning_sloppy.evaluation.nests import tensors_of


def stored_numbers(module: nn.Module) -> int:
    """Number of numbers in ``state_dict()``: parameters and persistent buffers. A shared tensor counts once.

    >>> stored_numbers(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))  # 8 and 4 parameters, 5 numbers in buffers
    17
    """
    found = {}
    for tensor in tensors_of(dict(module.state_dict(keep_vars=True))):
        # Views of one part of memory are one tensor; a state_dict of another class may give copies.
        found[tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()] = tensor.numel()
    return sum(found.values())
