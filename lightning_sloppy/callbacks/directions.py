"""What lies along the stiffest directions: gradient, displacement, and the directions of the time before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_sloppy.analysis import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.measures.subspace import overlap, random_share, share_inside, sharpness
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.records import Estimate, Spectrum

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_BYTES = 256 * 1024**2
"""Memory that the eigenvectors of one measurement may take when nobody but these numbers needs them."""


class Directions:
    """Follows the top eigenspace from one measurement to the next; a resumed fit starts anew with a gap.

    The vectors of the last measurement stay on the CPU, k times the size of the model.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None

    @staticmethod
    def affordable(dim: int, k: int, dtype: torch.dtype) -> bool:
        """Whether k eigenvectors may be formed for these numbers alone."""
        return dim * k * dtype.itemsize <= MOST_BYTES

    def estimates(
        self, trainer: Trainer, context: FitContext, objective: Objective, batches: list[Batch], spectrum: Spectrum
    ) -> dict[str, Estimate]:
        """Numbers by name; those that have no meaning at this step are left out."""
        found: dict[str, Estimate] = {}
        rate = learning_rate(trainer)
        if rate is not None:
            found["sharpness"] = sharpness(rate, spectrum.largest)
        vectors = spectrum.eigenvectors
        if vectors is None or not spectrum.status.ok:
            return found
        found["subspace_baseline"] = Estimate(random_share(spectrum.dim, vectors.shape[1]).value)
        layout = ParameterLayout.of(context.module)  # layers may have thawed since the start
        gradient = share_inside(vectors, mean_gradient(objective, layout, batches))
        if gradient is not None:
            found["gradient_share"] = gradient
        if layout == context.layout:
            moved = layout.vector(context.module).to(vectors.device, vectors.dtype)
            displacement = share_inside(vectors, moved - context.start.to(vectors.device, vectors.dtype))
            if displacement is not None:
                found["displacement_share"] = displacement
        if self._previous is not None and self._previous.shape[0] == spectrum.dim:
            found["overlap"] = overlap(vectors, self._previous)
        fits = self.affordable(vectors.shape[0], vectors.shape[1], vectors.dtype)
        self._previous = vectors.cpu() if fits else None
        return found


def learning_rate(trainer: Trainer) -> float | None:
    """That of the only optimiser when all its groups share one, else None."""
    optimizers = trainer.optimizers
    if len(optimizers) != 1:
        return None
    rates = {float(group["lr"]) for group in optimizers[0].param_groups if "lr" in group}
    return rates.pop() if len(rates) == 1 else None
