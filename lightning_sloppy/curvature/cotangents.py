"""Cotangents of the outputs for the three kinds of Fisher matrix.

The model is ``p(y | f)`` proportional to ``exp(-loss(f, y))`` for outputs f. Each kind is a set of R cotangents c_ir of
the outputs of a sample, and ``F = (1/W) sum_i sum_r (J_i^T c_ir)(J_i^T c_ir)^T``. W is the weight of the whole probe:
its number of samples, or of valid tokens. The weight w_i of a sample is contained in its cotangents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.inner_loss import LossOfLogits, OneNumber
from lightning_sloppy.evaluation.nests import leaves_of, map_tensors, tensors_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.weights import KnownLoss, Likelihood, known_loss, term_weights
from lightning_sloppy.linalg.vectors import generator

Kind = Literal["empirical", "sampled", "exact"]
KINDS: tuple[Kind, ...] = ("empirical", "sampled", "exact")

NULL_DIRECTION = 1e-13
"""Directions with a smaller fraction of the largest eigenvalue of the loss's Hessian in the outputs are ignored."""


@dataclass(frozen=True)
class Fisher:
    """A kind of Fisher matrix.

    Attributes:
        kind: "empirical", "sampled" or "exact".
        labels: Number of targets drawn per sample (sampled kind).
        likelihood: The model of the loss (sampled kind). None: known for the losses of torch.
        seed: Seed of the drawn targets. Each sample has its own random stream, so the matrix does not depend on how the
            probe is divided into batches.
        first: Index of the first sample of the batches in the probe, if several ranks share it.
    """

    kind: Kind = "empirical"
    labels: int = 1
    likelihood: Likelihood | None = None
    seed: int = 0
    first: int = 0


def checked_fisher(kind: str, labels: int = 1, likelihood: str | None = None, seed: int = 0) -> Fisher:
    """Check the arguments and return the kind of Fisher matrix.

    Raises:
        ConfigurationError: If ``kind`` or ``likelihood`` is unknown, or ``labels`` is below 1.
    """
    if labels < 1:
        raise ConfigurationError(f"labels={labels} targets per sample were asked for; pass at least 1.")
    if likelihood not in (None, "categorical", "bernoulli", "gaussian"):
        raise ConfigurationError(
            f"likelihood={likelihood!r} is unknown; choose 'categorical', 'bernoulli', 'gaussian', or None."
        )
    return Fisher(checked_kind(kind), labels, likelihood, seed)  # type: ignore[arg-type]


def checked_kind(kind: str) -> Kind:
    """Return ``kind`` if it is known.

    Raises:
        ConfigurationError: If it is unknown.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise ConfigurationError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}.")


def pulled_cotangents(
    objective: Objective,
    parameters: dict[str, Tensor],
    batches: list[Batch],
    fisher: Fisher,
    known: Sequence[Any] = (),
) -> list[Tensor]:
    """Cotangents of every batch at these parameters, (R, n, D) each, with the same R.

    Args:
        objective: Module and loss.
        parameters: Table of parameters.
        batches: Prepared batches.
        fisher: Kind of Fisher matrix.
        known: Outputs of the first batches, if they were computed before.

    Raises:
        ConfigurationError: If the outputs do not have one row per sample.
    """
    pulled, first = [], fisher.first
    for index, batch in enumerate(batches):
        seen = known[index] if index < len(known) else objective.output_values(parameters, private(batch)[0])
        outputs = map_tensors(Tensor.detach, seen)
        objective.examine(outputs, batch)
        rows = objective.rows(outputs, sample_count(batch)).detach()
        pulled.append(cotangents(objective, fisher, rows, outputs, batch, first))
        first += sample_count(batch)
    # Sequences may differ in length between batches. Cotangents of zero do not change the matrix.
    most = max(len(directions) for directions in pulled)
    pulled = [torch.cat([d.new_zeros(most - len(d), *d.shape[1:]), d]) for d in pulled]
    if fisher.kind == "exact":
        # Cross-entropy does not change when all scores of a sample do: one direction of each sample is none at all.
        used = torch.stack([(d.abs() > 0).flatten(1).any(1) for d in pulled]).any(0)
        used[-1] = True
        pulled = [directions[used] for directions in pulled]
    return pulled


def cotangents(
    objective: Objective,
    fisher: Fisher,
    rows: Tensor,
    outputs: Any,
    batch: Batch,
    first: int = 0,
    known_weights: Tensor | None = None,
) -> Tensor:
    """Cotangents of a batch, shape (R, n, D).

    * "empirical": R = 1, the gradient of each sample's loss at its own target.
    * "sampled": R = labels, the same at targets drawn from the model (Kunstner, Hennig and Balles 2019), each term of
      a sample by the root of its weight, so that the expectation is the exact kind.
    * "exact": R = D, the columns of a factor S_i with ``S_i S_i^T`` the Hessian of the loss in the outputs, by
      ascending size; directions of negative curvature (non-convex losses) are dropped.

    Args:
        objective: Module and loss.
        fisher: Which.
        rows: (n, D), detached outputs that the loss uses.
        outputs: The whole of them, as ``forward`` gave it.
        batch: The batch.
        first: Number of its first sample in the probe.
        known_weights: Of its samples, (n,), on the CPU, where these outputs have been looked at before; None looks.
    """
    held = objective.sample_weights(batch) if known_weights is None else known_weights
    if known_weights is None and not bool(torch.isfinite(rows).all()):
        # Nothing can be drawn or factorised; NaN travels on and ends as Status.NON_FINITE.
        return torch.full_like(rows, torch.nan).unsqueeze(0)
    if not bool((held > 0).any()):
        return torch.zeros_like(rows).unsqueeze(0)
    if fisher.kind == "sampled":
        return _sampled(objective, fisher, rows, outputs, batch, first, held)
    weights, total = held.to(rows.device, rows.dtype), float(held.sum())
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        loss = objective.loss_of_rows(leaf, outputs, batch) * total
        if fisher.kind == "exact":
            return _hessian_factors(loss, leaf, objective)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return (gradient / weights.sqrt().clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(1)).unsqueeze(0)


def _hessian_factors(loss: Tensor, leaf: Tensor, objective: Objective) -> Tensor:
    if type(objective.loss_fn).__name__ == "NLLLoss" or getattr(objective.loss_fn, "__name__", "") == "nll_loss":
        raise ConfigurationError(
            "The Hessian of the negative log-likelihood with respect to log-probabilities is zero, so it does not give "
            "the exact Fisher matrix of the model; let forward return scores, and use cross_entropy."
        )
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    count, width = leaf.shape
    if not gradient.requires_grad:
        return torch.zeros(width, count, width, dtype=leaf.dtype, device=leaf.device)
    columns = []
    for index in range(width):
        unit = torch.zeros_like(leaf)
        unit[:, index] = 1
        columns.append(torch.autograd.grad(gradient, leaf, unit, retain_graph=True)[0])
    wide = torch.float32 if leaf.device.type == "mps" else torch.float64
    hessians = torch.stack(columns, dim=2).to(wide)
    if not bool(torch.isfinite(hessians).all()):
        return torch.full((width, count, width), torch.nan, dtype=leaf.dtype, device=leaf.device)
    values, vectors = torch.linalg.eigh((hessians + hessians.transpose(1, 2)) / 2)
    rounding = max(NULL_DIRECTION, float(torch.finfo(leaf.dtype).eps)) * values[:, -1:].clamp_min(0)
    values = values.where(values > rounding, torch.zeros_like(values))
    factors: Tensor = (vectors * values.sqrt().unsqueeze(1)).permute(2, 0, 1)
    return factors.to(leaf.dtype)


def _sampled(
    objective: Objective, fisher: Fisher, rows: Tensor, outputs: Any, batch: Batch, first: int, held: Tensor
) -> Tensor:
    """Gradients at targets drawn from the model of the loss, in closed form."""
    shapes = [t.shape for t in tensors_of(outputs) if t.numel() == rows.numel() and t.shape[:1] == rows.shape[:1]]
    own, same = objective.loss_fn, None
    known = known_loss(own)
    if isinstance(own, LossOfLogits):
        same = own
    elif known is None:
        same = objective.equal_of_logits(outputs, batch)
        known = known_loss(same)
        if fisher.likelihood is not None and (known is None or known.likelihood != fisher.likelihood):
            known, same = KnownLoss(fisher.likelihood), None
    if known is None or not shapes:
        raise ConfigurationError(
            f"kind='sampled' draws targets from the model, but the model of {objective.loss_fn!r} is unknown; pass "
            "likelihood='categorical', 'bernoulli' or 'gaussian' (one output tensor), or kind='empirical' or 'exact'."
        )
    leaf = rows.to("cpu", torch.float64).reshape(shapes[0]).requires_grad_()
    targets = map_tensors(Tensor.cpu, batch[1])
    with torch.enable_grad():
        if same is not None:
            scores, targets = same.arranged(leaf, leaves_of(targets)[same.labels])
        elif isinstance(objective.loss_fn, OneNumber):
            scores, targets = objective.loss_fn.arranged(leaf, targets)
        else:
            scores = leaf.movedim(-1, 1) if _has_classes_last(known, leaf, targets) else leaf
    found = _drawn(objective, fisher, known, scores.detach(), targets, held, first)
    if scores is not leaf:  # back to the places in which the outputs have them
        found = torch.stack([torch.autograd.grad(scores, leaf, each, retain_graph=True)[0] for each in found])
    return (found.reshape(fisher.labels, *rows.shape) / math.sqrt(fisher.labels)).to(rows.device, rows.dtype)


def _drawn(
    objective: Objective, fisher: Fisher, known: KnownLoss, scores: Tensor, targets: Any, held: Tensor, first: int
) -> Tensor:
    """Gradients in the scores at so many draws, (labels, n, ...)."""
    weights = term_weights(known, scores, targets)
    if known_loss(objective.loss_fn) is None:
        total = weights.reshape(len(scores), -1).sum(1)
        own = held / total.where(total > 0, torch.ones_like(total))
        weights = weights * own.reshape(-1, *[1] * (weights.ndim - 1))
    draws = torch.stack([_noise(known, fisher, first + i, scores.shape) for i in range(len(scores))], dim=1)
    if known.likelihood == "categorical":
        chances = scores.softmax(1).movedim(1, -1)
        picked = (chances.cumsum(-1) < draws.unsqueeze(-1) * chances.sum(-1, keepdim=True)).sum(-1)
        ones = torch.nn.functional.one_hot(picked.clamp_max(scores.shape[1] - 1), scores.shape[1])
        found = ((chances - ones) * weights.sqrt().unsqueeze(-1)).movedim(-1, 2)
    elif known.likelihood == "bernoulli":
        found = (scores.sigmoid() - (draws < scores.sigmoid()).double()) * weights.sqrt()
    else:
        # exp(-(f - y)^2) is a Gaussian of variance 1/2, and the gradient of the loss at a draw is 2 (f - y).
        found = draws * (2 * weights).sqrt()
    return found


def _has_classes_last(known: KnownLoss, scores: Tensor, targets: Any) -> bool:
    """Whether scores are (n, T, C) where losses of torch take (n, C, T)."""
    if known.likelihood != "categorical" or not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    return targets.shape == scores.shape[:-1] and targets.shape != scores.shape[:1] + scores.shape[2:]


def _noise(known: KnownLoss, fisher: Fisher, sample: int, shape: torch.Size) -> Tensor:
    """Uniform (normal for the Gaussian) numbers of one sample, (labels, terms...), float64."""
    rng = generator(fisher.seed * 1_000_003 + sample)
    terms = shape[2:] if known.likelihood == "categorical" else shape[1:]
    draw = torch.randn if known.likelihood == "gaussian" else torch.rand
    return draw(fisher.labels, *terms, generator=rng, dtype=torch.float64)
