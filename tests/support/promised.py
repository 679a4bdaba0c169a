"""What a spectrum must be, by plain autograd: samples one by one, in float64, with nothing of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from support.dense import dense_hessian_of, differenced_hessian_of, flat_gradient, trained


def nothing(module: nn.Module) -> Tensor:
    del module
    return torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class Promise:
    """Samples and their losses, beside the module, batches and loss as a user gives them.

    Attributes:
        module: In eval mode, in float64.
        batches: Of unequal sizes.
        loss_fn: Of outputs and targets, as a user writes it.
        samples: What ``outputs`` and ``loss`` take, one for each sample.
        outputs: ``(module, sample)`` to the outputs of one sample that its loss uses, flat.
        loss: ``(module, outputs, sample)`` to the loss of one sample.
        weights: How much each sample weighs in the mean; all the same unless told.
        beside: What of the loss is of no sample: a penalty.
        options: Keywords for the functions.
        refused: For each measurement that cannot be made, words of its sentence.
        reserved: For each measurement that says more beside its number, the name of the detail.
        reference: The same module as the right values are made of, where it is another one.
        differenced: Whether torch's own second derivative is wrong, so that differences of gradients serve.
        tolerance: Relative to the largest eigenvalue.
    """

    module: nn.Module
    batches: list[Any]
    loss_fn: Callable[[Any, Any], Tensor]
    samples: Sequence[Any]
    outputs: Callable[[nn.Module, Any], Tensor]
    loss: Callable[[nn.Module, Tensor, Any], Tensor]
    weights: Sequence[float] | None = None
    beside: Callable[[nn.Module], Tensor] = nothing
    options: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    reserved: dict[str, str] = field(default_factory=dict)
    reference: nn.Module | None = None
    differenced: bool = False
    tolerance: float = 1e-6

    @property
    def right(self) -> nn.Module:
        return self.module if self.reference is None else self.reference

    @property
    def fractions(self) -> list[float]:
        weights = [1.0] * len(self.samples) if self.weights is None else list(self.weights)
        return [weight / sum(weights) for weight in weights]

    def whole(self) -> Tensor:
        """The mean loss of the probe."""
        parts = [
            fraction * self.loss(self.right, self.outputs(self.right, sample), sample)
            for fraction, sample in zip(self.fractions, self.samples, strict=True)
            if fraction
        ]
        return torch.stack(parts).sum() + self.beside(self.right)

    def hessian(self) -> Tensor:
        return (differenced_hessian_of if self.differenced else dense_hessian_of)(self.right, self.whole)

    def jacobians(self) -> list[Tensor]:
        """Of each sample, (D, p)."""
        parameters = trained(self.right)
        rows = [self.outputs(self.right, sample) for sample in self.samples]
        return [torch.stack([flat_gradient(entry, parameters) for entry in row]).detach() for row in rows]

    def jacobian(self) -> Tensor:
        """Each sample normalised."""
        found = [each / each.norm() if each.norm() > 0 else each for each in self.jacobians()]
        return sum(each.T @ each for each in found) / len(found)  # type: ignore[return-value]

    def exact(self) -> Tensor:
        """The Gauss-Newton matrix: exact Fisher information of losses that are likelihoods."""
        total = torch.zeros(())
        for fraction, sample, rows in zip(self.fractions, self.samples, self.jacobians(), strict=True):
            if not fraction:
                continue
            own = self.outputs(self.right, sample).detach()
            curvature = torch.autograd.functional.hessian(lambda row, s=sample: self.loss(self.right, row, s), own)
            values, vectors = torch.linalg.eigh((curvature + curvature.T) / 2)
            total = total + fraction * rows.T @ (vectors * values.clamp_min(0)) @ vectors.T @ rows
        return total

    def empirical(self) -> Tensor:
        total = torch.zeros(())
        for fraction, sample in zip(self.fractions, self.samples, strict=True):
            if fraction:
                loss = self.loss(self.right, self.outputs(self.right, sample), sample)
                gradient = flat_gradient(loss, trained(self.right)).detach()
                total = total + fraction * torch.outer(gradient, gradient)
        return total


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)
