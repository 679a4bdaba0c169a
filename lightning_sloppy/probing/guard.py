"""Prevent side effects through the Trainer: loggers write nothing, optimisers and schedules do not step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_sloppy.evaluation.preserve import Mode, preserved
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.muted import muted_optimizer, muted_scheduler

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


@contextmanager
def measuring(module: LightningModule, mode: Mode = "eval", *, precise: bool = True) -> Iterator[None]:
    """Context of :func:`preserved` in which the module also has no effect through its Trainer.

    ``self.log`` and ``self.log_dict`` do nothing. ``self.logger`` and its experiment write nothing. The optimisers and
    learning-rate schedules of the Trainer do not step. The same holds if the module keeps them as attributes.
    """
    with preserved(module, mode, precise=precise):
        # All attributes are restored on exit, including the Trainer and the methods replaced here.
        trainer = trainer_internals.real_trainer(module)
        stand_ins = {} if trainer is None else trainer_internals.stand_ins(trainer)
        for child in module.modules():
            for name, value in list(vars(child).items()):
                if id(value) in stand_ins:
                    vars(child)[name] = stand_ins[id(value)]
                elif isinstance(value, LRScheduler):  # one that only the module knows, not the Trainer
                    vars(child)[name] = muted_scheduler(value)
                elif isinstance(value, Optimizer):
                    vars(child)[name] = muted_optimizer(value)
        for child in module.modules():
            if child is module or hasattr(child, "log_dict"):
                vars(child)["log"] = _silent
                vars(child)["log_dict"] = _silent
        yield


def _silent(*_: Any, **__: Any) -> None:
    """Replacement for ``self.log`` and ``self.log_dict`` that does nothing."""
