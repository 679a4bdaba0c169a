"""Stand-ins for what acts outside the module: they can be read, and what they are told to do is not done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Nothing:
    """Takes every call, item and attribute, and does nothing: the experiment of a logger while a measurement runs."""

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        """Not done."""
        return self

    def __getattr__(self, name: str) -> Nothing:
        """Whatever it is, it is nothing too."""
        if name.startswith("__"):  # protocols such as those of copying and of arrays
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Forgotten."""

    def __getitem__(self, key: Any) -> Nothing:
        """Nothing."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forgotten."""

    def __iter__(self) -> Iterator[Any]:
        """Over nothing."""
        return iter(())

    def __bool__(self) -> bool:
        """No."""
        return False

    def __enter__(self) -> Nothing:
        """As a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to leave."""


class Muted:
    """Stands in for an object: it can be read and passes for one of its kind, but some of its methods do nothing.

    What is set on it stays on it.

    Args:
        target: The object.
        silent: Names of methods that do nothing; None: all methods.
        replaced: Attributes with a value of their own.

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
        """The kind of the object that it stands in for."""
        return type(vars(self)["_target"])

    def __getattr__(self, name: str) -> Any:
        """Of the object, unless it is replaced or silent."""
        own = vars(self)
        if name in own["_replaced"]:
            return own["_replaced"][name]
        value = getattr(own["_target"], name)
        silent = own["_silent"]
        if callable(value) and (silent is None or name in silent) and not name.startswith("__"):
            return Nothing()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Here alone."""
        vars(self)["_replaced"][name] = value

    def __delattr__(self, name: str) -> None:
        """Here alone."""
        vars(self)["_replaced"].pop(name, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Muted:
        """Itself: it has nothing that a copy could protect."""
        return self


def target_of(thing: Any) -> Any:
    """What a stand-in stands for; of anything else, the thing itself."""
    return vars(thing)["_target"] if type(thing) is Muted else thing


def muted_logger(logger: Any) -> Muted:
    """A logger that writes nothing, and whose experiment takes everything."""
    return Muted(logger, silent=None, replaced={"experiment": Nothing()})


def muted_optimizer(target: Any, **replaced: Any) -> Muted:
    """An optimiser that makes no step, and whose groups can be written to without effect."""
    groups = [dict(group) for group in target.param_groups]
    silent = ("step", "zero_grad", "load_state_dict", "add_param_group", "toggle_model")
    return Muted(target, silent=silent, replaced={"param_groups": groups, **replaced})


def muted_scheduler(target: Any, **replaced: Any) -> Muted:
    """A learning-rate schedule that does not go on."""
    return Muted(target, silent=("step", "load_state_dict"), replaced=replaced)
