"""How much of the gradient, the displacement and the previous top eigenspace lies in the top eigenspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_sloppy.analysis import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.measures.subspace import fraction_inside, overlap, random_fraction, sharpness
from lightning_sloppy.probing.probe import Probe
from lightning_sloppy.quantities import Quantity
from lightning_sloppy.records import Estimate, Spectrum

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_BYTES = 256 * 1024**2
"""Memory that the eigenvectors of one measurement may take if only these numbers need them."""

QUANTITIES = (
    Quantity(
        "gradient_fraction",
        "Fraction of the squared gradient norm in the space of the top k eigenvectors. If it is far above the "
        "baseline, the gradient lies mostly in a few directions of large curvature.",
        expert=True,
    ),
    Quantity(
        "displacement_fraction",
        "Fraction of the squared distance from the initial weights in the space of the top k eigenvectors. If it is "
        "far above the baseline, training moved the weights mostly in directions of large curvature.",
        expert=True,
    ),
    Quantity(
        "subspace_baseline",
        "k / p, the expected fraction for a random direction. Compare `gradient_fraction` and `displacement_fraction` "
        "with it.",
        once=True,
    ),
    Quantity(
        "overlap",
        "Overlap (0 to 1) between the spaces of the top eigenvectors of this and the previous measurement. Near 1, "
        "these directions no longer change. Missing at the first measurement and after a resume.",
        expert=True,
    ),
    Quantity(
        "sharpness",
        "Learning rate times largest eigenvalue. Gradient descent stays near 2, the edge of stability; with momentum "
        "beta near 2 (1 + beta). Adam has no such threshold. Missing if parameter groups have different rates.",
    ),
)
"""Quantities of the top eigenspace."""


class Directions:
    """Compares the top eigenspaces of successive measurements; a resumed fit starts with a gap.

    The vectors of the last measurement stay on the CPU. They take k times the size of the model.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None
        self._layout: ParameterLayout | None = None

    @staticmethod
    def affordable(dim: int, k: int, dtype: torch.dtype) -> bool:
        """Whether k eigenvectors may be formed for these numbers only."""
        return dim * k * dtype.itemsize <= MOST_BYTES

    def estimates(
        self,
        trainer: Trainer,
        probe: Probe,
        objective: Objective,
        batches: list[Batch],
        spectrum: Spectrum,
        parameters: Patterns,
    ) -> dict[str, Estimate]:
        """Numbers by name, without those that are undefined at this step.

        Args:
            trainer: The Trainer, for its learning rate.
            probe: Probe of the measurement.
            objective: The loss, summed over the ranks.
            batches: This rank's part of the probe samples.
            spectrum: Spectrum of the Hessian of the parameters that match the patterns.
            parameters: The patterns.
        """
        found: dict[str, Estimate] = {}
        rate = learning_rate(trainer)
        if rate is not None:
            found["sharpness"] = sharpness(rate, spectrum.largest)
        vectors = spectrum.eigenvectors
        if vectors is None or not spectrum.status.ok:
            return found
        found["subspace_baseline"] = Estimate(random_fraction(spectrum.dim, vectors.shape[1]).value)
        layout = ParameterLayout.of(probe.module, parameters)  # layers may have been unfrozen since the start
        gradient = fraction_inside(vectors, mean_gradient(objective, layout, batches))
        if gradient is not None:
            found["gradient_fraction"] = gradient
        start = probe.context.origin.weights_of(layout)
        if start is not None:
            moved = layout.vector(probe.module).to(vectors.device, vectors.dtype)
            displacement = fraction_inside(vectors, moved - start.to(vectors.device, vectors.dtype))
            if displacement is not None:
                found["displacement_fraction"] = displacement
        if self._previous is not None and self._layout == layout:  # pruning renames and reorders parameters
            found["overlap"] = overlap(vectors, self._previous)
        fits = self.affordable(vectors.shape[0], vectors.shape[1], vectors.dtype)
        self._previous, self._layout = vectors.cpu() if fits else None, layout
        return found


def learning_rate(trainer: Trainer) -> float | None:
    """That of the only optimiser when all its groups share one, else None."""
    optimizers = trainer.optimizers
    if len(optimizers) != 1:
        return None
    rates = {float(group["lr"]) for group in optimizers[0].param_groups if "lr" in group}
    return rates.pop() if len(rates) == 1 else None
