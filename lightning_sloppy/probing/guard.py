"""The Trainer's share of leaving no trace: logging is muted and the module's own attributes come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_sloppy.evaluation.preserve import Mode, preserved

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_CONTAINERS = (list, dict, set, deque)
_TORCH_TABLES = frozenset(vars(nn.Module()))
"""Tables of :class:`torch.nn.Module` itself; their tensors are restored by :func:`preserved`."""


@contextmanager
def measuring(module: LightningModule, mode: Mode = "eval") -> Iterator[None]:
    """Everything of :func:`preserved`, and for a LightningModule: ``self.log`` does nothing, attributes are restored.

    A ``training_step`` that is run once more may append to lists of the module or count; plain containers are copied
    before and refilled after.
    """
    before = dict(vars(module))
    copies = {
        name: value.copy() for name, value in before.items() if type(value) in _CONTAINERS and name not in _TORCH_TABLES
    }
    with preserved(module, mode):
        try:
            vars(module)["log"] = _silent
            vars(module)["log_dict"] = _silent
            yield
        finally:
            _restore(vars(module), before, copies)


def _silent(*_: Any, **__: Any) -> None:
    """Stands in for ``self.log`` and ``self.log_dict``."""


def _restore(table: dict[str, Any], before: dict[str, Any], copies: dict[str, Any]) -> None:
    for name in [name for name in table if name not in before]:
        del table[name]
    for name, value in before.items():
        if name != "training" and table.get(name) is not value:
            table[name] = value
    for name, copy in copies.items():
        held = before[name]
        held.clear()
        held.extend(copy) if isinstance(held, (list, deque)) else held.update(copy)
