"""Diagonals of the curvature: of the empirical Fisher matrix, and from the second moments of Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad as func_grad
from torch.func import vmap

from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.memory import free_bytes
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, picked, rows_in, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.real_numbers import real_view

LARGEST_CHUNK = 128
"""Largest number of samples that are differentiated at a time, if the memory is enough."""


def fisher_diagonal(objective: Objective, layout: ParameterLayout, batches: Sequence[Batch]) -> Tensor:
    """Diagonal of the empirical Fisher matrix: the mean square of every entry of the per-sample gradients.

    It uses ``vmap`` in chunks that fit into a quarter of the free memory, or a loop over the samples if ``vmap`` fails.

    Args:
        objective: Module and mean-reduced loss.
        layout: Parameters.
        batches: Prepared batches.

    Returns:
        Shape (p,), in the data type of the products.
    """
    leaves = {name: leaf.detach() for name, leaf in layout.leaves(objective.module, objective.dtype).items()}
    count = sum(map(sample_count, batches))
    total = torch.zeros(layout.dim, dtype=objective.dtype, device=objective.device)
    room = free_bytes(objective.device) // 4
    chunk = max(1, min(LARGEST_CHUNK, int(room // max(layout.dim * objective.dtype.itemsize, 1))))
    with double_backward(objective.module):
        for batch in batches:
            for part in torch.split(torch.arange(sample_count(batch)), chunk):
                total += _squares(objective, layout, leaves, picked(batch, part), len(part))
    return total / count


def _squares(
    objective: Objective, layout: ParameterLayout, leaves: dict[str, Tensor], batch: Batch, count: int
) -> Tensor:
    """The sum of squares over the samples of a batch."""
    inputs, targets = batch
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        try:
            axes = (*rows_in(batch).inputs, *rows_in(batch).targets)
            first, second = (0 if axis is None else axis for axis in axes)

            def loss(table: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
                return objective.loss(table, (one.unsqueeze(first), target.unsqueeze(second)))

            gradients = vmap(func_grad(loss), in_dims=(None, *axes))(leaves, inputs, targets)
            return layout.flatten([gradients[name].square().sum(0) for name in layout.names])
        except Exception:  # vmap refuses in many ways; the loop meets again what is the module's own error
            pass
    total = torch.zeros(layout.dim, dtype=objective.dtype, device=objective.device)
    for index in range(count):
        table = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
        value = objective.loss(table, picked(batch, torch.tensor([index])))
        total += layout.flatten(grad([value], list(table.values()))).square()
    return total


def adam_second_moment(optimizer: torch.optim.Optimizer, module: nn.Module, batch_size: int) -> Tensor:
    """``B v / (1 - beta_2^t)``: the running mean square of batch gradients, as a diagonal of the curvature per example.

    A batch gradient is a mean over B examples, so near a minimum its square is about the Fisher diagonal divided by B.
    It costs nothing, but it averages over earlier steps by ``beta_2``.

    Args:
        optimizer: Adam, AdamW or another one whose state holds ``exp_avg_sq`` and ``step``.
        module: Its trainable parameters, in their order, are the p weights.
        batch_size: B.

    Returns:
        Shape (p,); zeros for parameters that were never stepped.

    Raises:
        ConfigurationError: If the optimiser has no second moments.
    """
    betas: dict[int, float] = {}
    for group in optimizer.param_groups:
        betas |= {id(p): float(group.get("betas", (0.0, 0.0))[1]) for p in group["params"]}
    parts, known = [], 0
    for parameter in (p for p in module.parameters() if p.requires_grad):
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        moment = state.get("exp_avg_sq")
        if moment is None:
            parts.append(torch.zeros_like(real_view(parameter.detach())).reshape(-1))
            continue
        known += 1
        correction = 1.0 - betas[id(parameter)] ** float(state["step"])
        # Of a complex parameter Adam gathers the squares of both parts, each by itself.
        parts.append(batch_size * real_view(moment.detach()).reshape(-1) / max(correction, 1e-12))
    if not known:
        raise ConfigurationError(
            f"{type(optimizer).__name__} holds no second moments of these parameters; use Adam or AdamW and take a "
            "step, or measure the Fisher diagonal."
        )
    return torch.cat(parts)
