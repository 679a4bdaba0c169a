"""The Fisher information through the Gram matrix of per-sample gradients: N x N instead of p x p."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad as func_grad
from torch.func import vmap
from torch.utils import _pytree as pytree

from lightning_sloppy.curvature.cotangents import Kind, cotangents
from lightning_sloppy.curvature.layer_capture import candidates, capture_batch
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, private, rows_of, sample_count
from lightning_sloppy.evaluation.objective import Objective

ROW_LIMIT = 8_192
"""Rows of the largest Gram matrix: its float64 eigenvalues take minutes on a CPU beyond."""

GRADIENT_BYTES = 512 * 1024**2
"""Memory for formed per-sample gradients; parameters are taken in groups that fit."""

VMAP_CHUNK = 128
"""Samples differentiated at a time; bounds the activations that vmap holds."""


@dataclass(frozen=True)
class Gram:
    """Gram matrix of the per-sample gradients.

    Attributes:
        matrix: ``(1/N) G G^T``, (R N, R N), float64; row ``r N + i`` is cotangent r of sample i.
        num_samples: N.
        method: Which path served how many parameters.
    """

    matrix: Tensor
    num_samples: int
    method: str


def fisher_gram(
    objective: Objective, layout: ParameterLayout, batches: list[Batch], kind: Kind, rng: torch.Generator
) -> Gram:
    """Build the Gram matrix whose non-zero eigenvalues are those of the Fisher information.

    Linear layers called once on (n, d) inputs need no per-sample gradient; every other parameter is differentiated
    by ``vmap``, and by a loop over samples where ``vmap`` refuses.

    Raises:
        UnsupportedError: When outputs and loss are not known apart.
        ConfigurationError: When the matrix would have more than 8,192 rows, the outputs are no tensor, or BatchNorm
            uses the statistics of the batch.
    """
    _check_samples_apart(objective.module)
    if objective.loss_fn is None:
        raise UnsupportedError(
            "The Fisher information needs outputs and loss apart, but the loss is only known as a whole training "
            "step; pass objective=, the mean-reduced loss of (outputs, targets), as a dotted path in YAML."
        )
    count = sum(sample_count(batch) for batch in batches)
    pulled = _pulled_cotangents(objective, layout, batches, kind, rng)
    rows = count * pulled[0].shape[0]
    leaves = layout.leaves(objective.module, objective.dtype)
    layers = candidates(objective.module, layout)
    for index, batch in enumerate(batches):
        if layers:
            capture_batch(
                layers,
                leaves,
                lambda batch=batch: objective.outputs(leaves, private(batch)[0]),  # type: ignore[misc]
                lambda _, index=index: pulled[index],  # type: ignore[misc]
            )
    wide = torch.float32 if objective.device.type == "mps" else torch.float64
    total = torch.zeros(rows, rows, dtype=wide, device=objective.device)
    for capture in layers.values():
        total += capture.gram()
    captured = {name for capture in layers.values() for name in capture.names()}
    rest = [name for name in layout.names if name not in captured]
    methods = {"linear layers": len(captured)}
    for group in _groups(rest, layout, rows):
        gradients, method = _per_sample(objective, leaves, group, batches, pulled)
        total += (gradients @ gradients.T).to(wide)
        methods[method] = methods.get(method, 0) + len(group)
    used = ", ".join(f"{number} by {method}" for method, number in methods.items() if number)
    return Gram(total / count, count, f"gram ({used})")


def _check_samples_apart(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and (child.training or child.running_mean is None):
            raise ConfigurationError(
                f"Layer {name!r} normalises by the statistics of the batch, so that no sample has a gradient of its "
                "own; use mode='eval' and track_running_stats=True, or another normalisation."
            )


def _pulled_cotangents(
    objective: Objective, layout: ParameterLayout, batches: list[Batch], kind: Kind, rng: torch.Generator
) -> list[Tensor]:
    """Cotangents of every batch, (R, n, ...)."""
    assert objective.loss_fn is not None
    table = {name: leaf.detach() for name, leaf in layout.leaves(objective.module, objective.dtype).items()}
    count = sum(sample_count(batch) for batch in batches)
    pulled = []
    for batch in batches:
        inputs, targets = private(batch)
        with torch.no_grad():
            outputs = objective.outputs(table, inputs)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != (sample_count(batch),):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ConfigurationError(
                f"The Fisher information needs one output tensor with a row for each of the {sample_count(batch)} "
                f"samples, but forward gave {found}; wrap the module so that it does."
            )
        rows = count * (outputs.shape[1:].numel() if kind == "exact" else 1)
        if rows > ROW_LIMIT:
            raise ConfigurationError(
                f"The Gram matrix would have {rows:,} rows, above {ROW_LIMIT:,}; "
                f"use fewer samples (now {count:,}) or kind='empirical'."
            )
        pulled.append(cotangents(kind, objective.loss_fn, outputs, targets, rng))
    # Sequences may be shorter in one batch than in another: cotangents of zero add nothing.
    most = max(len(batch) for batch in pulled)
    return [torch.cat([batch, batch.new_zeros(most - len(batch), *batch.shape[1:])]) for batch in pulled]


def _groups(names: list[str], layout: ParameterLayout, rows: int) -> list[list[str]]:
    """Parameters in groups whose per-sample gradients fit into memory; a single larger one stays alone."""
    sizes = dict(zip(layout.names, (shape.numel() for shape in layout.shapes), strict=True))
    groups: list[list[str]] = []
    used = GRADIENT_BYTES
    for name in names:
        needed = sizes[name] * rows * 4
        if not groups or used + needed > GRADIENT_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += needed
    return groups


def _per_sample(
    objective: Objective, leaves: dict[str, Tensor], names: list[str], batches: list[Batch], pulled: list[Tensor]
) -> tuple[Tensor, str]:
    """Per-sample gradients of some parameters, (R N, p_group), rows in the order of the Gram matrix."""
    wanted = {name: leaves[name].detach() for name in names}
    fixed = {name: leaf.detach() for name, leaf in leaves.items() if name not in wanted}

    def scalar(table: dict[str, Tensor], inputs: Any, direction: Tensor) -> Tensor:
        single = pytree.tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, inputs)
        outputs: Tensor = objective.outputs({**fixed, **table}, single)
        # A forward that squeezes its outputs drops the dimension of the single sample.
        return (outputs.reshape(direction.shape) * direction).sum()

    with warnings.catch_warnings():
        # Where vmap has no batching rule torch falls back to a loop and asks the reader to file an issue.
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        try:
            transformed = vmap(func_grad(scalar), in_dims=(None, 0, 0), chunk_size=VMAP_CHUNK)
            blocks = [
                [_rows(transformed(wanted, private(batch)[0], direction), names) for direction in directions]
                for batch, directions in zip(batches, pulled, strict=True)
            ]
            method = "vmap"
        except Exception:  # vmap refuses in many ways; the loop meets again what is the module's own error
            blocks = [
                [_looped(objective, leaves, names, batch, direction) for direction in directions]
                for batch, directions in zip(batches, pulled, strict=True)
            ]
            method = "loop"
    copies = len(blocks[0])
    return torch.cat([torch.cat([block[copy] for block in blocks]) for copy in range(copies)]), method


def _rows(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].flatten(1) for name in names], dim=1)


def _looped(
    objective: Objective, leaves: dict[str, Tensor], names: list[str], batch: Batch, direction: Tensor
) -> Tensor:
    """One backward for each sample: always right, slow.

    In train mode samples are not taken out of their batch: the random stream would then be another one.
    """
    inputs = private(batch)[0]
    sources = [leaves[name] for name in names]
    together = any(child.training for child in objective.module.modules())
    whole = objective.outputs(leaves, inputs) if together else None
    rows = []
    for index in range(len(direction)):
        if whole is None:
            outputs = objective.outputs(leaves, rows_of(inputs, slice(index, index + 1)))
            one = direction[index]
        else:
            outputs = whole
            one = torch.zeros_like(direction)
            one[index] = direction[index]
        parts = grad([outputs.reshape(one.shape)], sources, [one], retain_graph=together)
        filled = [torch.zeros_like(s) if g is None else g for g, s in zip(parts, sources, strict=True)]
        rows.append(torch.cat([part.reshape(-1) for part in filled]))
    return torch.stack(rows)
