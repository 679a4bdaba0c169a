"""``training_step`` as a function of the parameters. Its side effects happen on a copy of the module."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from typing import TYPE_CHECKING, Any

from torch import Tensor, jit, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.attributes import LARGEST, reachable
from lightning_sloppy.evaluation.loss_checks import checked_scalar
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.outside import Outside

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

ASK = (
    "pass loss_fn=, the mean-reduced loss of (outputs, targets), for instance "
    "loss_fn=torch.nn.functional.cross_entropy (in YAML the dotted path)"
)

DATA = (Dataset, DataLoader, Sampler)
"""Types that are too large to copy, and that are read rather than written."""


class TrainingStep(nn.Module):
    """Wraps a LightningModule so that calling it runs ``training_step`` and returns the loss.

    The step runs on a copy of the module that is made for each call. The copy shares the parameters and buffers that
    :func:`torch.func.functional_call` has set, so that derivatives are computed, and copies everything else: counters,
    meters, environments, averages. So every call starts from the same state, and none changes the module. Objects
    outside the module that the code of the step refers to are restored afterwards. Printed output is discarded.

    Args:
        inner: The module.
        shielded: Whether to copy. False calls the step of the module itself, whose attributes the guard restores.
    """

    def __init__(self, inner: LightningModule, *, shielded: bool = True) -> None:
        super().__init__()
        self.inner = inner
        self._shielded = shielded
        self._takes_index = len(inspect.signature(inner.training_step).parameters) > 1
        self._outside = Outside.of(inner)

    @property
    def acting(self) -> tuple[str, ...]:
        """Objects outside the module that the step uses and whose state cannot be restored."""
        return self._outside.acting

    def forward(self, batch: Any) -> Tensor:
        """Return the loss of ``training_step``."""
        module = isolated(self.inner) if self._shielded else self.inner
        datamodule = getattr(trainer_internals.real_trainer(self.inner), "datamodule", None)
        kept = (
            [] if datamodule is None else [vars(datamodule)]
        )  # objects of Lightning's classes are not restored, but their attribute tables are
        with self._outside.restored(*kept), contextlib.redirect_stdout(io.StringIO()):
            result = module.training_step(batch, 0) if self._takes_index else module.training_step(batch)
        loss = result.get("loss") if isinstance(result, dict) else result
        if loss is None:
            raise ConfigurationError(f"training_step returned no loss, so it cannot be measured; {ASK}.", cause="loss")
        return checked_scalar(loss)


def isolated(module: LightningModule) -> LightningModule:
    """A copy that shares trained parameters and buffers, but no other state, and whose Trainer does nothing.

    Raises:
        Exception: If an attribute cannot be copied, whatever it raises.
    """
    trainer = trainer_internals.real_trainer(module)
    memo: dict[int, Any] = {} if trainer is None else trainer_internals.stand_ins(trainer)
    acting = None if trainer is None else memo[id(trainer)]
    shared = _shared(module)
    memo |= {identity: replacement for identity, (_, replacement) in shared.items() if identity not in memo}
    twin: LightningModule = copy.deepcopy(module, memo)
    trainer_internals.as_written(twin)
    trainer_internals.attach(twin, acting)
    return twin


def _shared(module: nn.Module) -> dict[int, tuple[Any, Any]]:
    """What a copy does not copy: by identity, the object (kept alive) and its replacement in the copy."""
    found: dict[int, tuple[Any, Any]] = {}
    for child in module.modules():
        if isinstance(child, jit.ScriptModule):  # a copy would not share the parameters
            found[id(child)] = (child, child)
        for tensor in [*child._parameters.values(), *child._buffers.values()]:
            if tensor is not None:
                found[id(tensor)] = (tensor, tensor)
        for tensor in child._parameters.values():
            if tensor is not None and not tensor.requires_grad:
                # It may be the tensor of the module itself, and a step that averages weights writes to it.
                found[id(tensor)] = (tensor, tensor.clone())
    for value in reachable([module], everything=True):
        if id(value) in found:
            continue
        if isinstance(value, Tensor) and value.grad_fn is not None:  # copy.deepcopy refuses it
            found[id(value)] = (value, value.detach().clone())
        elif _is_data(value):
            found[id(value)] = (value, value)
    return found


def _is_data(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.nbytes > LARGEST
    # By name: the two copies of Lightning have no classes in common.
    return isinstance(value, DATA) or any(kind.__name__ == "LightningDataModule" for kind in type(value).__mro__)


def uncopied(module: LightningModule) -> str:
    """The part of a module that cannot be copied, in words; empty if everything can be."""
    try:
        isolated(module)
    except Exception as error:
        for path, child in module.named_modules():
            for name, value in vars(child).items():
                if name not in ("_modules", "_parameters", "_buffers", "_trainer"):
                    try:
                        copy.deepcopy(value, {id(module): module, **{id(each): each for each in module.modules()}})
                    except Exception as cause:
                        return f"{'.'.join(filter(None, (path, name)))} ({type(cause).__name__}: {cause})"
        return f"the module ({type(error).__name__}: {error})"
    return ""
