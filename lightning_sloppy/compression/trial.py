"""One trial of a compressed module before it is given away: it runs, and its forward calls the pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_sloppy.compression.copies import independent_copy
from lightning_sloppy.compression.statistics import ForwardError, pairs, runner
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.preserve import preserved, random_streams


def refuse_unused_pairs(made: nn.Module, replaced: Iterable[str], batches: Iterable[Any]) -> None:
    """Run a compressed module until each pair was called; usually that takes one batch.

    Args:
        made: The module with pairs.
        replaced: Names of the pairs.
        batches: As for :func:`~lightning_sloppy.compression.compressing.compress`.

    Raises:
        UnsupportedError: If that fails, or ``forward`` never calls a pair.
    """
    with random_streams():
        trial = independent_copy(made)
        waiting = set(replaced)
        for name in sorted(waiting):
            first: nn.Module = trial.get_submodule(name)[0]  # type: ignore[index]
            first.register_forward_hook(lambda *_, name=name: waiting.discard(name))
        with preserved(trial):
            run = runner(trial.requires_grad_(False))
            for batch in pairs(batches, trial):
                try:
                    run(batch)
                except ForwardError as error:
                    cause = error.__cause__ or error
                    raise UnsupportedError(
                        f"{type(made).__name__} does not run with pairs in the place of its layers "
                        f"({type(cause).__name__}: {cause}); its forward looks into one of them: call the layer only."
                    ) from error
                if not waiting:
                    return
    raise UnsupportedError(
        f"forward of {type(made).__name__} called layer {min(waiting)!r}, but not the nn.Sequential of two layers in "
        "its place; it seems to ask for the class of the layer, as by isinstance(layer, nn.Linear): call the layer "
        "without that."
    )
