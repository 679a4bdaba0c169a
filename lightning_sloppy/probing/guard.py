"""The Trainer's part of leaving no trace: loggers are muted, optimisers and schedules do not step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_sloppy.evaluation.preserve import Mode, preserved
from lightning_sloppy.probing import trainer_internals

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


@contextmanager
def measuring(module: LightningModule, mode: Mode = "eval", *, precise: bool = True) -> Iterator[None]:
    """Everything of :func:`preserved`, and what the module does through its Trainer is not done inside.

    ``self.log`` and ``self.log_dict`` do nothing; ``self.logger`` and its experiment write nothing; the optimisers and
    learning-rate schedules of the Trainer do not step; the same where the module keeps them as attributes.
    """
    with preserved(module, mode, precise=precise):
        # Attributes are restored on leaving, and with them the Trainer and the methods behind these names.
        trainer = trainer_internals.real_trainer(module)
        if trainer is not None:
            stand_ins = trainer_internals.stand_ins(trainer)
            for child in module.modules():
                held = {name: stand_ins[id(value)] for name, value in vars(child).items() if id(value) in stand_ins}
                vars(child).update(held)
        for child in module.modules():
            if child is module or hasattr(child, "log_dict"):
                vars(child)["log"] = _silent
                vars(child)["log_dict"] = _silent
        yield


def _silent(*_: Any, **__: Any) -> None:
    """Stands in for ``self.log`` and ``self.log_dict``."""
