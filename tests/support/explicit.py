"""Gram matrices of any outputs and cotangents, and the explicit gradients to compare them with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gram.matrix import Gram, gram_of
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

COPIES = 2


def cotangents(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        widths = [module(batch.clone())[0].numel() for batch in inputs]
    return [
        torch.randn(COPIES, len(batch), width, dtype=torch.float64, generator=rng)
        for batch, width in zip(inputs, widths, strict=True)
    ]


def gram(module: nn.Module, inputs: list[Tensor], pulled: list[Tensor], **options: Any) -> Gram:
    objective = Objective(module, F.mse_loss)
    batches = [(batch, batch) for batch in inputs]
    with double_backward(module):
        return gram_of(objective, ParameterLayout.of(module), pulled, batches, **options)


def assert_same(found: Tensor, rows: dict[str, Tensor]) -> None:
    whole = torch.cat(list(rows.values()), dim=1)
    torch.testing.assert_close(found, whole @ whole.T, atol=1e-10, rtol=1e-10)


def explicit_rows(module: nn.Module, inputs: list[Tensor], pulled: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of each parameter, (R N, p), one backward for each cotangent and sample alone."""
    table = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in table}
    for copy in range(len(pulled[0])):
        for batch, directions in zip(inputs, pulled, strict=True):
            for index in range(len(batch)):
                outputs = module(batch[index : index + 1].clone()).reshape(-1)
                parts = torch.autograd.grad(
                    outputs, list(table.values()), directions[copy, index], allow_unused=True, materialize_grads=True
                )
                for name, part in zip(table, parts, strict=True):
                    rows[name].append(part.reshape(-1))
    return {name: torch.stack(parts) for name, parts in rows.items()}
