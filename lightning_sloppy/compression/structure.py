"""Which layers have become two smaller ones: plain data, with which the same structure is made in a fresh module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_sloppy.compression.low_rank import Directions
from lightning_sloppy.compression.matrix_layers import (
    POINTWISE,
    Convolution,
    Transposed,
    bias_of,
    matrix_of,
    places_of,
    weight_of,
)
from lightning_sloppy.errors import ConfigurationError

Structure = Mapping[str, int]
"""Rank by the name of each layer that was replaced."""


def restructured(module: nn.Module, structure: Structure) -> nn.Module:
    """Replace the layers of a module by pairs of the ranks of a compressed one, so that it can load its ``state_dict``.

    The weights of the new layers are initialised as by torch; load the compressed ones afterwards.

    Args:
        module: A module of the class and arguments of the one that was compressed. It is changed in place.
        structure: ``compressed.structure``: rank by name of layer.

    Returns:
        The module; if the module itself is the layer, the pair in its place.

    Raises:
        ConfigurationError: If a layer does not exist or has another kind, or a rank does not fit.

    >>> restructured(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), {"0": 2})[0]
    Sequential(
      (0): Linear(in_features=8, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=8, bias=True)
    )
    """
    found: dict[str, nn.Module] = {}
    for name, rank in structure.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError as error:
            raise ConfigurationError(
                f"The structure has a layer {name!r} of rank {rank}, but {type(module).__name__} has none; build it "
                "with the arguments of the module that was compressed."
            ) from error
        if not isinstance(layer, (nn.Linear, *Convolution, *Transposed)):
            raise ConfigurationError(
                f"The structure has two layers of rank {rank} in the place of {name!r}, but there is a "
                f"{type(layer).__name__}; build the module with the arguments of the one that was compressed."
            )
        if type(rank) is not int or not 1 <= rank <= min(matrix_of(layer).shape):
            raise ConfigurationError(f"Rank {rank} of {name!r} is not between 1 and {min(matrix_of(layer).shape)}.")
        found[name] = layer
    for name, rank in structure.items():
        module = put(module, found[name], pair_of(found[name], rank))
    return module


def structure_in(module: nn.Module, weights: Mapping[str, Any]) -> Structure:
    """The structure by which a module can load the ``state_dict`` of a compressed one: its layers that are pairs there.

    >>> small = restructured(nn.Sequential(nn.Linear(8, 8)), {"0": 2})
    >>> structure_in(nn.Sequential(nn.Linear(8, 8)), small.state_dict())
    {'0': 2}
    """
    found = {}
    for name, layer in module.named_modules():
        start = f"{name}." if name else ""
        first = weights.get(f"{start}0.weight")
        plain = isinstance(layer, (nn.Linear, *Convolution, *Transposed)) and f"{start}weight" not in weights
        if plain and first is not None and f"{start}1.weight" in weights:
            found[name] = int(first.shape[1 if isinstance(layer, Transposed) else 0])
    return found


def pair_of(layer: Any, rank: int, directions: Directions | None = None) -> nn.Sequential:
    """Two layers of torch in the place of one; with directions they are its best map of this rank.

    The first has the kernel, stride, padding and dilation of the layer and no bias, the second is linear or a
    convolution of one position.
    """
    weight, bias = weight_of(layer), bias_of(layer)
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    outputs = len(matrix_of(layer))
    first: Any
    second: Any
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **place)
        second = nn.Linear(rank, outputs, **place)
    else:
        names = ["kernel_size", "stride", "padding", "dilation", "padding_mode"]
        names += ["output_padding"] if isinstance(layer, Transposed) else []
        kept = {name: getattr(layer, name) for name in names}
        kind = next(each for each in (*Convolution, *Transposed) if isinstance(layer, each))
        first = kind(layer.in_channels, rank, bias=False, **kept, **place)
        second = POINTWISE[len(layer.kernel_size)](rank, outputs, 1, **place)
    if directions is not None:
        narrow, wide, offset = directions.factors(layer, rank)
        with torch.no_grad():
            shape = first.weight.transpose(0, 1).shape if isinstance(layer, Transposed) else first.weight.shape
            narrow = narrow.reshape(shape)
            first.weight.copy_(narrow.transpose(0, 1) if isinstance(layer, Transposed) else narrow)
            second.weight.copy_(wide.reshape(second.weight.shape))
            second.bias.copy_(offset)
    first.weight.requires_grad_(weight.requires_grad)
    second.weight.requires_grad_(weight.requires_grad)
    second.bias.requires_grad_((weight if bias is None else bias).requires_grad)
    return nn.Sequential(first, second).train(layer.training)


def put(module: nn.Module, layer: nn.Module, pair: nn.Module) -> nn.Module:
    """Put a pair in every place of a layer, and return the module, or the pair if the module is the layer."""
    if module is layer:
        return pair
    for parent, name in places_of(module, layer):
        parent._modules[name] = pair
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # its fast path reads the weights of its layers; this turns it off
    for encoder in module.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(pair is part for part in encoder.modules()):
            encoder.use_nested_tensor = False  # which only the fast path can take
    return module
