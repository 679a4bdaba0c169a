"""Ranks add up in step, and fail together."""

from __future__ import annotations

import pytest
from support import in_step, ranks

LOST = (
    "The ranks are out of step: their next operations differ, so their hardware or their data differ; "
    "measure on one process, or make them alike."
)


@pytest.mark.slow
@pytest.mark.distributed
def test_sums_and_failures(tmp_path):
    first, second = ranks.run(in_step.__file__, tmp_path)
    assert first["sum"] == second["sum"] == ["value", "[3.0, 30.0]"]
    assert first["gather"] == second["gather"] == ["value", "[{'rank': 0}, {'rank': 1}]"]
    assert first["least"] == second["least"] == ["value", "9.0"]
    assert first["memory is free for a second try"] == second["memory is free for a second try"] == ["value", "True"]
    assert first["one fails"] == ["RankError", "Rank 1 of 2 failed: no file"]
    assert second["one fails"] == ["ValueError", "no file"]
    assert first["one fails behind the last reduction"] == ["RankError", "Rank 1 of 2 failed: no disk"]
    assert second["one fails behind the last reduction"] == ["ValueError", "no disk"]
    assert first["both fail"] == ["ValueError", "no file on 0"]
    assert second["both fail"] == ["ValueError", "no file on 1"]
    assert first["one without memory"] == second["one without memory"] == ["OutOfMemoryError", "Rank 1: 7 GiB"]
    assert first["one without memory, one without a file"] == ["RankError", "Rank 1 of 2 failed: no file"]
    assert second["one without memory, one without a file"] == ["ValueError", "no file"]
    assert first["out of step"] == second["out of step"] == ["RankError", LOST]
    assert first["one leaves early"] == second["one leaves early"] == ["RankError", LOST]
    assert first["and all is well again"] == second["and all is well again"] == ["value", "2.0"]
