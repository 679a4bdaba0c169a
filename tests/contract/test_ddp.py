"""Two processes measure what one would, and stop together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import two_ranks
from ports import free_port


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")
def test_two_processes_agree_with_one(tmp_path):
    script = Path(two_ranks.__file__)
    paths = [str(script.parent), str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
    }
    targets = [tmp_path / f"rank{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(target)],
            env={**common, "LOCAL_RANK": str(rank)},
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
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    alone = two_ranks.fit(tmp_path / "alone")
    tags = [tag for tag in alone if tag.startswith("sloppy_") and "cost" not in tag]
    assert len(tags) > 50
    for found in (json.loads(target.read_text()) for target in targets):
        for tag in tags:
            assert found[tag] == pytest.approx(alone[tag], rel=1e-4, abs=1e-6), tag
        assert found["epochs"] == alone["epochs"] == 1
