"""Inputs and output gradients of linear layers: per-sample gradients that are never formed.

For ``y = W a + b`` with one row a_i for each sample, the gradient of sample i in W is ``g_i a_i^T``, so that the inner
product of two of them is ``(a_i . a_j)(g_i . g_j)``, and ``g_i . g_j`` for the bias (Goodfellow 2015).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.linalg.vectors import generator, rademacher

CHECK_TOLERANCE = 1e-3
"""Relative difference of ``sum_i s_i g_i a_i^T`` (signs s_i) from autograd's gradient above which capture is wrong."""


@dataclass
class LinearCapture:
    """What one linear layer saw and passed back over the whole probe.

    Attributes:
        weight: Name of its weight in the layout, or None when frozen.
        bias: Name of its bias, or None.
        inputs: For each batch (n, d_in).
        gradients: For each batch (R, n, d_out).
    """

    weight: str | None
    bias: str | None
    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def names(self) -> list[str]:
        """Names of the parameters it serves."""
        return [name for name in (self.weight, self.bias) if name is not None]

    def gram(self) -> Tensor:
        """Inner products of all per-sample gradients of this layer, (R N, R N), float64 where the device has it."""
        gradients = torch.cat(self.gradients, dim=1).flatten(0, 1)
        inputs = torch.cat(self.inputs)
        copies = gradients.shape[0] // inputs.shape[0]
        wide = torch.float32 if gradients.device.type == "mps" else torch.float64
        factor = torch.zeros(inputs.shape[0], inputs.shape[0], dtype=wide, device=inputs.device)
        if self.weight is not None:
            factor += inputs @ inputs.T
        if self.bias is not None:
            factor += 1
        return (gradients @ gradients.T).to(wide) * factor.repeat(copies, copies)


def candidates(module: nn.Module, layout: ParameterLayout) -> dict[nn.Module, LinearCapture]:
    """Linear layers whose parameters belong to them alone and are trained."""
    names = {id(p): name for name, p in module.named_parameters() if name in set(layout.names)}
    owners = Counter(id(p) for child in module.modules() for p in child.parameters(recurse=False))
    found: dict[nn.Module, LinearCapture] = {}
    for child in module.modules():
        own = [p for p in child.parameters(recurse=False) if id(p) in names]
        if type(child) is nn.Linear and own and all(owners[id(p)] == 1 for p in own):
            bias = names.get(id(child.bias)) if child.bias is not None else None
            found[child] = LinearCapture(names.get(id(child.weight)), bias)
    return found


@contextmanager
def recorded(layers: dict[nn.Module, LinearCapture]) -> Iterator[dict[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Record (input, output) of every call of these layers inside."""
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # An input given by keyword is not among args: an empty stand-in makes the call unusable.
        calls[layer].append((args[0] if args else output.new_empty(0), output))
        # The clone protects the recorded output from an in-place activation behind the layer.
        return output.clone()

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def capture_batch(
    layers: dict[nn.Module, LinearCapture],
    leaves: dict[str, Tensor],
    forward: Callable[[], Tensor],
    pull_back: Callable[[Tensor], Tensor],
) -> None:
    """Run one batch; append to the captures that turn out usable and drop the others from ``layers``.

    Args:
        layers: Candidates; shrinks.
        leaves: Parameters by name.
        forward: Gives the outputs, (n, ...), with their graph.
        pull_back: Gives the cotangents (R, n, ...) for detached outputs.
    """
    with recorded(layers) as calls:
        outputs = forward()
    count = len(outputs)
    for layer in list(layers):
        seen = calls[layer]
        if len(seen) != 1 or seen[0][0].ndim != 2 or seen[0][0].shape[0] != count or not seen[0][1].requires_grad:
            del layers[layer]
    if not layers:
        return
    directions = pull_back(outputs.detach())
    results = [calls[layer][0][1] for layer in layers]
    gradients: list[list[Tensor]] = [[] for _ in layers]
    for direction in directions:
        parts = grad([outputs], results, [direction], retain_graph=True)
        for index, (result, part) in enumerate(zip(results, parts, strict=True)):
            gradients[index].append(torch.zeros_like(result) if part is None else part)
    signs = _signs(directions)
    names = [name for capture in layers.values() for name in capture.names()]
    mixed = (directions * signs.view(*signs.shape, *[1] * (outputs.ndim - 1))).sum(0)
    truth = dict(zip(names, grad([outputs], [leaves[name] for name in names], [mixed]), strict=True))
    for index, (layer, capture) in enumerate(list(layers.items())):
        inputs, own = calls[layer][0][0].detach(), torch.stack(gradients[index])
        if _agrees(capture, inputs, (own * signs.unsqueeze(-1)).sum(0), truth):
            capture.inputs.append(inputs)
            capture.gradients.append(own)
        else:
            del layers[layer]


def _signs(directions: Tensor) -> Tensor:
    """Random signs (R, n), always the same: sums of the rows as they are could hide rows in another order."""
    return rademacher(directions.shape[1], len(directions), generator(0)).to(directions.device, directions.dtype)


def _agrees(capture: LinearCapture, inputs: Tensor, gradient: Tensor, truth: dict[str, Tensor | None]) -> bool:
    """Whether the layer's rows are samples and explain the whole gradient of its parameters.

    They may also be used elsewhere, the rows may be no samples, or one sample may act on another's outputs. Then the
    gradients of the samples under random signs, mixed in the same way, differ from autograd's.
    """
    sums: dict[str, Tensor] = {}
    if capture.weight is not None:
        sums[capture.weight] = gradient.T @ inputs
    if capture.bias is not None:
        sums[capture.bias] = gradient.sum(0)
    for name, mine in sums.items():
        expected = truth[name]
        difference = mine if expected is None else mine - expected
        size = torch.linalg.vector_norm(mine) if expected is None else torch.linalg.vector_norm(expected)
        # Sums that cancel to nothing leave rounding only; compare with the size of the terms.
        terms = torch.linalg.vector_norm(gradient) * max(1.0, float(inputs.abs().max())) * 1e-6
        if not bool(torch.linalg.vector_norm(difference) <= CHECK_TOLERANCE * size + terms):
            return False
    return True
