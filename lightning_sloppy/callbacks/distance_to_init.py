"""A penalty on the distance from the initial weights, which is the largest term of a PAC-Bayes bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_sloppy.callbacks.base import SloppyCallback
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.real_numbers import shaped_like
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import fit_context
from lightning_sloppy.user_warnings import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

GammaSchedule = Literal["constant", "linear"]


class DistanceToInit(SloppyCallback):
    """Train on ``loss + gamma ||w - w0||^2`` with w0 the weights before the first step.

    ``epsilon/2 ||w - w0||^2`` is usually the largest part of the KL divergence in a PAC-Bayes bound. This callback
    keeps it small, as weight decay keeps ``||w||^2`` small. The gradient ``2 gamma (w - w0)`` is added to that of the
    loss after the backward pass and before gradients are clipped, once for each optimiser step. The logged loss does
    not include the term, and neither does the value that an optimiser with a line search uses. This is the only
    callback of the package that changes the trained weights. With gamma = 0 it changes nothing.

    Args:
        gamma: Strength, at least 0. The loss is a mean over samples, so a useful strength does not grow with their
            number.
        schedule: "constant", or "linear": from 0 at the start to gamma at the planned end of the training.
        parameters: Shell-style patterns of the names of the parameters that are penalised. null: all that are trained
            when the fit starts, without layers that are unfrozen later. Several callbacks may have different ones.

    Raises:
        ConfigurationError: For a negative gamma, an unknown schedule, a pattern without a match, manual optimisation,
            or "linear" without a planned end.
        UnsupportedError: For 16-mixed precision with a fused optimiser, which keeps gradients scaled, and for sparse
            gradients.

    Example:
        >>> DistanceToInit(gamma=1e-3).gamma
        0.001
    """

    def __init__(self, gamma: float, *, schedule: GammaSchedule = "constant", parameters: Patterns = None) -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ConfigurationError(f"gamma={gamma} is out of range; pass a finite strength of at least 0.")
        if schedule not in get_args(GammaSchedule):
            raise ConfigurationError(
                f"schedule={schedule!r} is unknown; choose one of {', '.join(get_args(GammaSchedule))}."
            )
        self.gamma = gamma
        self.schedule = schedule
        self.parameters = parameters
        self._start: dict[str, Tensor] = {}
        self._held: list[tuple[torch.nn.Parameter, Tensor]] = []

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: callbacks for different parameters have separate states."""
        patterns = self.settings()["parameters"]
        return type(self).__name__ if patterns is None else f"{type(self).__name__}{{'parameters': {patterns!r}}}"

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        patterns = self.parameters if isinstance(self.parameters, str | None) else list(self.parameters)
        return {"gamma": self.gamma, "schedule": self.schedule, "parameters": patterns}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse unsupported modules and strategies."""
        if stage != "fit":
            return
        self._start, self._held = {}, []
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"DistanceToInit adds a term to the loss of automatic optimisation, but {type(pl_module).__name__} "
                "uses manual optimisation; add gamma * ||w - w0||^2 to its loss there."
            )
        if not trainer_internals.strategy_is_supported(trainer):
            raise UnsupportedError(
                f"DistanceToInit needs all parameters on every device, but the strategy is "
                f"{type(trainer.strategy).__name__}; use strategy='auto' or 'ddp'."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the initial weights, or take them from the checkpoint."""
        if self.schedule == "linear" and not trainer_internals.has_planned_end(trainer):
            raise ConfigurationError(
                "schedule='linear' needs a planned end of the training, but the Trainer has none; set max_epochs or "
                "max_steps, or use schedule='constant'."
            )
        context = fit_context(trainer, pl_module)
        begun = context.layout.table(context.origin.weights)
        wanted = ParameterLayout.of(pl_module, self.parameters)
        shapes = dict(zip(wanted.names, wanted.shapes, strict=True))
        known = {name: start for name, start in self._start.items() if shapes.get(name) == start.shape}
        unknown = [name for name in wanted.names if name not in known]
        if trainer.global_step > 0 and unknown:
            warn_user(
                f"DistanceToInit does not know the initial weights of {', '.join(unknown[:3])}"
                f"{' and others' if len(unknown) > 3 else ''} (the checkpoint has no state of this callback, or other "
                "layers were trained then), so their distances are measured from the weights at the start of this fit."
            )
        self._start = {name: known.get(name, begun[name]) for name in wanted.names}
        if self.parameters is not None:  # otherwise a checkpoint would store the whole tensor for a view of a part
            self._start = {name: start.clone() for name, start in self._start.items()}
        table = dict(pl_module.named_parameters())
        self._held = [
            (table[name], shaped_like(start, table[name]).to(table[name].device, table[name].dtype, copy=True))
            for name, start in self._start.items()
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of the term. Lightning calls this once for each step, before it clips."""
        strength = self.strength(trainer)
        if strength == 0:
            return
        if trainer_internals.gradients_are_scaled(trainer, optimizer):
            raise UnsupportedError(
                "DistanceToInit adds to gradients, but a fused optimiser keeps them scaled under 16-mixed precision; "
                "pass fused=False to the optimiser, or use precision='bf16-mixed'."
            )
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad():
            for parameter, start in self._held:
                if parameter not in stepped or parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise UnsupportedError(
                        "DistanceToInit changes every weight at each step, which a sparse gradient cannot represent; "
                        "pass sparse=False to the embedding, or exclude it with parameters=."
                    )
                parameter.grad.add_(parameter - start, alpha=2 * strength)

    def strength(self, trainer: Trainer) -> float:
        """Gamma at the current step."""
        if self.schedule == "constant":
            return self.gamma
        return self.gamma * (trainer_internals.fraction_done(trainer) or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Also the initial weights, by name; without patterns they are views of a tensor that measurements keep too."""
        return {**super().state_dict(), **({"start": self._start} if self._start else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the same initial weights."""
        super().load_state_dict(state_dict)
        self._start = dict(state_dict.get("start", {}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the parameters."""
        super().on_exception(trainer, pl_module, exception)
        self._held = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the parameters."""
        super().teardown(trainer, pl_module, stage)
        self._held = []
