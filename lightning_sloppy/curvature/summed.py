"""The spectrum of a sum over the probe, from that of the mean."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.weights import Reduction
from lightning_sloppy.records import Density, Estimate, Spectrum


def checked_reduction(reduction: str | None) -> None:
    """Check the choice.

    Raises:
        ConfigurationError: For an unknown one.
    """
    if reduction not in (None, "mean", "sum"):
        raise ConfigurationError(f"reduction={reduction!r} is unknown; choose 'mean', 'sum', or None.")


def reduced_as(spectrum: Spectrum, objective: Objective, batches: list[Batch], reduction: Reduction | None) -> Spectrum:
    """Convert the spectrum of a mean to that of a sum, if a sum is requested or is the reduction of the loss.

    The matrix of the sum is W times that of the mean, with W the weight of the probe.

    Args:
        spectrum: Spectrum of the mean loss over the probe.
        objective: Module and loss.
        batches: The probe.
        reduction: The requested reduction; None: that of the loss.
    """
    if (reduction or objective.reduction) == "mean":
        if objective.reduction == "mean":
            return spectrum
        said = "Mean over the probe of a loss that adds up its samples."
        return replace(spectrum, detail={**spectrum.detail, "reduction": said})
    total = objective.total_weight(batches)
    weights = torch.cat([objective.sample_weights(batch) for batch in batches]) if batches else torch.zeros(0)
    found = _times(spectrum, total, float(weights[: len(weights) // 2].sum()))
    said = (
        f"Sum over the probe, not the mean: every eigenvalue is {total:,.6g} times that of the mean loss. The "
        f"curvature scale z = epsilon / (2 (n - 1)) is for means: multiply it by {total:,.6g}, or pass "
        "reduction='mean'."
    )
    return replace(found, detail={**found.detail, "reduction": said})


def _times(spectrum: Spectrum, factor: float, half: float) -> Spectrum:
    """Multiply all eigenvalues by a factor, and those of the first half of the samples by the weight of that half."""
    detail = {
        name: float(value) * factor if name in ("loss", "tolerance") else value
        for name, value in spectrum.detail.items()
    }
    return replace(
        spectrum,
        eigenvalues=spectrum.eigenvalues * factor,
        residuals=spectrum.residuals * factor,
        largest=spectrum.largest * factor,
        largest_residual=spectrum.largest_residual * factor,
        smallest=spectrum.smallest * factor,
        smallest_residual=spectrum.smallest_residual * factor,
        density=None if spectrum.density is None else _density(spectrum.density, factor),
        trace=None if spectrum.trace is None else _estimate(spectrum.trace, factor),
        floor=spectrum.floor * factor,
        half_eigenvalues=None if spectrum.half_eigenvalues is None else spectrum.half_eigenvalues * half,
        layers={name: _times(layer, factor, half) for name, layer in spectrum.layers.items()},
        detail=detail,
    )


def _density(density: Density, factor: float) -> Density:
    return replace(
        density,
        diagonals=tuple(each * factor for each in density.diagonals),
        offdiagonals=tuple(each * factor for each in density.offdiagonals),
        nodes=density.nodes * factor,
        known=density.known * factor,
        known_residuals=density.known_residuals * factor,
    )


def _estimate(estimate: Estimate, factor: float) -> Estimate:
    return replace(
        estimate,
        value=estimate.value * factor,
        standard_error=estimate.standard_error * factor,
        truncation_error=estimate.truncation_error * factor,
    )
