"""What cannot be told apart from the largest eigenvalue, and how far taking back its bias carries an error."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sloppy.inputs.largest_eigenvalue import LARGEST_FACTOR, correction_factor, equal_to_the_largest


def sample(population: np.ndarray, n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, len(population))) * np.sqrt(population)
    return np.linalg.eigvalsh(rows.T @ rows / n)[::-1]


def test_equal_ones_are_not_told_apart_and_different_ones_are() -> None:
    equal = [equal_to_the_largest(sample(np.repeat([5.0, 0.2], [6, 12]), 400, seed), 400) for seed in range(100)]
    assert np.mean(np.array(equal) == 6) >= 0.9
    assert {equal_to_the_largest(sample(np.array([5.0, 2.5, 1.0]), 400, seed), 400) for seed in range(20)} == {1}


@pytest.mark.parametrize("largest", [2.0, 3.0, 8.0])
def test_the_factor_is_that_of_the_spiked_model(largest: float) -> None:
    """Among unit ones an eigenvalue a is seen at ``a + g a / (a - 1)``, g = d / n (Baik and Silverstein 2006)."""
    n, d = 4_000, 800
    population = np.ones(d)
    population[0] = largest
    found = np.mean([correction_factor(sample(population, n, seed), 1, n) for seed in range(3)])
    ratio = d / n
    seen = largest + ratio * largest / (largest - 1)
    slope = largest / seen * (1 - ratio / (largest - 1) ** 2)
    assert found == pytest.approx(1 / slope, rel=0.05)


def test_inside_the_bulk_the_factor_is_bounded() -> None:
    values = np.linspace(1.02, 1.0, 300)
    assert correction_factor(values, 1, 100) == LARGEST_FACTOR
