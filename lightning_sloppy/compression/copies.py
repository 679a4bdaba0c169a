"""A copy of a module that shares nothing with it that training changes, and that knows no Trainer."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.attributes import LARGEST, reachable

OF_A_TRAINING = frozenset({"Trainer", "Fabric"})
"""Classes by name, because Lightning has two packages. A copy of a module belongs to no training."""

DATA = frozenset({"LightningDataModule", "Dataset", "DataLoader"})
"""Classes by name whose objects the copy shares: they are read, and may be large."""


def independent_copy(module: nn.Module) -> nn.Module:
    """A deep copy of a module: weights, buffers, modes and hooks, without gradients and without its Trainer.

    Raises:
        ConfigurationError: If it has an attribute that cannot be copied.
    """
    memo: dict[int, Any] = {}
    stored = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    alive = []  # an identity in the memo stands for an object only while that object exists
    for value in reachable([module], everything=True):
        names = {kind.__name__ for kind in type(value).__mro__}
        if names & OF_A_TRAINING and not isinstance(value, nn.Module):
            memo[id(value)] = None
        elif isinstance(value, Tensor) and value.grad_fn is not None:  # copy.deepcopy refuses it
            memo[id(value)] = value.detach().clone()
        elif names & DATA or (isinstance(value, Tensor) and id(value) not in stored and value.nbytes > LARGEST):
            memo[id(value)] = value
        else:
            continue
        alive.append(value)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ConfigurationError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and the module given is not "
            "changed; take out the attribute that cannot be copied, such as an open file."
        ) from error
