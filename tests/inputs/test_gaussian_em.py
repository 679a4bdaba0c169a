"""The Gaussian model with missing values against the likelihood itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.gaussian_em import gaussian_em


def table(n: int, d: int, part: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + np.arange(d)
    gaps = rows.copy()
    gaps[rng.random(rows.shape) < part] = np.nan
    return rows, gaps


def log_likelihood(rows: np.ndarray, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Of what is observed, row by row."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        seen = torch.from_numpy(np.flatnonzero(~np.isnan(row)))
        if len(seen):
            values = torch.from_numpy(row)[seen]
            model = torch.distributions.MultivariateNormal(mean[seen], covariance[seen][:, seen])
            total = total + model.log_prob(values)
    return total


def test_complete_rows_give_mean_and_covariance() -> None:
    rows, _ = table(80, 5, 0.0)
    fit = gaussian_em(rows)
    np.testing.assert_allclose(fit.mean, rows.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(fit.covariance, np.cov(rows.T, bias=True), rtol=0, atol=1e-5)
    assert fit.converged


def test_the_gradient_of_the_likelihood_vanishes() -> None:
    _, gaps = table(120, 4, 0.25)
    fit = gaussian_em(gaps, tolerance=1e-10, ridge=1e-12, most_iterations=3_000)
    mean = torch.from_numpy(fit.mean).requires_grad_()
    covariance = torch.from_numpy(fit.covariance).requires_grad_()
    gradients = torch.autograd.grad(log_likelihood(gaps, mean, covariance), [mean, covariance])
    start = [torch.from_numpy(np.nanmean(gaps, axis=0)), torch.diag(torch.from_numpy(np.nanvar(gaps, axis=0)))]
    before = [part.clone().requires_grad_() for part in start]
    steep = torch.autograd.grad(log_likelihood(gaps, *before), before)
    for found in gradients:
        assert float(found.abs().max()) < 1e-6 * float(steep[1].abs().max())


def test_it_comes_nearer_to_the_truth_than_pairs_do() -> None:
    rows, gaps = table(4_000, 6, 0.5, seed=3)
    true = np.corrcoef(rows.T)
    pairs = np.ma.corrcoef(np.ma.masked_invalid(gaps), rowvar=False).filled()
    fit = gaussian_em(gaps, tolerance=1e-5)
    assert np.abs(fit.correlation - true).mean() < np.abs(pairs - true).mean()
    assert np.linalg.eigvalsh(fit.correlation)[0] > 0


def test_copies_and_rows_without_any_value_do_no_harm() -> None:
    _, gaps = table(60, 3, 0.2)
    gaps = np.column_stack([gaps, gaps[:, 0]])
    gaps[5] = np.nan
    fit = gaussian_em(gaps, tolerance=1e-6, most_iterations=500)
    assert fit.correlation[0, 3] == pytest.approx(1.0, abs=1e-4)
    assert np.isfinite(fit.covariance).all()


def test_an_iteration_that_is_cut_off_says_so() -> None:
    _, gaps = table(60, 4, 0.4)
    told = []
    fit = gaussian_em(gaps, tolerance=1e-12, most_iterations=3, advance=lambda: told.append(1))
    assert (fit.iterations, fit.converged, len(told)) == (3, False, 3)


def test_an_empty_column_is_refused() -> None:
    _, gaps = table(20, 3, 0.1)
    gaps[:, 1] = np.nan
    with pytest.raises(ConfigurationError, match="a value in every column"):
        gaussian_em(gaps)
