"""Dense matrices of any loss in a module's own parameters, by plain autograd; complex parameters as pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def trained(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def flat_gradient(value: Tensor, parameters: list[Tensor], *, create_graph: bool = False) -> Tensor:
    """Of real and imaginary parts one after the other, as torch gives them: d/d Re + i d/d Im."""
    parts = torch.autograd.grad(
        value,
        parameters,
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([numbers_of(g) for g in parts])


def numbers_of(tensor: Tensor) -> Tensor:
    """All its numbers, real and imaginary parts in turn."""
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    if not tensor.is_complex():
        return tensor.reshape(-1)
    return torch.stack([tensor.real, tensor.imag], dim=-1).reshape(-1)


def dense_hessian_of(module: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    parameters = trained(module)
    gradient = flat_gradient(loss(), parameters, create_graph=True)
    rows = torch.stack([flat_gradient(g, parameters) for g in gradient]).detach()
    return (rows + rows.T) / 2


def differenced_hessian_of(module: nn.Module, loss: Callable[[], Tensor], step: float = 1e-5) -> Tensor:
    """From first derivatives alone, of real parameters in float64."""
    parameters = trained(module)
    rows = []
    for parameter in parameters:
        for entry in range(parameter.numel()):
            kept = parameter.data.clone()
            pair = []
            for sign in (1, -1):
                parameter.data.view(-1)[entry] = kept.view(-1)[entry] + sign * step
                pair.append(flat_gradient(loss(), parameters))
                parameter.data.copy_(kept)
            rows.append((pair[0] - pair[1]) / (2 * step))
    matrix = torch.stack(rows)
    return (matrix + matrix.T) / 2


def dense_fisher_of(module: nn.Module, losses: list[Callable[[], Tensor]]) -> Tensor:
    """The mean outer product of the gradients of each sample's own loss."""
    rows = torch.stack([flat_gradient(loss(), trained(module)) for loss in losses]).detach()
    return rows.T @ rows / len(rows)
