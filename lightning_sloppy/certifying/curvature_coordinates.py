"""What the curvature of a fit's network gives a certificate: bases of layers, scales of a prior, leading directions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sloppy.curvature.diagonal import fisher_diagonal
from lightning_sloppy.curvature.kfac import factors_of
from lightning_sloppy.curvature.spectra import Solve, hessian_of
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import ALONE, gathered_over_ranks
from lightning_sloppy.evaluation.weights import known_loss
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.posteriors.coordinates import Basis, Coordinates, curvature_scales
from lightning_sloppy.posteriors.gaussian import double
from lightning_sloppy.posteriors.learning_plan import Spread
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import READ_CHUNK, SampleSource, curvature_indices
from lightning_sloppy.records import Spectrum

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def coordinates_of(
    trainer: Trainer,
    context: FitContext,
    objective: Objective,
    *,
    origin: Tensor,
    spread: Spread,
    certifying: SampleSource,
    held_out: SampleSource | None,
) -> Coordinates | None:
    """Coordinates of the weights around the prior's mean.

    With held-out samples everything comes from the network at ``origin`` on these, so that it may belong to the prior:
    scales by the curvature of each direction. Without, a Kronecker basis is that of the trained network on the
    certifying samples, which is the posterior's alone. What belongs to the prior is of the cross-entropy, whatever the
    training's loss: weights of classes counted from the training samples would tell of them.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        objective: Gives class scores.
        origin: w0, flat.
        spread: Of the plan.
        certifying: Samples that certify.
        held_out: Samples that the bound does not use; None: the prior is isotropic.

    Returns:
        The same on every rank, in float64; None where weights are their own coordinates.

    Raises:
        ConfigurationError: For a network without curvature at the origin.
    """
    if held_out is None and spread != "kronecker":
        return None
    found = None
    if context.ranks.rank == 0:
        source = certifying if held_out is None else held_out
        # As many at a time as the training has: the factors' graphs hold a backward for each class.
        batches = _batches(trainer, context, objective, source, source.batch_size)
        origin = origin.to(objective.device)
        at = context.layout.vector(context.module) if held_out is None else origin
        with context.layout.holding(context.module, at):
            found = _measured(
                context, objective, origin, batches, turned=spread == "kronecker", scaled=held_out is not None
            )
    if context.ranks.count > 1:
        found = gathered_over_ranks(None if found is None else found.to(torch.device("cpu"), torch.float64))[0]
        found = found.to(_exact_device(objective), torch.float64)
    return found


def leading_pairs(
    trainer: Trainer, context: FitContext, objective: Objective, certifying: SampleSource, count: int
) -> Spectrum | None:
    """The largest eigenpairs of the Hessian of the trained network on the certifying samples, the same on every rank.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        objective: Outputs and loss.
        certifying: Samples that certify.
        count: Of pairs; 0 for None.

    Raises:
        ConfigurationError: Where there are no eigenvectors.
    """
    if count == 0:
        return None
    found = None
    if context.ranks.rank == 0:
        batches = _batches(trainer, context, objective, certifying, READ_CHUNK)
        solve = Solve(k=count, which="largest", eigenvectors=True)
        found = hessian_of(objective, batches, solve=solve, rng=generator(0))
        if found.eigenvectors is None:
            raise ConfigurationError(
                f"directions={count} were asked for, but the Hessian of the trained network has no eigenvectors "
                f"({found.status.name.lower()}); leave directions 0."
            )
        found = replace(found, eigenvectors=found.eigenvectors.cpu())
    return found if context.ranks.count == 1 else gathered_over_ranks(found)[0]


def _batches(
    trainer: Trainer, context: FitContext, objective: Objective, source: SampleSource, size: int
) -> list[Batch]:
    return objective.prepare(context.samples.read(trainer, source, curvature_indices(len(source)), size))


def _measured(
    context: FitContext, objective: Objective, origin: Tensor, batches: list[Batch], *, turned: bool, scaled: bool
) -> Coordinates:
    layout, device = context.layout, _exact_device(objective)
    sizes = tuple(shape.numel() for shape in layout.shapes)
    entropy = Objective(objective.module, F.cross_entropy)
    curvatures: list[Tensor | None] = [None] * len(sizes)
    if scaled:
        curvatures = list(torch.split(double(fisher_diagonal(entropy, layout, batches), device), list(sizes)))
    bases: list[Basis | None] = [None] * len(sizes)
    if turned:
        known = known_loss(objective.loss_fn)
        # Log-probabilities are scores as well, and have a curvature only as such.
        scores = scaled or (known is not None and known.likelihood == "categorical")
        decomposed: dict[int, tuple[Tensor, Tensor]] = {}
        for place, pair in enumerate(factors_of(entropy if scores else objective.over(ALONE), layout, batches)):
            if pair is None:
                continue
            # Weight and bias of a layer share the factor of its outputs, and then also its eigenvectors.
            for factor in pair:
                if id(factor) not in decomposed:
                    decomposed[id(factor)] = torch.linalg.eigh(double(factor, device))
            (outputs, left), (inputs, right) = (decomposed[id(factor)] for factor in pair)
            curvatures[place] = (outputs.clamp(min=0.0)[:, None] * inputs.clamp(min=0.0)).reshape(-1)
            bases[place] = (left, None if len(layout.shapes[place]) == 1 else right)
    scales = curvature_scales(torch.cat([part for part in curvatures if part is not None])) if scaled else None
    return Coordinates(double(origin, device), sizes, tuple(bases), scales)


def _exact_device(objective: Objective) -> torch.device:
    """Where float64 is to be had."""
    return torch.device("cpu") if objective.device.type == "mps" else objective.device
