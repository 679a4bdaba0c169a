"""Replacements for objects with effects outside the module. They can be read, but their methods do nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Nothing:
    """Accepts every call, item and attribute, and does nothing. It replaces the experiment of a logger."""

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        """Do nothing."""
        return self

    def __getattr__(self, name: str) -> Nothing:
        """Return this object for any attribute."""
        if name.startswith("__"):  # protocols such as those of copying and of arrays
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Ignore the value."""

    def __getitem__(self, key: Any) -> Nothing:
        """Return this object for any item."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore the value."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over no items."""
        return iter(())

    def __bool__(self) -> bool:
        """Return False."""
        return False

    def __enter__(self) -> Nothing:
        """Enter a context that does nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the context."""


class Muted:
    """Replacement for an object. It can be read and passes ``isinstance`` checks, but some of its methods do nothing.

    Attributes that are set on it do not reach the object.

    Args:
        target: The object.
        silent: Names of methods that do nothing; None: all methods.
        replaced: Attributes with other values than those of the object.

    Example:
        >>> import torch
        >>> optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> muted = Muted(optimiser, silent=("step",))
        >>> bool(muted.step()), isinstance(muted, torch.optim.SGD), muted.defaults["lr"]
        (False, True, 0.1)
    """

    def __init__(
        self, target: Any, *, silent: tuple[str, ...] | None, replaced: Mapping[str, Any] | None = None
    ) -> None:
        vars(self).update(_target=target, _silent=silent, _replaced=dict(replaced or {}))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the object that it replaces."""
        return type(vars(self)["_target"])

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the object, unless it is replaced or silent."""
        own = vars(self)
        if name in own["_replaced"]:
            return own["_replaced"][name]
        value = getattr(own["_target"], name)
        silent = own["_silent"]
        if callable(value) and (silent is None or name in silent) and not name.startswith("__"):
            return Nothing()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute on the replacement only."""
        vars(self)["_replaced"][name] = value

    def __delattr__(self, name: str) -> None:
        """Delete the attribute on the replacement only."""
        vars(self)["_replaced"].pop(name, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Muted:
        """Return itself, because it has no state that a copy could protect."""
        return self


def target_of(thing: Any) -> Any:
    """The object that a replacement replaces; any other object itself."""
    return vars(thing)["_target"] if type(thing) is Muted else thing


def muted_logger(logger: Any) -> Muted:
    """A logger that writes nothing, and whose experiment accepts every call."""
    return Muted(logger, silent=None, replaced={"experiment": Nothing()})


def muted_optimizer(target: Any, **replaced: Any) -> Muted:
    """An optimiser that does not step, and whose groups can be written to without effect."""
    groups = [dict(group) for group in target.param_groups]
    silent = ("step", "zero_grad", "load_state_dict", "add_param_group", "toggle_model")
    return Muted(target, silent=silent, replaced={"param_groups": groups, **replaced})


def muted_scheduler(target: Any, **replaced: Any) -> Muted:
    """A learning-rate schedule that does not step."""
    return Muted(target, silent=("step", "load_state_dict"), replaced=replaced)
