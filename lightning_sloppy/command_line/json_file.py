"""The file of ``--json``: checked before the work begins, and never half-written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_sloppy.errors import ConfigurationError


def taken_out(words: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without ``--json FILE``, and the file.

    The file is no setting of a run: it must not be in the configuration that the run saves.

    Raises:
        ConfigurationError: If no file is named, or its folder does not exist.

    >>> taken_out(["fit", "--json", "numbers.json", "--model=A"])
    (['fit', '--model=A'], PosixPath('numbers.json'))
    """
    rest: list[str] = []
    file: str | None = None
    given = iter(words)
    for word in given:
        if word == "--json":
            file = next(given, "")
        elif word.startswith("--json="):
            file = word.removeprefix("--json=")
        else:
            rest.append(word)
    if file is None:
        return rest, None
    if not file or file.startswith("--"):
        raise ConfigurationError("--json needs the name of a file, as in --json numbers.json.")
    return rest, checked(Path(file))


def checked(path: Path) -> Path:
    """The path, if a file can be written there.

    Raises:
        ConfigurationError: If it is a folder, or its folder does not exist or may not be written to.
    """
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written; name a file in a folder that exists.")
    return path


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON. Numbers that are not finite become null.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written ({error}).") from error


def plain(value: Any) -> Any:
    """The same value from types that JSON has.

    >>> plain({"a": float("nan"), "b": (1, 2)})
    {'a': None, 'b': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
