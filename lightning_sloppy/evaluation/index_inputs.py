"""Whether integers that go into a module are measurements, or places in a table as token ids are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sloppy.evaluation.nests import tensors_of

INDEX_ARGUMENTS: Mapping[str, int] = {
    "aten::embedding": 1,
    "aten::_embedding_bag": 1,
    "aten::_embedding_bag_forward_only": 1,
    "aten::index": 1,
    "aten::_unsafe_index": 1,
    "aten::index_select": 2,
    "aten::gather": 2,
    "aten::take": 1,
    "aten::scatter": 2,
    "aten::scatter_": 2,
    "aten::scatter_add": 2,
    "aten::scatter_add_": 2,
    "aten::index_put": 1,
    "aten::index_put_": 1,
    "aten::_index_put_impl_": 1,
    "aten::index_add": 2,
    "aten::index_add_": 2,
    "aten::one_hot": 0,
    "aten::bincount": 0,
}
"""Operations that choose entries by number, and which of their arguments holds the numbers."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices when integers, or integers made of them, are used as an index. Floating-point results are none."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._followed = {id(inputs): inputs}  # kept, so that no other tensor gets the same id
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = INDEX_ARGUMENTS.get(func.name().split(".")[0])
        if place is not None and len(args) > place and self._any(args[place]):
            self.found = True
        result = func(*args, **(kwargs or {}))
        if self._any((args, kwargs or {})):
            for tensor in tensors_of(result):
                if not (tensor.is_floating_point() or tensor.is_complex()):
                    self._followed[id(tensor)] = tensor
        return result

    def _any(self, arguments: Any) -> bool:
        return any(id(tensor) in self._followed for tensor in tensors_of(arguments))


def are_measurements(
    forward: Callable[[Tensor], Any], inputs: Tensor, dtype: torch.dtype = torch.float32
) -> bool | None:
    """Whether integers are numbers to a module.

    They are not if they, or integers made of them, are used to choose entries: of an embedding, of another tensor, of a
    one-hot code. They are if the module runs without that, or if it takes them as floating-point numbers only.

    Args:
        forward: Runs the module on inputs, without effects that stay.
        inputs: A few samples, integers or booleans.
        dtype: Of the parameters of the module.

    Returns:
        None where the module runs with neither, so that nothing is known.

    >>> are_measurements(lambda x: x.float() @ torch.ones(2, 3), torch.ones(4, 2, dtype=torch.int64))
    True
    >>> are_measurements(lambda x: torch.ones(5, 3)[x], torch.ones(4, 2, dtype=torch.int64))
    False
    """
    watch = _Watch(inputs)
    try:
        with watch:
            forward(inputs)
    except Exception:  # a module that needs floating-point numbers fails in as many manners as there are modules
        if watch.found:
            return False
    else:
        return not watch.found
    try:
        forward(inputs.to(dtype))
    except Exception:
        return None
    return True
