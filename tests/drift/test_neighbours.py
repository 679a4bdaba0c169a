"""How alike neighbouring blocks of rows are, against the same computed from the rows."""

from __future__ import annotations

import numpy as np

from lightning_sloppy.drift.differences import Columns, described
from lightning_sloppy.drift.neighbours import block_of, more_spread, neighbours
from lightning_sloppy.inputs.encoded_table import encoded_table
from lightning_sloppy.inputs.noise_edge import median_lag_one
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection.reference import reference_of


def test_a_pair_that_a_state_moves_together_has_its_own_correlation() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8_192, 8))
    for start in range(0, len(rows), 1_024):  # a state of two of the columns, from time to time
        first = start + int(rng.integers(800))
        rows[first : first + 128, :2] += 3.0
    reference = reference_of(
        encoded_table(table_source(rows), (), (), lambda _: None), (), (), median_lag_one(rows[:, 2:])
    )
    parts = reference.parts
    assert parts is not None
    every = np.ones(8, bool)
    columns = Columns(every, every, ~every, every, np.ones(28, bool))
    size = 32
    block = block_of(len(parts.moments.rows), len(rows), 0.25)
    assert block * len(rows) / len(parts.moments.rows) == size
    alike = neighbours(parts, block, described(parts.whole, columns).correlation, columns)

    clipped = np.clip((rows - rows.mean(0)) / rows.std(0), parts.low, parts.high)
    scaled = (clipped - clipped.mean(0)) / clipped.std(0)
    r = np.mean(scaled[:, 0] * scaled[:, 1])
    influence = scaled[:, 0] * scaled[:, 1] - r * (scaled[:, 0] ** 2 + scaled[:, 1] ** 2) / 2
    blocks = influence.reshape(-1, size).mean(1)
    expected = np.corrcoef(blocks[1:], blocks[:-1])[0, 1]
    assert expected > 0.2
    np.testing.assert_allclose(alike.pair[0], expected, atol=0.01)

    usual = more_spread(alike.correlation)
    first, second = columns.below
    np.testing.assert_allclose(more_spread(alike.pair[1:]), np.sqrt(usual[first] * usual[second])[1:])
