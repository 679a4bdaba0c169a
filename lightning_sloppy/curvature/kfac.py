"""Kronecker factors of the Gauss-Newton matrix, layer by layer: KFAC-expand and KFAC-reduce.

A linear layer or a convolution multiplies inputs a_it by its weight, at T positions of sample i: at one as a rule, else
at tokens, pixels, images, or calls, where a forward calls it several times. With the gradients l_irt of what comes out,
pulled back from the cotangents c_ir of the sample (:mod:`~lightning_sloppy.curvature.cotangents`), the block of the
weight in the Gauss-Newton matrix is ``(1/W) sum_ir g_ir g_ir^T`` with ``g_ir = sum_t l_irt x a_it``; w_i is the weight
of a sample in the loss, and W that of the probe. Two approximations replace it by one Kronecker product ``B x A``:

* "expand": each position counts as a sample, ``B = (1/W) sum_irt l_irt l_irt^T`` and
  ``A = sum_it w_i a_it a_it^T / sum_it w_i``.
* "reduce": positions are put together first, ``B = (1/W) sum_ir (sum_t l_irt)(sum_t l_irt)^T`` and
  ``A = (1/W) sum_i w_i m_i m_i^T`` with the mean input ``m_i = (1/T) sum_t a_it``.

A bias is a weight of the input 1, so its factors are B and [[1]]; by "reduce" that is its block itself.

At one position both are the factors of Martens and Grosse (ICML 2015): exact for a single sample, and for deep linear
networks with squared error (Bernacchia, Lengyel and Hennequin, NeurIPS 2018). At several positions (Eschenhagen, Immer,
Turner, Schneider and Hennig, NeurIPS 2023, arXiv 2311.00636, section 3) those of deep linear networks are exact by
"expand" where every position has a loss of its own (proposition 1), and by "reduce" where the outputs are means or sums
over the positions (proposition 2). Of convolutions "expand" is what Grosse and Martens (ICML 2016) do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.arguments import one_of
from lightning_sloppy.curvature.cotangents import Fisher, cotangents
from lightning_sloppy.curvature.cut_graphs import refuse_cut_graphs
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.gram.calls import Call, ConvolutionCall, PositionCall
from lightning_sloppy.curvature.gram.check import UNUSED, Recording, Served, served, unreliable
from lightning_sloppy.curvature.gram.matrix import check_samples_apart
from lightning_sloppy.curvature.gram.outer_products import chunks
from lightning_sloppy.curvature.kept_graph import need_outputs
from lightning_sloppy.curvature.micro_batches import divided, divisible
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, collected, private, sample_count
from lightning_sloppy.evaluation.mean_weights import checked_reduction_of
from lightning_sloppy.evaluation.nests import map_tensors
from lightning_sloppy.evaluation.objective import Loss, Objective
from lightning_sloppy.evaluation.preserve import preserved
from lightning_sloppy.evaluation.stand_ins import unwrapped

Positions = Literal["expand", "reduce"]
"""What becomes of the positions of a layer."""

Factors = tuple[Tensor, Tensor]
"""Of the rows of a parameter and of its columns: ``rows x columns`` stands for its block."""

EXACT = Fisher("exact")

LARGEST_FACTOR = 2_048
"""Rows or columns of a factor: a larger one is slow to decompose, and 32 MiB in float64."""

LARGEST_WIDTH = 4_096
"""Outputs of a sample, positions included, up to which the curvature of the loss in them is formed: 128 MiB."""

PATCH_NUMBERS = 2**22
"""Numbers of the patches that are cut out of images at a time."""

CURVATURE_NUMBERS = 2**24
"""Numbers of that curvature, of all samples together; batches are cut into pieces that stay below."""


def kronecker_factors(
    module: nn.Module,
    loss_fn: Loss,
    batches: Iterable[Any],
    *,
    positions: Positions = "expand",
    fisher: Fisher = EXACT,
) -> tuple[list[Factors | None], list[int]]:
    """Compute B and A of every linear layer and convolution, whose Gauss-Newton block is approximately ``B x A``.

    The exact curvature of the loss with respect to the outputs is used. It takes one backward per batch and direction
    (class).

    Args:
        module: Any module. It is evaluated in eval mode and not changed.
        loss_fn: ``loss_fn(outputs, targets)``, twice differentiable in the outputs. The factors are those of the mean
            over all samples, even if the loss is a sum.
        batches: Re-iterable of ``(inputs, targets)``, as for :func:`lightning_sloppy.hessian_spectrum`.
        positions: "expand" or "reduce", as above. With one position they are the same. Use "expand" for losses per
            position, as in language models, and "reduce" for outputs that are means over positions.
        fisher: Fisher matrix to use instead of the exact one. "sampled" takes ``labels`` backwards.

    Returns:
        For each trainable parameter tensor, in order, the factor of its rows and that of its columns, or None, and its
        number of entries: what :func:`lightning_sloppy.posteriors.kronecker_posterior` takes. A weight (o, i, ...) has
        B (o, o) and A (i ..., i ...); one that is stored as (i, o), for ``x @ W``, has A and B; a bias has B and [[1]].
        All on the device of the module, in its data type, at least float32. Weight and bias of one layer share B.

        The calls of a layer or of a tied weight are positions. None stands for every other parameter: of norms,
        embeddings, grouped and transposed convolutions, complex layers, and layers of more than 2,048 inputs (patches
        included) or outputs; for a weight that is used in another way as well, such as that of an embedding; where a
        layer sees the samples in another order than the batch has them; and for what the outputs do not depend on.

    Raises:
        ConfigurationError: For an unknown word, no samples or none that weighs anything, outputs that are not finite or
            have no row for each sample, a norm that uses the statistics of the batch, or, in the exact case,
            more than 4,096 outputs of a sample.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> batch = (torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1))
    >>> [(rows, columns)], sizes = kronecker_factors(layer, nn.functional.mse_loss, [batch])
    >>> round(float(rows), 4), columns  # the Hessian of the loss, and (1/N) x^T x
    (2.0, tensor([[0.5000, 0.0000],
            [0.0000, 4.5000]]))
    """
    one_of("positions", positions, Positions)
    module = unwrapped(module)
    objective = Objective(module, loss_fn)
    layout = ParameterLayout.of(module)
    with preserved(module):
        held = objective.located(objective.prepare(collected(batches, None, module)))
        checked_reduction_of(objective, held)
        found = factors_of(objective, layout, held, positions=positions, fisher=fisher)
    return found, [shape.numel() for shape in layout.shapes]


def factors_of(
    objective: Objective,
    layout: ParameterLayout,
    batches: list[Batch],
    *,
    positions: Positions = "expand",
    fisher: Fisher = EXACT,
) -> list[Factors | None]:
    """Compute the factors on prepared batches, for the parameters of a layout; see :func:`kronecker_factors`.

    Raises:
        UnsupportedError: If the loss is not known as a function of the outputs.
        ConfigurationError: As for :func:`kronecker_factors`.
    """
    need_outputs(objective)
    check_samples_apart(objective.module)
    total = objective.total_weight(batches)
    if not total > 0:
        raise ConfigurationError(
            "Kronecker factors are means over samples, but all samples of the batches have weight zero; pass samples "
            "with valid targets."
        )
    leaves = layout.leaves(objective.module, objective.dtype)
    with double_backward(objective.module):
        refuse_cut_graphs(objective, layout, batches)
        sums = objective.swapped(leaves, lambda: _summed(objective, leaves, batches, positions, fisher))
    return sums.factors(layout.names, total)


@dataclass(frozen=True)
class _Role:
    """What a parameter is in a forward.

    Attributes:
        calls: The calls that it goes into, by their number.
        transposed: Of a weight, whether it is stored as (inputs, outputs); of a bias None.
    """

    calls: tuple[int, ...]
    transposed: bool | None


@dataclass
class _Sums:
    """Sums over samples towards the factors, for each set of calls that some parameter goes into.

    Attributes:
        objective: Module and loss.
        positions: "expand" or "reduce".
        roles: Of the parameters that have factors, by name.
        left: Sum of ``l l^T``, float64.
        right: Sum of ``w a a^T``, float64, where there is a weight.
        counts: Sum of the w in it.
    """

    objective: Objective
    positions: Positions
    roles: dict[str, _Role] = field(default_factory=dict)
    left: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    right: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    counts: dict[tuple[int, ...], float] = field(default_factory=dict)

    def factors(self, names: Sequence[str], total: float) -> list[Factors | None]:
        """Of the rows and of the columns of parameters; those of one set of calls have the same ones."""
        # Apple's devices have no float64, so the sums are elsewhere.
        device, dtype = self.objective.device, self.objective.dtype
        outputs = {calls: (part / total).to(dtype).to(device) for calls, part in self.left.items()}
        inputs = {calls: (part / self.counts[calls]).to(dtype).to(device) for calls, part in self.right.items()}
        found: list[Factors | None] = []
        for name in names:
            role = self.roles.get(name)
            if role is None or role.calls not in outputs:
                found.append(None)
            elif role.transposed is None:
                found.append((outputs[role.calls], torch.ones(1, 1, dtype=dtype, device=device)))
            else:
                pair = outputs[role.calls], inputs[role.calls]
                found.append((pair[1], pair[0]) if role.transposed else pair)
        return found

    def look(self, recording: Recording, leaves: Mapping[str, Tensor], known: Served, *, begins: bool) -> None:
        """Note what the parameters are; where these samples do not tell, or something else, there are no factors."""
        structure = recording.take_axes(known.axes)
        if structure is None:
            self.roles.clear()
            return
        wrong = set() if structure in known.checked else unreliable(recording, leaves)
        for name, leaf in leaves.items():
            role = None if name in wrong else _role(leaf, recording.calls)
            if role is not None and begins:
                self.roles[name] = role
            elif role is None or self.roles[name] != role:
                self.roles.pop(name, None)

    def add(self, recording: Recording, directions: Tensor, weights: Tensor) -> None:
        """Add what some samples tell.

        Args:
            recording: Of n samples.
            directions: Their cotangents, (R, n, D).
            weights: Their weights, (n,).
        """
        if not bool(weights.any()):
            return
        together = {role.calls for role in self.roles.values()}
        with_weight = {role.calls for role in self.roles.values() if role.transposed is not None}
        calls = {
            number: call
            for number, call in enumerate(recording.calls)
            if isinstance(call, PositionCall) and any(number in numbers for numbers in together)
        }
        used: dict[tuple[int, ...], list[PositionCall]] = {}
        # Cross-entropy does not change when all scores do: a direction is zero, and of a linear loss all are.
        for direction in [each for each in directions if bool(each.any())] or directions[:1]:
            parts = grad([recording.rows], [call.output for call in calls.values()], [direction], retain_graph=True)
            # A call that no output depends on is no position.
            slopes = {number: part for number, part in zip(calls, parts, strict=True) if part is not None}
            for numbers in together:
                reached = [number for number in numbers if number in slopes]
                if reached:
                    used[numbers] = [calls[number] for number in reached]
                    self._add_left(numbers, used[numbers], [slopes[number] for number in reached], recording.count)
        for numbers, positioned in used.items():
            if numbers in with_weight:
                self._add_right(numbers, positioned, weights)

    def _add_left(
        self, numbers: tuple[int, ...], calls: Sequence[PositionCall], slopes: Sequence[Tensor], count: int
    ) -> None:
        sides = [call.left([slope], count) for call, slope in zip(calls, slopes, strict=True)]
        rows = torch.cat([side.data[:, 0, 0] for side in sides if side is not None], dim=1)
        rows = rows.flatten(0, 1) if self.positions == "expand" else rows.sum(1)
        _add(self.left, numbers, rows.T @ rows)

    def _add_right(self, numbers: tuple[int, ...], calls: Sequence[PositionCall], weights: Tensor) -> None:
        sides = [side for call in calls if (side := call.right(len(weights))) is not None]
        positions = sum(side.positions for side in sides)
        # Some samples at a time: patches take as many times the memory of an image as they have entries.
        for samples in chunks(len(weights), positions * sides[0].width, PATCH_NUMBERS):
            seen = torch.cat([side.block(samples)[:, 0, 0] for side in sides], dim=1)
            seen = seen if self.positions == "expand" else seen.mean(1, keepdim=True)
            weighted = seen * weights[samples, None, None]
            _add(self.right, numbers, weighted.flatten(0, 1).T @ seen.flatten(0, 1))
        terms = positions if self.positions == "expand" else 1
        self.counts[numbers] = self.counts.get(numbers, 0.0) + float(weights.sum()) * terms


def _add(sums: dict[tuple[int, ...], Tensor], numbers: tuple[int, ...], part: Tensor) -> None:
    wide = part.cpu().double() if part.device.type == "mps" else part.double()
    if numbers in sums:
        sums[numbers] += wide
    else:
        sums[numbers] = wide


def _summed(
    objective: Objective, leaves: Mapping[str, Tensor], batches: list[Batch], positions: Positions, fisher: Fisher
) -> _Sums:
    """The sums over all batches."""
    sums = _Sums(objective, positions)
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    _examined(objective, objective.output_values(values, private(batches[0])[0]), batches[0])
    known = served(objective, leaves, max(batches, key=sample_count))
    names = [name for name, path in known.paths.items() if path != UNUSED]
    first, begins = fisher.first, True
    for recording, batch in _pieces(objective, leaves, batches, fisher) if names else ():
        sums.look(recording, {name: leaves[name] for name in names}, known, begins=begins)
        names, begins = list(sums.roles), False
        if not names:
            break
        rows, outputs = recording.rows.detach(), map_tensors(Tensor.detach, recording.outputs)
        directions = cotangents(objective, fisher, rows, outputs, batch, first)
        sums.add(recording, directions, objective.sample_weights(batch).to(rows.device, rows.dtype))
        recording.release()
        first += len(rows)
    return sums


def _examined(objective: Objective, outputs: Any, batch: Batch) -> None:
    """Find out which outputs the loss uses; they must be numbers."""
    objective.examine(map_tensors(Tensor.detach, outputs), batch)
    if not bool(torch.isfinite(objective.rows(outputs, sample_count(batch))).all()):
        raise ConfigurationError(
            "Kronecker factors were asked for, but the outputs hold NaN or infinity; check the weights and the inputs."
        )


def _pieces(
    objective: Objective, leaves: Mapping[str, Tensor], batches: list[Batch], fisher: Fisher
) -> Iterator[tuple[Recording, Batch]]:
    """The batches run forward, in pieces whose curvature of the loss in the outputs fits into memory."""
    waiting = list(reversed(batches))
    while waiting:
        batch = waiting.pop()
        recording = Recording(objective, leaves, batch)
        _examined(objective, recording.outputs, batch)
        count, width = recording.rows.shape
        if fisher.kind == "exact":
            if width > LARGEST_WIDTH:
                raise ConfigurationError(
                    f"The exact curvature of the loss has {width:,} directions in the outputs of a sample, above "
                    f"{LARGEST_WIDTH:,}, and each takes a backward; pass fisher=Fisher('sampled'), which draws targets,"
                    " or do without Kronecker factors (spread='weights' of a certificate)."
                )
            size = max(1, CURVATURE_NUMBERS // width**2)
            if count > size and divisible(objective, leaves, [batch], size):
                recording.release()
                waiting += reversed(divided([batch], size))
                continue
        yield recording, batch


def _role(leaf: Tensor, calls: Sequence[Call]) -> _Role | None:
    """What a parameter is; None where its factors are not known."""
    numbers = tuple(number for number, call in enumerate(calls) if call.touches(leaf))
    found = [call for number in numbers if isinstance(call := calls[number], PositionCall) and _fits(call)]
    if not found or len(found) < len(numbers):
        return None
    kinds = {call.transposed if call.weight is leaf else None for call in found}
    return _Role(numbers, kinds.pop()) if len(kinds) == 1 else None


def _fits(call: PositionCall) -> bool:
    """Small enough, and without groups."""
    if call.weight is None or call.weight.ndim < 2 or (isinstance(call, ConvolutionCall) and call.groups > 1):
        return False
    return call.weight.numel() > 0 and max(call.weight.flatten(1).shape) <= LARGEST_FACTOR
