"""Which parameters a forward uses where.

Calls are seen where modules call ``torch.nn.functional``, by the identity of the weights, so that a layer called twice,
a weight shared by two layers and a weight used without its layer are all the same: a parameter with several uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_sloppy.curvature.gram.attention import with_projections_outside
from lightning_sloppy.curvature.gram.broadcasts import Broadcast
from lightning_sloppy.curvature.gram.calls import (
    Call,
    ConvolutionCall,
    EmbeddingCall,
    LayerCall,
    LinearCall,
    addmm,
    matmul,
)
from lightning_sloppy.curvature.gram.norm_calls import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

CALLS: Mapping[Any, Callable[..., LayerCall | None]] = {
    F.linear: LinearCall,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.addmm: addmm,
    F.conv1d: ConvolutionCall,
    F.conv2d: ConvolutionCall,
    F.conv3d: ConvolutionCall,
    F.embedding: EmbeddingCall,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}
"""Functions that are known, with what describes a call of theirs from the same arguments."""

ENTRY_BY_ENTRY = {"add", "sub", "mul", "div", "truediv", "true_divide"}
"""Names of functions that broadcast their first two arguments, without the marks of operators and in-place forms."""

EXPANDING = {"expand", "expand_as", "broadcast_to", "repeat"}


_NOTHING: Mapping[str, Any] = {}


class _Role(Enum):
    """What a tensor depends on: samples, parameters alone, or neither."""

    OWN = 1
    SHARED = 2
    CONSTANT = 3


class LayerRecorder(TorchFunctionMode):
    """Inside, uses of parameters are listed in ``calls``, in the order in which they happen.

    Args:
        leaves: Parameters to look for; the number of a call in the list depends on them.
        inputs: Tensors of the batch with a row for each sample.
        count: Samples n.
    """

    def __init__(self, leaves: Iterable[Tensor], inputs: Iterable[Tensor], count: int) -> None:
        super().__init__()
        self._leaves = {id(leaf) for leaf in leaves}
        self._count = count
        self._roles: MutableMapping[Tensor, _Role] = WeakTensorKeyDictionary()
        for tensor in inputs:
            self._roles[tensor] = _Role.OWN
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; list the call."""
        del types
        if func is F.multi_head_attention_forward:
            return with_projections_outside(self._run, args, kwargs or {})
        return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] = _NOTHING) -> Any:
        role = self._role_of([*args, *kwargs.values()])
        name = getattr(func, "__name__", "")
        plain = name.strip("_")
        plain = plain[1:] if plain[:1] in ("i", "r") and plain[1:] in ENTRY_BY_ENTRY else plain
        if role is _Role.OWN and plain in ENTRY_BY_ENTRY:
            args = self._expanded(args, in_place=name.startswith("__i") or name.endswith("_"))
        output = func(*args, **kwargs)
        if role is _Role.CONSTANT:
            return output
        if role is _Role.SHARED and plain in EXPANDING and self._over_samples(args[0], output):
            self.calls.append(Broadcast(args[0], output))
            role = _Role.OWN
        elif role is _Role.OWN and func in CALLS and isinstance(output, Tensor) and output.requires_grad:
            call = CALLS[func](*args, **kwargs)
            if isinstance(call, LayerCall) and {id(call.weight), id(call.bias)} & self._leaves:
                call.output = output
                self.calls.append(call)
                # The clone protects the recorded output from an in-place activation behind the layer.
                output = output.clone()
        for tensor in _tensors(args[0] if name == "__setitem__" else output):
            self._roles[tensor] = role
        return output

    def _expanded(self, args: Sequence[Any], *, in_place: bool) -> list[Any]:
        """The arguments, what samples share among the first two expanded to their common shape."""
        changed = list(args)
        if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
            return changed
        for mine, other in ((1, 0),) if in_place else ((0, 1), (1, 0)):
            source = args[mine]
            if self._role(source) is _Role.SHARED and source.requires_grad and source.ndim <= args[other].ndim:
                changed[mine] = torch.broadcast_tensors(source, args[other])[0]  # type: ignore[no-untyped-call]
                self.calls.append(Broadcast(source, changed[mine]))
        return changed

    def _over_samples(self, source: Any, output: Any) -> bool:
        """Whether an expansion added the dimension of the samples."""
        if not isinstance(source, Tensor) or not isinstance(output, Tensor) or not source.requires_grad:
            return False
        return output.shape[:1] == (self._count,) and (source.ndim < output.ndim or source.shape[0] == 1)

    def _role(self, tensor: Tensor) -> _Role:
        known = self._roles.get(tensor)
        if known is not None:
            return known
        if id(tensor) in self._leaves:
            return _Role.SHARED
        # What comes from where nothing is seen, such as a custom autograd function, most likely is of the samples.
        return _Role.OWN if tensor.requires_grad else _Role.CONSTANT

    def _role_of(self, values: Iterable[Any]) -> _Role:
        roles = {self._role(tensor) for value in values for tensor in _tensors(value)}
        return min(roles, key=lambda role: role.value, default=_Role.CONSTANT)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
