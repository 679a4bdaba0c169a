"""Settings of a run from the files that Lightning writes into its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILES = ("hparams.yaml", "config.yaml")
"""Hyperparameters of a logger, and the configuration of Lightning's command line."""


def settings_in(folder: Path) -> dict[str, str]:
    """Settings by name, with a dot between the levels; empty if there are none or if they cannot be read.

    Tags of Python objects are read as plain text, so that nothing in the files is executed.

    Args:
        folder: The folder of a run.
    """
    import yaml

    found: dict[str, str] = {}
    for name in FILES:
        try:
            content = yaml.load((folder / name).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # plain strings
        except (OSError, ValueError, yaml.YAMLError):
            continue
        found |= dict(_flat(content, ""))
    return found


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Each leaf with its name. Lists of plain values are one leaf.

    >>> dict(_flat({"model": {"widths": ["64", "10"], "parts": [{"lr": "0.1"}]}, "seed": "1"}, ""))
    {'model.widths': '64, 10', 'model.parts.0.lr': '0.1', 'seed': '1'}
    """
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, Sequence) and any(isinstance(part, (Mapping, list)) for part in value):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        if name:
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return
    for key, part in parts:
        yield from _flat(part, f"{name}.{key}" if name else key)
