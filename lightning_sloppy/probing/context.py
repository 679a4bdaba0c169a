"""What the callbacks of one fit share: its samples, its loss, where it began, and its clock."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch.nn.parameter import UninitializedParameter

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import Classifier
from lightning_sloppy.evaluation.ranks import ALONE, all_ranks, together
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.clock import Clock
from lightning_sloppy.probing.fit_losses import FitLosses
from lightning_sloppy.probing.fit_samples import FitSamples
from lightning_sloppy.probing.origin import Origin

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_contexts: WeakKeyDictionary[Any, FitContext] = WeakKeyDictionary()


class FitContext:
    """Holds the parts; each of them answers for itself.

    Args:
        trainer: The running Trainer; not kept.
        module: The unwrapped module.

    Attributes:
        ranks: This process among those that train together.
        layout: Trainable parameters when the fit started.
        modes: Every submodule with its training flag when the fit started.
        origin: The weights before the first step.
        clock: Seconds of training and of measuring.
        samples: The training samples, and the probes of them.
        losses: The loss of the fit, and whether a step has confirmed it.
        classifiers: What the outputs say of a sample, by loss and rule; None where nobody knows.
        clean: The samples of certificates as they are read, by what was given for them.
        decision: The latest step at which measurements were due, and whether they were taken.
        stretched: Whether it was said that measurements come less often than asked for.
        layout_written: Whether the custom-scalars layout was written.

    Raises:
        ConfigurationError: For lazy layers, and without trainable parameters.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.module = module
        self.ranks = ALONE if trainer.world_size == 1 else all_ranks()
        if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
            raise ConfigurationError(
                f"{type(module).__name__} has lazy layers whose shapes are not known yet; run one batch through it "
                "before the fit, or leave the sanity validation on."
            )
        # A sharded strategy leaves no process all parameters; what is measured then needs none of them.
        whole = trainer_internals.strategy_is_supported(trainer)
        self.layout = ParameterLayout.of(module) if whole else ParameterLayout((), ())
        self.modes = [(child, child.training) for child in module.modules()]
        if whole and self.layout.dim == 0:
            raise ConfigurationError(
                f"{type(module).__name__} has no trainable parameters, so there is nothing to measure; "
                "build the layers before the fit and leave requires_grad on."
            )
        self.origin = Origin(trainer, module, self.layout)
        self.clock = Clock()
        self.samples = FitSamples(module, self.ranks)
        self.losses = FitLosses(module, self.ranks, self.modes, self.samples)
        self.classifiers: dict[Any, Classifier | None] = {}
        self.clean: dict[Any, Any] = {}
        self.decision: tuple[int, bool] | None = None
        self.stretched = False
        self.layout_written = False


def fit_context(trainer: Trainer, module: LightningModule) -> FitContext:
    """The context of the running fit, made by the first callback that asks.

    Raises:
        ConfigurationError: When the module has no trainable parameters.
    """
    if trainer not in _contexts:
        made = partial(FitContext, trainer, module)
        _contexts[trainer] = made() if trainer.world_size == 1 else together(made)
    return _contexts[trainer]


def known_context(trainer: Trainer) -> FitContext | None:
    """The context of the running fit, if somebody has asked for it."""
    return _contexts.get(trainer)


def close_context(trainer: Trainer) -> FitContext | None:
    """Forget the context, for it holds the module, which holds the Trainer; returns it if there was one."""
    context = _contexts.pop(trainer, None)
    if context is not None:
        context.losses.training_is_over()  # a step that raised has left the hooks of its check in the module
    return context
