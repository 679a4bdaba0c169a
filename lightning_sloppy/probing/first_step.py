"""The check of a guessed loss with the loss that a step of the training returns, without a call of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class StepCheck:
    """Evaluates a guess where the training is about to call its step, and keeps the loss that goes backward there.

    The guess is evaluated before the step: with the weights, buffers, modes, precision and random streams that the step
    will have. A step that draws before it calls the module shifts what dropout draws, so the guess is evaluated again
    where the first part of the module is called, if the random stream has moved by then. The loss of the step is that
    of the first backward: LBFGS calls the step again with other weights, and after the batch the weights have moved.

    Attributes:
        guesses: Values of the guess for this batch; one of them is to be the loss of the step.
        loss: What the step returned; None before.
        buffers: Tables of buffers with what was in them before the step: name and copy.
    """

    def __init__(self) -> None:
        self.guesses: list[float] = []
        self.loss: float | None = None
        self.buffers: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._number: int | None = None
        self._hooks: list[RemovableHandle] = []

    def begin(self, trainer: Trainer, module: LightningModule, objective: Objective, batch: Any, number: int) -> None:
        """Evaluate the guess on the batch that the step is about to be given; once for each batch.

        Args:
            trainer: The Trainer.
            module: The module.
            objective: The guess.
            batch: As the training gives it.
            number: Of this batch in the whole training.
        """
        if self._number == number:
            return
        self.forget()
        self._number = number
        self.buffers = [
            (part._buffers, {name: held.detach().clone() for name, held in part._buffers.items() if held is not None})
            for part in module.modules()
        ]
        stream = _stream()
        self.guesses = [_value(trainer, module, objective, batch)]

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def called(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            # Under DDP the step itself is called through the root, with the batch, before it has drawn anything.
            if not self._hooks or (part is module and inputs and inputs[0] is batch):
                return
            self._unhook()
            if not all(torch.equal(now, then) for now, then in zip(_stream(), stream, strict=True)):
                self.guesses.append(_value(trainer, module, objective, batch))

        self._hooks = [part.register_forward_pre_hook(called) for part in _plain_parts(module)]

    def see(self, trainer: Trainer, scaled: Tensor) -> None:
        """Keep the first loss that goes backward after :meth:`begin`."""
        self._unhook()
        if self.guesses and self.loss is None:
            self.loss = trainer_internals.loss_of_the_step(trainer, scaled)

    def agrees(self, objective: Objective) -> bool:
        """Whether the guess is the loss of the step, but for rounding."""
        assert self.loss is not None
        return any(is_loss_of_step(guess, self.loss, objective.module) for guess in self.guesses)

    @contextmanager
    def buffers_before(self) -> Iterator[None]:
        """Inside, the buffers of the module are what they were before the step; nothing is written to a tensor."""
        now = [{name: table[name] for name in before} for table, before in self.buffers]
        try:
            for table, before in self.buffers:
                table.update(before)
            yield
        finally:
            for (table, _), held in zip(self.buffers, now, strict=True):
                table.update(held)

    def forget(self) -> None:
        """Ready for another batch; the buffers are kept for what is still to be published."""
        self._unhook()
        self.guesses, self.loss, self._number = [], None, None

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []


def _value(trainer: Trainer, module: LightningModule, objective: Objective, batch: Any) -> float:
    """The guess on a batch as the step would compute it; NaN where it cannot be computed."""
    try:
        copy = as_pair(map_tensors(torch.clone, batch), module=module)
        table = ParameterLayout.of(module).leaves(module, objective.dtype)
        with measuring(module, "train", precise=False), trainer_internals.step_context(trainer):
            return float(objective.as_given().loss_value(table, objective.prepare([copy])[0]))
    except Exception:
        return math.nan


def _stream() -> list[Tensor]:
    """Where torch's random streams are."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if started else [])]


def _plain_parts(module: nn.Module) -> list[nn.Module]:
    """Modules that can be hooked for one step without compiling anything anew."""
    if vars(module).get("_compiler_ctx") is not None:
        return []
    if any(type(part).__name__ == "OptimizedModule" or isinstance(part, jit.ScriptModule) for part in module.modules()):
        return [module]
    return list(module.modules())
