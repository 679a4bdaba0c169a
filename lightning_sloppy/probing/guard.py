"""The Trainer's part of leaving no trace: logging is muted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_sloppy.evaluation.preserve import Mode, preserved

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


@contextmanager
def measuring(module: LightningModule, mode: Mode = "eval") -> Iterator[None]:
    """Everything of :func:`preserved`, and ``self.log`` and ``self.log_dict`` of the module do nothing inside."""
    with preserved(module, mode):
        # Attributes are restored on leaving, and with them the methods behind these names.
        vars(module)["log"] = _silent
        vars(module)["log_dict"] = _silent
        yield


def _silent(*_: Any, **__: Any) -> None:
    """Stands in for ``self.log`` and ``self.log_dict``."""
