"""Read the training inputs once, by index, into moments of blocks of samples; every rank reads a part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import as_pair, rows_in
from lightning_sloppy.evaluation.calling import taken
from lightning_sloppy.evaluation.index_inputs import are_measurements
from lightning_sloppy.evaluation.nests import leaves_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.evaluation.sample_rows import located
from lightning_sloppy.inputs.incomplete import Missing
from lightning_sloppy.inputs.moment_blocks import AnyMoments, Gathered, MomentBlocks, number_of_blocks
from lightning_sloppy.inputs.nulls import MOST_DRAWN, shuffled
from lightning_sloppy.inputs.rows import as_rows
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.samples import READ_CHUNK, probe_indices
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_sloppy.probing.context import FitContext


FEW = 4
"""Samples on which the module is run to see how it uses integers."""


@dataclass(frozen=True)
class InputsRead:
    """The moments of the inputs of a fit, over all processes.

    Attributes:
        gathered: Of blocks of the samples.
        without: Of the same samples with each column shuffled, or None.
        shape: Of the inputs of one sample.
    """

    gathered: Gathered
    without: AnyMoments | None
    shape: tuple[int, ...]


def read_inputs(
    trainer: Trainer,
    context: FitContext,
    *,
    max_samples: int,
    seed: int,
    missing: Missing,
    resampled: bool,
    shuffles: bool,
    seen: Callable[[tuple[int, ...]], None],
    also: Callable[[Tensor], None] | None = None,
) -> InputsRead:
    """Read the training inputs.

    Args:
        trainer: The Trainer.
        context: Its fit.
        max_samples: Samples at most, drawn at random.
        seed: Of the draw and the shuffling.
        missing: What is done about missing values.
        resampled: Whether there are blocks for random halves.
        shuffles: Whether to gather shuffled columns as well, up to 2,048 features.
        seen: Told the shape of the inputs of one sample, as soon as it is known; may raise.
        also: Given the samples as well, (n, d) at a time.

    Raises:
        ConfigurationError: Inputs that are not one tensor of numbers.
    """
    device = trainer.strategy.root_device
    device = device if device.type == "cuda" else torch.device("cpu")  # NCCL gathers nothing else
    blocks, without = MomentBlocks(missing, device), MomentBlocks("error" if missing == "error" else "pairwise", device)
    rng = generator(seed + trainer.global_rank)
    source = context.samples.source(trainer)
    indices = probe_indices(len(source), max_samples, seed)
    total, rank, world = len(indices), trainer.global_rank, trainer.world_size
    own = indices[rank::world]
    count, position = 1, 0
    shape: tuple[int, ...] = ()
    numbers = False
    with source.untouched(), progress(trainer, f"Inputs: reading {total:,} samples", total=len(own)) as bar:
        for batch in source.chunks(own, READ_CHUNK):
            read = min(READ_CHUNK, len(own) - position)
            inputs = inputs_of(batch, context, read)
            if not position:
                shape = tuple(inputs.shape[1:])
                seen(shape)
                numbers = are_numbers(trainer, context, inputs)
            rows = as_rows(inputs.double() if numbers else inputs).to(device)
            count = number_of_blocks(total, rows.shape[1], resampled=resampled)
            edges = [block * total // count for block in range(count + 1)]
            # Blocks are by the place among the samples of all ranks, so that they hold the same on any number of ranks.
            places = [-(-(edge - rank) // world) - position for edge in edges]
            cuts = [min(max(place, 0), read) * len(rows) // read for place in places]
            with torch.no_grad():
                blocks.add(rows, range(count), cuts)
                if also is not None:
                    also(rows)
                if shuffles and rows.shape[1] <= MOST_DRAWN:
                    # Within a chunk: 1 / 1,024 of the correlations remain, far below the sampling noise.
                    without.deal(shuffled(rows, rng).to(device), 1)
            position += read
            bar.advance(len(rows))
    over_ranks = None if context.ranks.count == 1 else gathered_over_ranks
    if blocks.features is None and over_ranks is not None:
        count = 0  # a rank without samples learns below how many blocks the others have
    if over_ranks is not None:
        count = max(int(each) for each in over_ranks(count))
    gathered = blocks.gathered(count, over_ranks)
    null = None
    # The number of features is now known on every rank, so either all of them gather or none.
    if shuffles and gathered.features <= MOST_DRAWN:
        null = without.gathered(1, over_ranks).whole()
    return InputsRead(gathered, null, shape or (gathered.features,))


def inputs_of(batch: Any, context: FitContext, read: int) -> Tensor:
    """The inputs of a collated batch, (n, ...)."""
    pair = as_pair(batch, module=context.module, read=read)
    inputs = _only_tensor(taken(context.module, pair[0]))
    place = next(place for place, leaf in enumerate(leaves_of(pair[0])) if leaf is inputs)
    rows = rows_in(located([pair])[0])
    return inputs.movedim(rows.inputs[place] or 0, 0)  # a sequence may have time first


def are_numbers(trainer: Trainer, context: FitContext, inputs: Tensor) -> bool:
    """Whether inputs are integers or booleans that the module takes as numbers.

    Raises:
        ConfigurationError: The module takes them as places in a table, or (but for uint8, as images are) it runs
            neither with them nor with the same as floating-point numbers.
    """
    whole = trainer_internals.strategy_is_supported(trainer)  # else no process can run the module alone
    if inputs.is_floating_point() or inputs.is_complex() or not whole:
        return False
    plain = Objective(context.module, None)
    parameters = plain.copied_parameters()

    def forward(some: Tensor) -> Any:
        return plain.output_values(parameters, some)

    found = are_measurements(forward, inputs[:FEW].to(plain.device), plain.dtype)
    name = type(context.module).__name__
    if found is False:
        raise ConfigurationError(
            f"Inputs of type {inputs.dtype} are token ids or flags, whose moments mean nothing: {name}.forward chooses "
            "entries of a tensor by them, as an embedding layer does; measure without the input spectrum."
        )
    if found is None and inputs.dtype != torch.uint8:
        raise ConfigurationError(
            f"Inputs of type {inputs.dtype} may be token ids or measurements, and {name}.forward runs neither with "
            "them nor with floating-point numbers, so this cannot be told; if they are measurements, let the data set "
            "return them as floating-point numbers."
        )
    return inputs.dtype != torch.uint8


def _only_tensor(inputs: Any) -> Tensor:
    """The single input tensor, also if it is the only tensor in a list or a dict.

    Raises:
        ConfigurationError: For several tensors or none, and for packed sequences.
    """
    leaves = leaves_of(inputs)
    if len(leaves) == 1 and isinstance(leaves[0], Tensor):
        return leaves[0]
    many = f" with {len(leaves)} tensors" if len(leaves) > 1 else ""
    raise ConfigurationError(
        f"The input spectrum needs one tensor for each sample, but the inputs are a {type(inputs).__name__}{many}; "
        "use a data set whose inputs are a single tensor."
    )
