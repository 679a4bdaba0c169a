"""Where the energy of rows lies: exact identities in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sloppy import ConfigurationError
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.metrics.energy_bins import EnergyBinsReader, gives_edges, quantile_edges
from lightning_sloppy.metrics.principal_directions import (
    FLOOR,
    PrincipalDirections,
    principal_directions,
    squared_distance,
    tail_share,
)


def rows(n: int = 300, d: int = 6, seed: int = 0) -> torch.Tensor:
    """Correlated columns of different scales."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(50), dtype=torch.float64)
    return torch.randn(n, d, generator=rng, dtype=torch.float64) @ mixing * torch.logspace(-2, 3, d) + 1e3


def directions(values: torch.Tensor) -> PrincipalDirections:
    moments = InputMoments(sync_on_compute=False)
    moments.update(values)
    return principal_directions(moments.compute())


def test_the_energies_of_the_directions_add_up_to_the_whole():
    found = directions(rows())
    fresh = found.standardised(rows(seed=1))
    energies = found.energies(fresh)
    np.testing.assert_allclose(energies.sum(1), fresh.square().sum(1), rtol=1e-12)
    for leading in range(1, 6):
        head = energies[:, :leading].sum(1) / energies.sum(1)
        np.testing.assert_allclose(tail_share(energies, leading) + head, 1.0, rtol=1e-12)


def test_the_squared_distance_is_that_of_mahalanobis_with_mean_d_on_the_training_rows():
    values = rows()
    found = directions(values)
    squares = squared_distance(found.energies(found.standardised(values)), found.variances)
    centred = values - values.mean(0)
    inverse = torch.linalg.inv(centred.T @ centred / len(values))
    np.testing.assert_allclose(squares, ((centred @ inverse) * centred).sum(1), rtol=1e-9)
    assert float(squares.mean()) == pytest.approx(6, rel=1e-12)
    np.testing.assert_allclose(found.energies(found.standardised(values)).mean(0), found.variances, rtol=1e-10)


def test_a_copied_column_adds_nothing_to_the_distance_until_it_differs():
    values = rows()
    repeated = torch.cat([values, values[:, :1] * 3], dim=1)
    found = directions(repeated)
    squares = squared_distance(found.energies(found.standardised(repeated)), found.variances)
    assert float(squares.mean()) == pytest.approx(6, rel=1e-6)
    other = repeated[:1].clone()
    other[0, 6] += float(found.deviation[6])
    change = squared_distance(found.energies(found.standardised(other)), found.variances) - squares[:1]
    # Half of the step's energy is in the direction without variance: 0.5 / 1e-6.
    assert float(change) == pytest.approx(0.5 / FLOOR, rel=0.02)


def test_constant_columns_have_no_energy():
    values = torch.cat([rows(), torch.full((300, 1), 7.0, dtype=torch.float64)], dim=1)
    found = directions(values)
    assert len(found.variances) == 6
    moved = values.clone()
    moved[:, 6] = 9.0
    assert torch.equal(found.energies(found.standardised(moved)), found.energies(found.standardised(values)))


def test_the_tail_is_what_comes_after_95_percent_of_the_trace():
    found = directions(rows())
    sums = found.variances.cumsum(0) / found.variances.sum()
    assert sums[found.leading - 1] >= 0.95 > (sums[found.leading - 2] if found.leading > 1 else 0.0)
    assert found.tail == 6 - found.leading
    # Columns that all count the same have no tail, and neither has one column with its copy: nothing lies there.
    assert directions(torch.cat([torch.eye(3), -torch.eye(3)]).double()).tail == 0
    line = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    assert directions(torch.cat([line, 2 * line], dim=1)).tail == 0
    assert bool(tail_share(torch.ones(3, 2), 2).isnan().all())
    assert tail_share(torch.zeros(1, 2), 1).tolist() == [0.0]


def test_about_a_fifth_of_the_rows_gives_the_edges_whatever_the_batches():
    chosen = gives_edges(torch.arange(10_000))
    assert 1_880 <= int(chosen.sum()) <= 2_120
    for period in (2, 3, 5, 7, 24):
        assert all(0.13 < float(chosen[start::period].double().mean()) < 0.27 for start in range(period))
    values = rows(400)
    one, many = EnergyBinsReader(4), EnergyBinsReader(4)
    one.add(values, torch.arange(400))
    for part in torch.split(torch.arange(400), 37):
        many.add(values[part], part)
    np.testing.assert_allclose(one.finish().edges, many.finish().edges, rtol=1e-9)


def test_fresh_rows_fall_into_each_bin_equally_often():
    """Many columns for the rows: with edges from the rows of the moments, nearly all would be in the highest bin."""
    rng = torch.Generator().manual_seed(3)
    train, fresh = torch.randn(600, 100, generator=rng), torch.randn(4000, 100, generator=rng)
    reader = EnergyBinsReader(4)
    reader.add(train, torch.arange(600))
    places, _ = reader.finish().placed(fresh)
    for place in places:
        parts = torch.bincount(place, minlength=5) / 4000
        assert parts[4] == 0
        assert float((parts[:4] - 0.25).abs().max()) < 0.1  # 120 rows give the edges


def test_quantile_edges_are_between_ranks():
    values = torch.tensor([[5.0, 1.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    assert quantile_edges(values, 2).tolist() == [[3.0], [20.0]]
    assert quantile_edges(values, 4).tolist() == [[1.0, 3.0, 5.0], [10.0, 20.0, 30.0]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.randn(30, 2), "at least 50 training rows"),
        (torch.ones(60, 2), "All 2 columns of the training inputs are constant"),
        (torch.full((60, 2), torch.nan), "NaN or infinite"),
    ],
)
def test_refusals_say_what_to_do(values, said):
    reader = EnergyBinsReader(5)
    with pytest.raises(ConfigurationError, match=said):
        reader.add(values, torch.arange(len(values))) or reader.finish()
    with pytest.raises(ConfigurationError, match="pass 2 to 100"):
        EnergyBinsReader(1)
