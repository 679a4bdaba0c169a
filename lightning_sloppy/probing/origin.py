"""Where a run began: the weights before its first step, all else in the network, and whether they had seen data."""

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
"""Modules that some fit in this process has trained, as far as can be seen: their weights depend on data."""


class Origin:
    """The network when the fit started, or when the run did that this fit resumes.

    Args:
        trainer: The running Trainer; not kept.
        module: The unwrapped module.
        layout: Of its trainable parameters; without any where the strategy shards them.

    Attributes:
        layout: Trainable parameters when the fit started.
        begins: Whether the fit resumes nothing.
        fresh: Whether the weights have seen no optimiser step that we know of.
        weights: The weights at the start, one vector (p,) on the CPU.
        digests: Digests of buffers and frozen parameters at that moment, by name.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, layout: ParameterLayout) -> None:
        self.layout = layout
        self.begins = trainer.global_step == 0 and not trainer.ckpt_path
        self.fresh = self.begins and module not in _fitted
        _fitted.add(module)
        self.weights = layout.vector(module).cpu() if layout.dim else torch.zeros(0)
        self.digests = frozen_digests(module) if layout.dim else {}

    def prior_precision(self) -> float | None:
        """``epsilon = p / ||w_0||^2``, a prior as wide as the weights at the start; None when they are all zero."""
        size = float(self.weights.double().square().sum())
        return self.layout.dim / size if size > 0 else None

    def resumed(self, earlier: Tensor | None) -> Tensor:
        """The weights at the start: those of the run that is resumed, when they are known and of this model."""
        if earlier is not None and not self.fresh and len(earlier) == len(self.weights):
            self.weights = earlier
        return self.weights

    def weights_of(self, layout: ParameterLayout) -> Tensor | None:
        """The weights at the start of these parameters, flat; None when some were not trained then."""
        table = self.layout.table(self.weights)
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        if any(name not in table or table[name].shape != shape for name, shape in shapes.items()):
            return None
        return torch.cat([table[name].flatten() for name in layout.names])


def was_fitted(module: LightningModule) -> bool:
    """Whether a fit in this process has trained these weights, as far as can be seen."""
    return module in _fitted or any(p.grad is not None for p in module.parameters())


def notice_training(module: LightningModule) -> None:
    """The weights come from a training, whatever this process has seen of it."""
    _fitted.add(module)


def notice_earlier_fits(module: LightningModule) -> None:
    """For ``setup``: a fit or a tuner that nobody watched has left gradients, which Lightning clears next."""
    if any(p.grad is not None for p in module.parameters()):
        _fitted.add(module)
