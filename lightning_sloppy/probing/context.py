"""What the callbacks of one fit share: samples, loss, initial weights, and clock."""

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
from lightning_sloppy.runs.run_writer import RunWriter

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_contexts: WeakKeyDictionary[Any, FitContext] = WeakKeyDictionary()


class FitContext:
    """The state that the callbacks of one fit share.

    Args:
        trainer: The running Trainer. No reference is kept.
        module: The unwrapped module.

    Attributes:
        ranks: This process and the others of the fit.
        layout: Trainable parameters when the fit started.
        modes: Every submodule with its training flag when the fit started.
        origin: The weights before the first step.
        clock: Seconds of training and of measuring.
        samples: The training samples and their probes.
        losses: The loss of the fit, and whether a step has confirmed it.
        classifiers: Rules from outputs to labels, by loss and ``predict``; None if the rule is not known.
        clean: The samples of certificates as they are read, by the argument that they came from.
        decision: The latest step at which measurements were due, and whether they were taken.
        stretched: Whether the message was given that measurements are less frequent than scheduled.
        layout_written: Whether the custom-scalars layout was written.
        began_at: Effective batches before this fit.
        run_writer: Appends the measurements to the file of the run, on rank 0.

    Raises:
        ConfigurationError: If the module has lazy layers or no trainable parameters.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.module = module
        self.ranks = ALONE if trainer.world_size == 1 else all_ranks()
        if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
            raise ConfigurationError(
                f"{type(module).__name__} has lazy layers whose shapes are not known yet; run one batch through it "
                "before the fit, or leave the sanity validation on."
            )
        # With a sharded strategy no process has all parameters. What is measured then needs no parameters.
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
        self.began_at = trainer_internals.effective_batches(trainer)
        self.run_writer = RunWriter(begins_at=self.began_at)


def fit_context(trainer: Trainer, module: LightningModule) -> FitContext:
    """Return the context of the running fit. The first call creates it.

    Raises:
        ConfigurationError: If the module has no trainable parameters.
    """
    if trainer not in _contexts:
        made = partial(FitContext, trainer, module)
        _contexts[trainer] = made() if trainer.world_size == 1 else together(made)
    return _contexts[trainer]


def known_context(trainer: Trainer) -> FitContext | None:
    """The context of the running fit, or None if it was not created."""
    return _contexts.get(trainer)


def close_context(trainer: Trainer) -> FitContext | None:
    """Remove the context and return it, or None. It must not be kept: it refers to the module and so to the Trainer."""
    context = _contexts.pop(trainer, None)
    if context is not None:
        context.losses.training_is_over()  # if a step raised, the hooks of its check are still in the module
    return context
