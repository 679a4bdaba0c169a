"""Compare a guessed loss with the loss that a step of the training returns, without another call of the step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, jit, nn
from torch.utils.hooks import RemovableHandle

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import as_pair
from lightning_sloppy.evaluation.loss_checks import is_loss_of_step
from lightning_sloppy.evaluation.nests import map_tensors
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.guard import measuring
from lightning_sloppy.probing.loss_difference import Seen, inputs_differ

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class StepCheck:
    """Evaluates a guess just before the training calls its step, and records the loss of the step's backward.

    The guess is evaluated before the step, with the weights, buffers, modes, precision and random streams that the step
    will have. If a step draws random numbers before it calls the module, dropout draws other numbers. So the guess is
    evaluated again when the first submodule is called, if the random stream has changed by then. The loss of the step
    is that of its first backward, because LBFGS calls the step again with other weights, and after the batch the
    weights have changed.

    Attributes:
        guesses: Values of the guess for this batch. The guess is confirmed if one of them equals the loss of the step.
        loss: The loss that the step returned; None before.
        buffers: Tables of buffers with their contents before the step: name and copy.
        seen: Outputs and targets of the guess, and how the inputs of the step differ from those of the batch.
    """

    def __init__(self) -> None:
        self.guesses: list[float] = []
        self.loss: float | None = None
        self.buffers: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self.seen = Seen()
        self._number: int | None = None
        self._hooks: list[RemovableHandle] = []

    def begin(self, trainer: Trainer, module: LightningModule, objective: Objective, batch: Any, number: int) -> None:
        """Evaluate the guess on the batch that the step will receive, once per batch.

        Args:
            trainer: The Trainer.
            module: The module.
            objective: The guess.
            batch: The batch as the training passes it.
            number: Number of this batch in the whole training.
        """
        if self._number == number:
            return
        self.forget()
        self._number = number
        self.buffers = [
            (part._buffers, {name: held.detach().clone() for name, held in part._buffers.items() if held is not None})
            for part in module.modules()
        ]
        stream, others = _stream(), _other_streams()
        inputs = self._guess(trainer, module, objective, batch)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def called(part: nn.Module, passed: tuple[Any, ...]) -> None:
            # Under DDP the step itself is called through the root, with the batch, before it draws random numbers.
            if not self._hooks or (part is module and passed and passed[0] is batch):
                return
            self._unhook()
            drew = not all(torch.equal(now, then) for now, then in zip(_stream(), stream, strict=True))
            with suppress(Exception):  # what is seen here only explains a difference
                first = next((each for each in passed if isinstance(each, Tensor)), None)
                self.seen.inputs = inputs_differ(inputs, first, drew=drew or _other_streams() != others)
            if drew:
                self._guess(trainer, module, objective, batch)

        self._hooks = [part.register_forward_pre_hook(called) for part in _plain_parts(module)]

    def _guess(self, trainer: Trainer, module: LightningModule, objective: Objective, batch: Any) -> Any:
        """Evaluate the guess on a batch as the step would, NaN if that fails; return a copy of the inputs."""
        inputs, given, value = None, objective.as_given(), math.nan
        loss_fn = given.loss_fn
        assert loss_fn is not None

        def kept(outputs: Any, targets: Any) -> Tensor:
            self.seen.outputs, self.seen.targets = map_tensors(Tensor.detach, outputs), targets
            return loss_fn(outputs, targets)

        given.loss_fn = kept
        with suppress(Exception):
            copy = as_pair(map_tensors(torch.clone, batch), module=module)
            inputs = copy[0]
            table = ParameterLayout.of(module).leaves(module, objective.dtype)
            with measuring(module, "train", precise=False), trainer_internals.step_context(trainer):
                value = float(given.loss_value(table, objective.prepare([copy])[0]))
        self.guesses.append(value)
        return inputs

    def see(self, trainer: Trainer, scaled: Tensor) -> None:
        """Record the loss of the first backward after :meth:`begin`."""
        self._unhook()
        if self.guesses and self.loss is None:
            self.loss = trainer_internals.loss_of_the_step(trainer, scaled)

    def agrees(self, objective: Objective) -> bool:
        """Whether the guess equals the loss of the step up to rounding."""
        assert self.loss is not None
        return any(is_loss_of_step(guess, self.loss, objective.module) for guess in self.guesses)

    @contextmanager
    def buffers_before(self) -> Iterator[None]:
        """Context in which the module has its buffers from before the step. No tensor is written to."""
        now = [{name: table[name] for name in before} for table, before in self.buffers]
        try:
            for table, before in self.buffers:
                table.update(before)
            yield
        finally:
            for (table, _), held in zip(self.buffers, now, strict=True):
                table.update(held)

    def forget(self) -> None:
        """Reset for another batch. The buffers are kept for measurements that are not yet published."""
        self._unhook()
        self.guesses, self.loss, self._number, self.seen = [], None, None, Seen()

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []


def _stream() -> list[Tensor]:
    """The states of torch's random streams."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if started else [])]


def _other_streams() -> tuple[bytes, int]:
    """The states of the random streams of NumPy and Python, from which steps draw as well."""
    state: Any = np.random.get_state()  # noqa: NPY002 - users draw from the global stream
    return state[1].tobytes(), hash((state[2], random.getstate()))


def _plain_parts(module: nn.Module) -> list[nn.Module]:
    """Modules that can be hooked for one step without causing a recompilation."""
    if vars(module).get("_compiler_ctx") is not None:
        return []
    if any(type(part).__name__ == "OptimizedModule" or isinstance(part, jit.ScriptModule) for part in module.modules()):
        return [module]
    return list(module.modules())
