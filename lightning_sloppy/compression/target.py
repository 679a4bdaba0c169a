"""What is asked of a compression: a share of variance, a size, or a largest drop of the metric."""

from __future__ import annotations

import math

from lightning_sloppy.errors import ConfigurationError


def refuse_wrong_target(keep: float | None, size: float | None, max_drop: float | None) -> None:
    """Check that exactly one target is given, and that it can be.

    Raises:
        ConfigurationError: If not.
    """
    targets = {"keep": keep, "size": size, "max_drop": max_drop}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items()) or "none of them"
        raise ConfigurationError(
            f"Give exactly one of keep, size and max_drop; {said} {'were' if given else 'was'} given."
        )
    ((name, value),) = given.items()
    fits = 0 <= value < math.inf if name == "max_drop" else 0 < value <= 1
    if not fits:
        allowed = "at least 0" if name == "max_drop" else "above 0 and at most 1"
        raise ConfigurationError(f"{name}={value} is out of range; it must be {allowed}.")
