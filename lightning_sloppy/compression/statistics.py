"""What the layers of a module see on batches: one pass, streaming moments in float64, in eval mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.compression.low_rank import (
    Directions,
    directions_from_inputs,
    directions_from_outputs,
    participation_ratio,
)
from lightning_sloppy.compression.matrix_layers import Convolution, Layer, Transposed
from lightning_sloppy.display import Progress, untold
from lightning_sloppy.errors import ConfigurationError, SloppyError
from lightning_sloppy.evaluation.batches import Batch, as_pair, private, to_device
from lightning_sloppy.evaluation.calling import Caller
from lightning_sloppy.evaluation.preserve import preserved
from lightning_sloppy.inputs.moments import InputMoments, Moments, unpacked
from lightning_sloppy.inputs.rows import MAX_FEATURES

READ = frozenset({"weight", "bias", "in_features", "out_features", "in_channels", "out_channels", "kernel_size"})
"""Attributes of a layer that the two layers in its place do not have."""

Finite = list[tuple[str, Tensor]]
"""For each call of a layer in a batch its name, and whether its inputs and outputs are finite, on their device."""


class ForwardError(ConfigurationError):
    """The module given does not run on a batch."""


@dataclass
class Seen:
    """What one layer saw.

    Attributes:
        layer: The layer.
        inputs: Moments of its inputs; of a convolution, of its input channels at each position.
        outputs: Moments of the outputs of a convolution, or of a linear layer with too many inputs.
        calls: Number of calls.
        reason: Why it cannot be replaced, by how it was called; empty if it can.
    """

    layer: Layer
    inputs: InputMoments = field(default_factory=lambda: InputMoments(sync_on_compute=False))
    outputs: InputMoments = field(default_factory=lambda: InputMoments(sync_on_compute=False))
    calls: int = 0
    reason: str = ""

    @property
    def effective_rank(self) -> float | None:
        """Participation ratio of its inputs; None where it is not known."""
        return participation_ratio(unpacked(self.inputs.packed)) if self.inputs.num_features else None

    @property
    def moments(self) -> Moments | None:
        """The moments that its directions come from; None if it was not called."""
        held = self.outputs if self.outputs.num_features else self.inputs
        return unpacked(held.packed) if held.num_features else None

    @property
    def num_rows(self) -> int:
        """Rows that its directions come from: samples times positions."""
        moments = self.moments
        return 0 if moments is None else moments.num_samples

    def directions(self) -> Directions:
        """The directions of its outputs."""
        if self.outputs.num_features:
            return directions_from_outputs(self.layer.module, unpacked(self.outputs.packed))
        return directions_from_inputs(self.layer.module, unpacked(self.inputs.packed))


def see(module: nn.Module, layers: Sequence[Layer], batches: Iterable[Any], tell: Progress = untold) -> list[Seen]:
    """Run a module on batches and take the moments of its layers.

    Args:
        module: A copy that may be written to: its parameters lose ``requires_grad``, its layers get hooks.
        layers: The layers.
        batches: As for :func:`~lightning_sloppy.compression.compressing.compress`.
        tell: Told of each batch.

    Raises:
        ConfigurationError: If there is no batch, a forward fails, or an activation is not finite.
    """
    seen = [Seen(layer) for layer in layers]
    module.requires_grad_(False)  # no graph is built, while a forward may still differentiate in its inputs
    for child in module.modules():
        if isinstance(child, nn.TransformerEncoder):
            child.use_nested_tensor = False  # hooks turn off the fast path, and only that takes nested tensors
    finite: Finite = []
    handles = [handle for each in seen for handle in _watch(each, finite)]
    count, total = 0, number_of(batches)
    try:
        with preserved(module):
            run = runner(module)
            for batch in pairs(batches, module):
                tell("reading batches", count, total)
                try:
                    run(batch)
                except ForwardError:
                    _refuse_not_finite(finite)  # which may be why it failed
                    raise
                _refuse_not_finite(finite)
                finite.clear()
                count += 1
    finally:
        for handle in handles:
            handle()
    if not count:
        raise ConfigurationError("The batches are empty; pass at least one batch of inputs, such as a DataLoader.")
    return seen


def number_of(batches: Iterable[Any]) -> int:
    """How many batches there are; 0 if that is not known before they are read."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


def pairs(batches: Iterable[Any], module: nn.Module) -> Iterator[Batch]:
    """The batches as inputs and targets, one by one.

    Raises:
        ConfigurationError: If they can be read only once.
    """
    if isinstance(batches, Iterator):
        raise ConfigurationError(
            "The batches are read more than once, but a generator or iterator was given; pass a list or a DataLoader."
        )
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ConfigurationError(
            f"batches must be a list of batches or a DataLoader, but a {type(batches).__name__} was given; for one "
            "batch pass [batch]."
        )
    for batch in batches:
        yield as_pair(batch, module=module)


def runner(module: nn.Module) -> Callable[[Batch], Any]:
    """A function that runs a module on the inputs of a batch.

    Raises:
        ForwardError: In the function, if ``forward`` fails. If memory does not suffice, the error of torch is raised.
    """
    caller = Caller(module)
    weights = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    device = weights[0].device if weights else torch.device("cpu")
    dtype = reduce(torch.promote_types, (parameter.dtype for parameter in weights)) if weights else torch.float32

    def run(batch: Batch) -> Any:
        inputs = private(to_device(batch, device, dtype))[0]
        try:
            with quiet():
                return caller.call(lambda arguments, keywords: module(*arguments, **keywords), inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except SloppyError as error:  # a part of this package in the module: its sentence says what to do
            raise ForwardError(str(error), cause=error.cause) from error
        except Exception as error:
            raise ForwardError(
                f"forward of {type(module).__name__} failed on a batch ({type(error).__name__}: {error}); pass batches "
                "whose inputs forward takes."
            ) from error

    return run


def _watch(seen: Seen, finite: Finite) -> list[Callable[[], None]]:
    """Take moments at every call of a layer, and notice who reads its weight without calling it."""
    child = seen.layer.module
    inside = False
    kind = type(child)

    def before(_: nn.Module, __: Any) -> None:
        nonlocal inside
        inside = True

    def after(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], outputs: Any) -> None:
        nonlocal inside
        _take(seen, [*arguments, *keywords.values()], outputs, finite)
        inside = False

    def read(self: nn.Module, name: str) -> Any:
        if name in READ and not inside and not seen.reason:
            seen.reason = f"forward reads its {name} without calling it"
        return kind.__getattribute__(self, name)

    handles = [child.register_forward_pre_hook(before), child.register_forward_hook(after, with_kwargs=True)]
    child.__class__ = type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})

    def back() -> None:
        child.__class__ = kind

    return [back, *(handle.remove for handle in handles)]


def _take(seen: Seen, arguments: list[Any], outputs: Any, finite: Finite) -> None:
    seen.calls += 1
    if seen.reason:
        return
    if len(arguments) != 1:
        seen.reason = f"called with {len(arguments)} arguments"
        return
    inputs = arguments[0]
    if any(not isinstance(each, Tensor) or each.is_nested for each in (inputs, outputs)):
        seen.reason = "called with something else than dense tensors"
        return
    layer = seen.layer.module
    if isinstance(layer, (*Convolution, *Transposed)):
        channels = -(len(layer.kernel_size) + 1)
        inputs, outputs = inputs.movedim(channels, -1), outputs.movedim(channels, -1)
        wanted = [(seen.inputs, inputs), (seen.outputs, outputs)]
    else:
        few = inputs.shape[-1] <= MAX_FEATURES
        wanted = [(seen.inputs, inputs)] if few else [(seen.outputs, outputs)]
    finite.append((seen.layer.name, torch.isfinite(outputs).all() & torch.isfinite(inputs).all()))
    if wanted[-1][1].shape[-1] > MAX_FEATURES:
        seen.reason = f"more than {MAX_FEATURES:,} inputs and outputs"
        return
    for held, rows in wanted:
        if rows.numel() and rows.shape[-1] <= MAX_FEATURES:
            held.add(rows.detach().reshape(-1, rows.shape[-1]))


def _refuse_not_finite(finite: Finite) -> None:
    """Check all calls of a batch at once, so that the host waits for the device once a batch.

    Raises:
        ConfigurationError: Names the first layer with inputs or outputs that are not finite.
    """
    if not finite:
        return
    device = finite[0][1].device
    known = torch.stack([each.to(device) for _, each in finite]).tolist()
    wrong = next((name for (name, _), fine in zip(finite, known, strict=True) if not fine), None)
    if wrong is not None:
        raise ConfigurationError(
            f"Layer {wrong!r} has inputs or outputs that are not finite on the batches; mend the weights or the data.",
            cause="not_finite",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's warning that ``self.log`` in a forward has no Trainer: nothing is to be logged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*self\.log.*")
        yield
