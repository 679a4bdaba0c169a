"""The Fisher matrix by the Gram matrix of per-sample gradients: N x N instead of p x p."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.gram.check import Recording
from lightning_sloppy.curvature.gram.layers import add_layers
from lightning_sloppy.curvature.gram.per_sample import add_formed
from lightning_sloppy.curvature.gram.sums import GramSums
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective

GRADIENT_BYTES = 512 * 1024**2
"""Memory for formed per-sample gradients. Parameters are processed in groups that fit, and larger ones in parts."""

_log = logging.getLogger("lightning_sloppy")


@dataclass(frozen=True)
class Gram:
    """Gram matrix of the per-sample gradients.

    Attributes:
        matrix: ``C^T J J^T C``, (R N, R N), float64, not divided by anything; row ``r N + i`` is cotangent r of
            sample i.
        paths: For each parameter the path that served it: "linear", "conv", "embedding" or "norm" for the layers that
            use it (joined by "+" when several do), "vmap", "loop", or "unused" when the outputs do not depend on it.
        layers: The same matrix for the parameters of each layer alone; empty unless asked for.
    """

    matrix: Tensor
    paths: Mapping[str, str]
    layers: Mapping[str, Tensor]


def gram_of(
    objective: Objective,
    layout: ParameterLayout,
    pulled: list[Tensor],
    batches: list[Batch],
    *,
    by_layer: bool = False,
    recorded: tuple[Mapping[str, Tensor], Recording] | None = None,
) -> Gram:
    """Build the Gram matrix whose non-zero eigenvalues, over the weight of the probe, are those of the Fisher matrix.

    Linear layers, convolutions, embeddings and normalisations are served by what goes in and what comes back, every
    other parameter by ``vmap``, and by a loop over samples where ``vmap`` refuses.

    Args:
        objective: Module and loss.
        layout: Chosen parameters.
        pulled: Cotangents of each batch, (R, n, D).
        batches: Prepared batches.
        by_layer: Keep the part of each layer: one more matrix for each.
        recorded: Leaves, and the first batch run with them, when that was needed before.

    Raises:
        ConfigurationError: When BatchNorm uses the statistics of the batch.
    """
    check_samples_apart(objective.module)
    leaves = layout.leaves(objective.module, objective.dtype) if recorded is None else recorded[0]
    recording = None if recorded is None else recorded[1]
    owners = {layout.names[index]: layer for layer, indices in layout.layers().items() for index in indices}
    keys = owners if by_layer else dict.fromkeys(layout.names, "")
    sums = GramSums(sum(sample_count(batch) for batch in batches), len(pulled[0]), keys, objective.device)
    if not layout.names:
        return Gram(sums.zeros(), {}, {})

    def fill() -> dict[str, str]:
        paths = add_layers(sums, objective, leaves, pulled, batches, GRADIENT_BYTES, recording)
        rest = [name for name in layout.names if name not in paths]
        return paths | add_formed(sums, objective, leaves, rest, pulled, batches, GRADIENT_BYTES)

    found = objective.swapped(leaves, fill)
    paths = {name: found.get(name, "empty") for name in layout.names}
    _log.info("Gram matrix of per-sample gradients: %s", _in_words(paths, owners))
    matrices = sums.matrices()
    return Gram(reduce(torch.add, matrices.values()), paths, matrices if by_layer else {})


def pull_back_vectors(
    objective: Objective, layout: ParameterLayout, pulled: list[Tensor], batches: list[Batch], weights: Tensor
) -> Tensor:
    """``J^T C weights``: a weighted sum of the per-sample gradients for each column, (p, k).

    One backward for each column and batch; no per-sample gradient is formed.

    Args:
        objective: Module and loss.
        layout: Chosen parameters.
        pulled: Cotangents of each batch, (R, n, D).
        batches: Prepared batches.
        weights: (R N, k), rows in the order of the Gram matrix.
    """
    leaves = layout.leaves(objective.module, objective.dtype)
    weights = weights.to(objective.device, objective.dtype).reshape(len(pulled[0]), -1, weights.shape[1])
    columns = torch.zeros(weights.shape[2], layout.dim, dtype=objective.dtype, device=objective.device)

    def fill() -> None:
        first = 0
        for batch, directions in zip(batches, pulled, strict=True):
            count = sample_count(batch)
            rows = objective.rows(objective.outputs(leaves, private(batch)[0]), count)
            for index, column in enumerate(columns):
                mixed = torch.einsum("rnd,rn->nd", directions, weights[:, first : first + count, index])
                parts = grad([rows], list(leaves.values()), [mixed], retain_graph=True)
                if any(part is not None for part in parts):
                    column += layout.flatten(parts)
            first += count

    objective.swapped(leaves, fill)
    return columns.T


def _in_words(paths: Mapping[str, str], owners: Mapping[str, str]) -> str:
    """Which layers took which path, such as ``linear for 0, 2; vmap for norm``."""
    layers: dict[str, dict[str, None]] = {}
    for name, path in paths.items():
        layers.setdefault(path, {})[owners[name] or name] = None
    return "; ".join(f"{path} for {', '.join(served)}" for path, served in layers.items())


def check_samples_apart(module: nn.Module) -> None:
    """Raise an error if the samples of a batch influence one another through its statistics.

    Raises:
        ConfigurationError: With the name of the layer.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and (child.training or child.running_mean is None):
            raise ConfigurationError(
                f"Layer {name!r} normalises by the statistics of the batch, so there are no per-sample gradients; use "
                "mode='eval' and track_running_stats=True, or another normalisation."
            )
