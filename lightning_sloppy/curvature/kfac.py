"""Kronecker factors of the curvature, by curvlinops."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.nests import tensors_of

KNOWN_LOSSES = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
LARGEST_FACTOR = 2_048
"""Rows or columns of a factor: a larger one is slow to decompose, and 32 MiB in float64."""


def need_curvlinops() -> None:
    """Check for the extra.

    Raises:
        MissingExtraError: Without curvlinops.
    """
    if importlib.util.find_spec("curvlinops") is None:
        raise MissingExtraError(
            "Kronecker factors are made by curvlinops, which is not installed: pip install 'lightning-sloppy[kfac]'."
        )


def kronecker_factors(
    module: nn.Module, loss_fn: nn.Module, batches: Sequence[Batch]
) -> tuple[list[tuple[Tensor, Tensor] | None], list[int]]:
    """B and A of every linear layer and 2-d convolution: Gauss-Newton is about ``B x A`` (Martens and Grosse 2015).

    With the exact curvature of the loss in the outputs, so without sampling; one backward for each class.

    Args:
        module: In eval mode.
        loss_fn: ``CrossEntropyLoss``, ``MSELoss`` or ``BCEWithLogitsLoss`` of torch, mean-reduced.
        batches: Inputs, a tensor or a dict of them, and targets, a tensor.

    Returns:
        For each trainable parameter tensor, in order, its factors or None (also for layers of more than 2,048 inputs,
        patches included, or outputs, for grouped convolutions, and for layers that a forward calls more or less than
        once), and its number of entries: what
        :func:`lightning_sloppy.bounds.kronecker_posterior` takes.

    Raises:
        MissingExtraError: Without curvlinops.
        ConfigurationError: For another loss.
    """
    need_curvlinops()
    if not isinstance(loss_fn, KNOWN_LOSSES):
        raise ConfigurationError(
            f"Kronecker factors are known for {', '.join(kind.__name__ for kind in KNOWN_LOSSES)} of torch, found "
            f"{type(loss_fn).__name__}; pass one of them."
        )
    layout = ParameterLayout.of(module)
    table = dict(module.named_parameters())
    sizes = [shape.numel() for shape in layout.shapes]
    layers = _turnable_layers(module, loss_fn, batches[0])
    holders = {f"{name}.{kind}".lstrip("."): kind for name in layers for kind in ("weight", "bias")}
    wanted = [name for name in layout.names if name in holders]
    if not wanted:
        return [None] * len(sizes), sizes
    with warnings.catch_warnings():
        # What it still calls in newer releases of torch is between the two.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        from curvlinops import KFACLinearOperator

        operator = KFACLinearOperator(
            module,
            loss_fn,
            [table[name] for name in wanted],
            list(batches),
            fisher_type="type-2",
            check_deterministic=False,
            batch_size_fn=lambda inputs: next(len(t) for t in tensors_of(inputs) if t.ndim),
        )
        operator.compute_kronecker_factors()
        state = operator.state_dict()
    factors: list[tuple[Tensor, Tensor] | None] = []
    for name in layout.names:
        if name not in holders:
            factors.append(None)
            continue
        layer = name.rpartition(".")[0]
        outputs = state["gradient_covariances"][layer]
        inputs = state["input_covariances"].get(layer)
        one = torch.ones(1, 1, dtype=outputs.dtype, device=outputs.device)
        factors.append((outputs, inputs if holders[name] == "weight" and inputs is not None else one))
    return factors, sizes


def _turnable_layers(module: nn.Module, loss_fn: nn.Module, batch: Batch) -> list[str]:
    """Names of the layers whose factors are known: those that one forward calls once, with one argument."""
    layers = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, (nn.Linear, nn.Conv2d)) and _fits(child) and child.weight.requires_grad
    }
    calls: dict[str, list[bool]] = {name: [] for name in layers}

    def watched(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: calls[name].append(len(args) == 1 and not kwargs)

    hooks = [child.register_forward_pre_hook(watched(name), with_kwargs=True) for name, child in layers.items()]
    try:
        with torch.enable_grad():
            loss = loss_fn(module(batch[0]), batch[1])
    finally:
        for hook in hooks:
            hook.remove()
    called = [name for name, seen in calls.items() if seen == [True]]
    slopes = grad([loss], [layers[name].weight for name in called]) if called else []
    return [name for name, slope in zip(called, slopes, strict=True) if slope is not None]


def _fits(layer: nn.Linear | nn.Conv2d) -> bool:
    """Small enough, and of a kind that is known."""
    if layer.weight.is_complex():
        return False
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or isinstance(layer.padding, str)):
        return False
    return max(layer.weight.flatten(1).shape) <= LARGEST_FACTOR
