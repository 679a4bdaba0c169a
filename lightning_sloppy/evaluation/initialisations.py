"""Fresh initialisations of a module, as its constructors would give them; the module itself is never written to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.evaluation.preserve import parameters_restored, random_streams

RESETS = ("reset_parameters", "_reset_parameters")
"""How torch's own layers, and those of others by its example, initialise themselves again."""
_FIRST_SEED = 2_718_281_828


class Initialisations:
    """Draws new initialisations of the parameters of a module.

    A parameter is taken from the module that ``rebuild`` returns if it differs between seeds or is constant there. Else
    it is taken from layers with ``reset_parameters``, so weights that a constructor loads from a file are drawn too.
    Other parameters are not changed.

    Args:
        module: The module. Its layers are copied, other attributes are not.
        start: Its initial parameters by name, if they are different now.
        rebuild: Function that creates the module again from its arguments; None if they are not known.

    Attributes:
        drawn: Names of the parameters that are drawn.
        kept: Names of the other parameters that are not constant; their initial distribution is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        start: Mapping[str, Tensor] | None = None,
        rebuild: Callable[[], nn.Module] | None = None,
    ) -> None:
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._module = module
        # Restored all the same: the reset of a user's class may reach the module by ways that no copy follows.
        with parameters_restored(module), random_streams():
            self._twin = _twin(module, {})
            reset = self._reset()
            self._rebuild, rebuilt = rebuild, frozenset[str]()
            if rebuild is not None:
                first, second = (self._rebuilt(seed) for seed in (0, 1))
                if first is None or second is None:
                    self._rebuild = None
                else:
                    rebuilt = frozenset(
                        name for name in first if _constant(first[name]) or not torch.equal(first[name], second[name])
                    )
        self._from_rebuild, self._from_reset = rebuilt, reset - rebuilt
        self.drawn = rebuilt | reset
        self.kept = tuple(
            name
            for name, parameter in module.named_parameters()
            if name not in self.drawn and not _constant((start or {}).get(name, parameter.detach()))
        )

    def draw(self, number: int) -> dict[str, Tensor]:
        """The parameters of one fresh initialisation, by name; the same ones for a number, on every rank.

        The global random streams are restored afterwards.
        """
        with parameters_restored(self._module), random_streams():
            found: dict[str, Tensor] = {}
            if self._from_reset:
                torch.manual_seed(_FIRST_SEED + number)
                self._reset()
                table = dict(self._twin.named_parameters())
                found = {name: table[name].detach().clone() for name in self._from_reset}
            if self._from_rebuild:
                rebuilt = self._rebuilt(number) or {}
                found |= {name: rebuilt[name] for name in self._from_rebuild}
            return found

    def _reset(self) -> frozenset[str]:
        """Let every layer of the copy initialise itself, inner ones first; returns what was written."""
        with torch.no_grad():
            for parameter in self._twin.parameters():
                if parameter.is_floating_point():
                    parameter.fill_(torch.nan)
            for layer in reversed(list(self._twin.modules())):
                for name in RESETS:
                    # Of the class: wrappers hand on the attributes of what they wrap.
                    function = getattr(type(layer), name, None)
                    if function is not None:
                        with suppress(Exception):
                            function(layer)
                        break
        return frozenset(
            name for name, p in self._twin.named_parameters() if p.is_floating_point() and not bool(p.isnan().any())
        )

    def _rebuilt(self, number: int) -> Mapping[str, Tensor] | None:
        assert self._rebuild is not None
        torch.manual_seed(_FIRST_SEED + number)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = {name: p.detach().cpu() for name, p in self._rebuild().named_parameters()}
        except Exception:  # the constructor of a user's class may need arguments that are missing
            return None
        return table if {name: tensor.shape for name, tensor in table.items()} == self._shapes else None


def _constant(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or bool((tensor == tensor.reshape(-1)[0]).all())


def _twin(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    """The same tree of layers with copied tensors on the CPU. Everything else is shared, as it may hold a Trainer."""
    if id(module) in known:
        found: nn.Module = known[id(module)]
        return found
    twin: nn.Module = object.__new__(type(module))
    known[id(module)] = twin
    table = vars(twin)
    table.update(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            table[name] = _copy(value, known)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, nn.Module) for item in value):
            table[name] = type(value)(_twin(item, known) for item in value)
    for kind in ("_parameters", "_buffers"):
        table[kind] = {name: None if t is None else _copy(t, known) for name, t in vars(module)[kind].items()}
    table["_modules"] = {name: None if c is None else _twin(c, known) for name, c in module._modules.items()}
    return twin


def _copy(tensor: Tensor, known: dict[int, Any]) -> Tensor:
    if id(tensor) not in known:
        plain = tensor.detach().to("cpu", copy=True)
        known[id(tensor)] = nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain
    found: Tensor = known[id(tensor)]
    return found
