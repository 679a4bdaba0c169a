"""The layers with a weight matrix: which of them two smaller ones can replace, and why the others are left alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_sloppy.errors import ConfigurationError

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""The second of the two layers in place of a convolution, by the number of its dimensions."""

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Layer:
    """A layer with a weight matrix.

    Attributes:
        name: Its first name in the module; "" is the module itself.
        kind: Name of its class.
        module: The layer.
        parameters: Numbers that it stores itself.
        reason: Why it is left alone; empty if it can be compressed.
    """

    name: str
    kind: str
    module: nn.Module = field(repr=False)
    parameters: int
    reason: str = ""

    @property
    def fan_in(self) -> int:
        """Inputs of one output: features, or channels times positions of the kernel."""
        return math.prod(matrix_of(self.module).shape[1:])

    @property
    def fan_out(self) -> int:
        """Output features or channels."""
        return len(matrix_of(self.module))

    @property
    def full_rank(self) -> int:
        """Largest rank of its matrix."""
        return min(self.fan_in, self.fan_out)

    def size_at(self, rank: int) -> int:
        """Numbers that the two layers of this rank store: their weights, and one bias for each output."""
        return rank * (self.fan_in + self.fan_out) + self.fan_out

    @property
    def largest_rank(self) -> int:
        """Largest rank at which the two layers store less; 0 if there is none."""
        return max(0, min(self.full_rank, (self.parameters - 1 - self.fan_out) // (self.fan_in + self.fan_out)))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def bias_of(layer: nn.Module) -> Tensor | None:
    """The bias of a layer, if it has one."""
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return bias


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight of a layer as a matrix of shape (outputs, inputs of one output)."""
    weight = weight_of(layer)
    return (weight.transpose(0, 1) if isinstance(layer, Transposed) else weight).flatten(1)


def places_of(module: nn.Module, layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every parent that holds a layer, with the layer's name in it."""
    return [(parent, name) for parent in module.modules() for name, child in parent._modules.items() if child is layer]


def find_layers(module: nn.Module) -> list[Layer]:
    """All modules that own a weight matrix, in their order, each once.

    Raises:
        ConfigurationError: If a lazy layer has no weights yet.
    """
    owners: dict[int, list[str]] = {}
    for name, child in module.named_modules():
        for key, tensor in child._parameters.items():
            if nn.parameter.is_lazy(tensor):
                raise ConfigurationError(
                    f"The lazy layer {name or 'itself'!r} has no weights yet; run the module on one batch first."
                )
            if tensor is not None:
                owners.setdefault(id(tensor), []).append(f"{name}.{key}".lstrip("."))
    inside = {id(part): name for name, owner in module.named_modules() for part in _unread(owner)}
    found = []
    for name, child in module.named_modules():
        if isinstance(child, parametrize.ParametrizationList):
            continue  # a part of the layer that it belongs to
        own = [tensor for tensor in child._parameters.values() if tensor is not None]
        if any(tensor.ndim > 1 for tensor in own) or _has_hidden_matrix(child):
            reason = _reason(child, inside.get(id(child))) or _shared(child, owners)
            if parametrize.is_parametrized(child):
                own += child.parametrizations.parameters()
            found.append(Layer(name, _kind(child), child, sum(tensor.numel() for tensor in own), reason))
    return found


def _kind(child: nn.Module) -> str:
    if parametrize.is_parametrized(child):
        return type(child).__mro__[1].__name__
    return type(child).__name__


def _unread(owner: nn.Module) -> Iterator[nn.Module]:
    """Children whose weights a module reads without calling them."""
    if isinstance(owner, nn.MultiheadAttention):
        yield owner.out_proj


def _has_hidden_matrix(child: nn.Module) -> bool:
    """Whether its weight is no parameter of its own: parametrized, or packed in a quantised layer."""
    return parametrize.is_parametrized(child) or (_is_quantised(child) and callable(getattr(child, "weight", None)))


def _is_quantised(child: nn.Module) -> bool:
    return any(part in type(child).__module__ for part in (".quantized", "torchao", "bitsandbytes"))


def _reason(child: nn.Module, attention: str | None) -> str:
    """Why a layer cannot be compressed, by what it is."""
    if attention is not None:
        return "part of nn.MultiheadAttention, which reads its weight without calling it"
    if isinstance(child, nn.MultiheadAttention):
        return (
            "nn.MultiheadAttention computes with its weights in one function; separate linear layers can be compressed"
        )
    if _is_quantised(child):
        return "quantised; compress before quantising"
    if isinstance(child, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding looks rows up"
    if isinstance(child, RECURRENT):
        return "recurrent; its weights are used inside one function"
    if parametrize.is_parametrized(child):
        return "parametrized; call parametrize.remove_parametrizations first"
    plain = (nn.Linear, *Convolution, *Transposed)
    base = next((each for each in plain if isinstance(child, each)), None)
    if base is None or type(child).forward is not base.forward:
        return "no linear or convolution layer of torch"
    return _reason_of_state(child)


def _reason_of_state(child: nn.Module) -> str:
    """Why a linear or convolution layer cannot be compressed, by what it holds."""
    weight = child._parameters.get("weight")
    if weight is None:
        return "its weight is computed before each call (pruning, weight or spectral norm); make that permanent first"
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"weights in {weight.dtype}"
    if getattr(child, "groups", 1) > 1:
        return f"grouped ({child.groups} groups)"
    if any(getattr(child, name) for name in HOOKS):
        return "it has hooks, which the smaller layers would not have"
    if child._modules or child._buffers or set(child._parameters) - {"weight", "bias"}:
        return "it holds more than weight and bias"
    return ""


def _shared(child: nn.Module, owners: dict[int, list[str]]) -> str:
    for tensor in child._parameters.values():
        names = owners.get(id(tensor), []) if tensor is not None else []
        if len(names) > 1:
            return f"shares a parameter: {' and '.join(names[:3])} are the same"
    return ""
