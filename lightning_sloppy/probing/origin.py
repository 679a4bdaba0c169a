"""The start of a run: the initial weights, the frozen state, and whether the weights had been trained before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.probing.digests import frozen_digests

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_fitted: WeakSet[Any] = WeakSet()
"""Modules known to have been trained by a fit in this process, so that their weights depend on data."""


class Origin:
    """The network at the start of the fit, or of the run that this fit resumes.

    Args:
        trainer: The running Trainer. No reference is kept.
        module: The unwrapped module.
        layout: Layout of its trainable parameters; empty if the strategy shards them.

    Attributes:
        layout: Trainable parameters when the fit started.
        begins: Whether the fit does not resume another one.
        fresh: Whether no optimiser step on these weights is known.
        weights: The initial weights, one vector (p,) on the CPU.
        digests: Digests of buffers and frozen parameters at the start, by name.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, layout: ParameterLayout) -> None:
        self.layout = layout
        self.begins = trainer.global_step == 0 and not trainer.ckpt_path
        self.fresh = self.begins and module not in _fitted
        _fitted.add(module)
        self.weights = layout.vector(module).cpu() if layout.dim else torch.zeros(0)
        self.digests = frozen_digests(module) if layout.dim else {}

    def prior_precision(self) -> float | None:
        """``epsilon = p / ||w_0||^2``, the inverse of the initial weights' mean square; None if all are zero."""
        size = float(self.weights.double().square().sum())
        return self.layout.dim / size if size > 0 else None

    def resumed(self, earlier: Tensor | None) -> Tensor:
        """Set and return the initial weights: those of the resumed run if they are known and fit this model."""
        if earlier is not None and not self.fresh and len(earlier) == len(self.weights):
            self.weights = earlier
        return self.weights

    def weights_of(self, layout: ParameterLayout) -> Tensor | None:
        """The initial weights of these parameters, flat; None if some were not trainable at the start."""
        table = self.layout.table(self.weights)
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        if any(name not in table or table[name].shape != shape for name, shape in shapes.items()):
            return None
        return torch.cat([table[name].flatten() for name in layout.names])


def was_fitted(module: LightningModule) -> bool:
    """Whether it is known that a fit in this process has trained these weights."""
    return module in _fitted or any(p.grad is not None for p in module.parameters())


def notice_training(module: LightningModule) -> None:
    """Record that the weights come from a training, which may have run in another process."""
    _fitted.add(module)


def notice_earlier_fits(module: LightningModule) -> None:
    """For ``setup``: recognise an earlier fit or tuner run by its gradients, before Lightning clears them."""
    if any(p.grad is not None for p in module.parameters()):
        _fitted.add(module)
