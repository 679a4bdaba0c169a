"""Stay near the weights with which training began: what a bound pays for most is the distance from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_sloppy.callbacks.base import SloppyCallback
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.real_numbers import shaped_like
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import fit_context

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

GammaSchedule = Literal["constant", "linear"]


class DistanceToInit(SloppyCallback):
    """Train on ``loss + gamma ||w - w0||^2`` with w0 the weights before the first step.

    Of the KL divergence that a PAC-Bayes bound pays, ``epsilon/2 ||w - w0||^2`` is usually nearly all. This keeps it
    small, as weight decay keeps ``||w||^2`` small. The gradient ``2 gamma (w - w0)`` is added to that of the loss
    behind the backward and before gradients are clipped, once for each optimiser step: the loss that is logged stays
    that of the data, and optimisers that look at its value (a line search) do not see the term. Unlike everything else
    here it changes the training, which is what it is for; with gamma = 0 it changes nothing.

    Args:
        gamma: Strength, at least 0. The loss is a mean over samples, so a useful strength does not grow with their
            number.
        schedule: "constant", or "linear": from 0 at the start to gamma at the planned end of the training.
        parameters: Shell-style patterns of the names of the parameters that are held; null: all that are trained when
            the fit starts (layers that thaw later are not held). Several callbacks may hold different ones.

    Raises:
        ConfigurationError: For a negative gamma, an unknown schedule, a pattern without a match, manual optimisation,
            or "linear" without a planned end.
        UnsupportedError: Under 16-mixed precision with a fused optimiser, which keeps gradients scaled, and for sparse
            gradients.

    Example:
        >>> DistanceToInit(gamma=1e-3).gamma
        0.001
    """

    def __init__(self, gamma: float, *, schedule: GammaSchedule = "constant", parameters: Patterns = None) -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ConfigurationError(f"gamma={gamma} was asked for; pass a finite strength of at least 0.")
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
        """Of the state in a checkpoint: callbacks for different parameters have a state each."""
        patterns = self.settings()["parameters"]
        return type(self).__name__ if patterns is None else f"{type(self).__name__}{{'parameters': {patterns!r}}}"

    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        patterns = self.parameters if isinstance(self.parameters, str | None) else list(self.parameters)
        return {"gamma": self.gamma, "schedule": self.schedule, "parameters": patterns}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can never work."""
        if stage != "fit":
            return
        self._start, self._held = {}, []
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"DistanceToInit adds a term to the loss of automatic optimisation, but {type(pl_module).__name__} "
                "optimises by hand; add gamma * ||w - w0||^2 to its loss there."
            )
        if not trainer_internals.strategy_is_supported(trainer):
            raise UnsupportedError(
                f"DistanceToInit needs all parameters on every device, but the strategy is "
                f"{type(trainer.strategy).__name__}; use strategy='auto' or 'ddp'."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the training began, or take it from the checkpoint."""
        if self.schedule == "linear" and not trainer_internals.has_planned_end(trainer):
            raise ConfigurationError(
                "schedule='linear' grows until the planned end, but the Trainer has none; set max_epochs or max_steps, "
                "or use schedule='constant'."
            )
        context = fit_context(trainer, pl_module)
        begun = context.layout.table(context.origin.weights)
        wanted = ParameterLayout.of(pl_module, self.parameters)
        shapes = dict(zip(wanted.names, wanted.shapes, strict=True))
        known = {name: start for name, start in self._start.items() if shapes.get(name) == start.shape}
        unknown = [name for name in wanted.names if name not in known]
        if trainer.global_step > 0 and unknown:
            rank_zero_warn(
                f"DistanceToInit does not know where the training of {', '.join(unknown[:3])}"
                f"{' and others' if len(unknown) > 3 else ''} began (no checkpoint of its own, or other layers were "
                "trained then), so their distances count from the weights with which this fit begins."
            )
        self._start = {name: known.get(name, begun[name]) for name in wanted.names}
        if self.parameters is not None:  # a checkpoint would hold the whole tensor for the view of a part
            self._start = {name: start.clone() for name, start in self._start.items()}
        table = dict(pl_module.named_parameters())
        self._held = [
            (table[name], shaped_like(start, table[name]).to(table[name].device, table[name].dtype, copy=True))
            for name, start in self._start.items()
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of the term; Lightning calls this once for each step, before it clips."""
        strength = self.strength(trainer)
        if strength == 0:
            return
        if trainer_internals.gradients_are_scaled(trainer, optimizer):
            raise UnsupportedError(
                "DistanceToInit adds to gradients, which a fused optimiser keeps scaled under 16-mixed precision; pass "
                "fused=False to the optimiser, or use precision='bf16-mixed'."
            )
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad():
            for parameter, start in self._held:
                if parameter not in stepped or parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise UnsupportedError(
                        "DistanceToInit moves every weight at each step, which a sparse gradient has no place for; "
                        "pass sparse=False to the embedding, or leave it out by parameters=."
                    )
                parameter.grad.add_(parameter - start, alpha=2 * strength)

    def strength(self, trainer: Trainer) -> float:
        """Gamma at this moment."""
        if self.schedule == "constant":
            return self.gamma
        return self.gamma * (trainer_internals.fraction_done(trainer) or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Also where the training began, by name; without patterns, views of the tensor that measurements keep too."""
        return {**super().state_dict(), **({"start": self._start} if self._start else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the same beginning."""
        super().load_state_dict(state_dict)
        self._start = dict(state_dict.get("start", {}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the parameters go."""
        super().on_exception(trainer, pl_module, exception)
        self._held = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the parameters go."""
        super().teardown(trainer, pl_module, stage)
        self._held = []
