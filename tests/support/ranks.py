"""Runs a script as several processes that train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.ports import free_port


def run(script: str, folder: Path, *arguments: str, count: int = 2, ends_with: int = 0) -> list[Any]:
    """What each rank of ``script file arguments...`` wrote to its file, as JSON; nothing of ranks that must die."""
    paths = [str(Path(script).parents[1]), str(Path(script).parents[2]), os.environ.get("PYTHONPATH", "")]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
    }
    targets = [folder / f"rank{rank}.json" for rank in range(count)]
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(target), *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, target in enumerate(targets)
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [ends_with] * count, "\n".join(said)
    return [] if ends_with else [json.loads(target.read_text()) for target in targets]


def leave() -> None:
    """End a rank. Not by sys.exit: torch's own threads may still run then, and their end is a race (SIGABRT)."""
    sys.stdout.flush()
    os._exit(0)
