"""Ways to pass the inputs of a batch to ``forward``: whole, element by element, or as keywords of a dict."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


@dataclass(frozen=True)
class Signature:
    """The parameters of ``forward``.

    Attributes:
        positional: Names of the parameters that can be passed by position, in order.
        required: Names of the parameters without a default.
        names: Names of the parameters that can be passed by keyword.
        any_position: Whether it accepts any number of positional arguments.
        any_name: Whether it accepts any keyword.
    """

    positional: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    any_position: bool = False
    any_name: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> Signature:
        """The signature of a module's ``forward``; one argument if it cannot be inspected."""
        try:
            parameters = inspect.signature(module.forward).parameters.values()
        except (TypeError, ValueError):
            return cls(("inputs",))
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        plain = [p for p in parameters if p.kind in (*by_position, *by_name)]
        return cls(
            positional=tuple(p.name for p in plain if p.kind in by_position),
            required=frozenset(p.name for p in plain if p.default is inspect.Parameter.empty),
            names=frozenset(p.name for p in plain if p.kind in by_name),
            any_position=any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters),
            any_name=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
        )


def leading_inputs(module: nn.Module, parts: int) -> int:
    """Number of elements of a longer tuple that are inputs, while the rest are targets; 0 if it is not split.

    It is the number of parameters of ``forward``, without the last element. If ``forward`` has one parameter, the tuple
    is not split, because it may take the whole batch.

    >>> leading_inputs(nn.Bilinear(2, 2, 1), 3), leading_inputs(nn.Linear(2, 1), 3)
    (2, 0)
    """
    signature = Signature.of(module)
    most = parts if signature.any_position else len(signature.positional)
    needed = sum(name in signature.required for name in signature.positional)
    return 0 if most < 2 or needed >= parts else min(most, parts - 1)


def needs_both(module: nn.Module, first: Any) -> bool:
    """Whether ``forward`` needs both elements of a pair, as networks with two towers or a decoder do.

    It is False if the first element may contain both arguments.

    >>> needs_both(nn.Bilinear(2, 2, 1), torch.zeros(1, 2)), needs_both(nn.Linear(2, 1), torch.zeros(1, 2))
    (True, False)
    """
    signature = Signature.of(module)
    needed = sum(name in signature.required for name in signature.positional)
    return needed == 2 and not isinstance(first, (tuple, list, Mapping))


def takes_several(module: nn.Module) -> bool:
    """Whether ``forward`` accepts more than one positional argument."""
    signature = Signature.of(module)
    return signature.any_position or len(signature.positional) > 1


def taken(module: nn.Module, inputs: Any) -> Any:
    """The part of the inputs that ``forward`` takes: of a mapping the entries that it names, else all.

    >>> taken(nn.Linear(2, 2), {"input": 1, "label": 2})
    {'input': 1}
    """
    if not isinstance(inputs, Mapping):
        return inputs
    signature = Signature.of(module)
    named = {name: value for name, value in inputs.items() if name in signature.names}
    return named if named and signature.required <= named.keys() else inputs


class Caller:
    """Calls a module with the inputs of a batch, by the signature of its ``forward``.

    From a mapping, the keywords that ``forward`` accepts are passed, so it may contain labels. A tuple is passed
    element by element if ``forward`` needs several arguments. If the signature allows several ways, the first one that
    does not fail is used from then on.

    Args:
        module: Any module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._signature = Signature.of(module)
        self._way: str | None = None

    def call(self, function: Callable[[tuple[Any, ...], dict[str, Any]], Any], inputs: Any) -> Any:
        """Return ``function(arguments, keywords)`` for the inputs.

        Raises:
            Exception: If all possible ways fail, the error of the first one.
        """
        ways = self._ways(inputs)
        if self._way in ways or len(ways) == 1:
            return function(*ways[self._way if self._way in ways else next(iter(ways))])
        refused: Exception | None = None
        for way, arguments in ways.items():
            try:
                found = function(*arguments)
            except Exception as error:  # noqa: PERF203 - a wrong way fails in as many manners as there are modules
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # Of a list of one tensor that tensor is meant, and what is wrong with it is to be told.
                refused = error if way == "first" and len(inputs) == 1 else refused or error
            else:
                self._way = way
                return found
        assert refused is not None
        raise refused

    def _ways(self, inputs: Any) -> dict[str, Arguments]:
        if isinstance(inputs, Mapping):
            return self._ways_of_mapping(inputs)
        whole: Arguments = ((inputs,), {})
        if type(inputs) not in (tuple, list) or not inputs:
            return {"whole": whole}
        several = self._signature.any_position or len(self._signature.positional) > 1
        needed = sum(name in self._signature.required for name in self._signature.positional)
        fits = needed <= len(inputs) and (
            self._signature.any_position or len(inputs) <= len(self._signature.positional)
        )
        spread: Arguments = (tuple(inputs), {})
        if not several or not fits:
            return {"whole": whole, "first": ((inputs[0],), {})}
        return {"spread": spread} if needed > 1 else {"whole": whole, "spread": spread}

    def _ways_of_mapping(self, inputs: Mapping[Any, Any]) -> dict[str, Arguments]:
        signature = self._signature
        whole: dict[str, Arguments] = {"whole": ((inputs,), {})}
        named = {name: value for name, value in inputs.items() if isinstance(name, str)}
        if signature.any_name and signature.required <= named.keys():
            return {"names": ((), named), **whole} if signature.positional else {"names": ((), named)}
        known = {name: value for name, value in named.items() if name in signature.names}
        if not known or not signature.required <= known.keys():
            return whole
        by_name: dict[str, Arguments] = {"names": ((), known)}
        # A single parameter may have the name of a key by chance.
        return {**by_name, **whole} if len(signature.names) > 1 else {**whole, **by_name}
