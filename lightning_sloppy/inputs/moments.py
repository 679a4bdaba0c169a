"""Streaming second moments of the inputs: one pass, float64, batches of any size, any number of ranks.

Every chunk of rows is centred on its own mean before it is multiplied, and chunks are joined by the update of Chan,
Golub and LeVeque (1983), so a mean of 1e6 beside a deviation of 1 costs no digits. All sums are taken relative to a
fixed ``shift``, a value of each column itself: a constant column then has a scatter of exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.rows import Array, as_rows, refuse_non_finite

CHUNK_BYTES = 8 * 1024**2
"""Size of the float64 copy of a chunk of rows: it stays in the cache of the processor from one step to the next."""

CHUNK_ROWS = 512
"""Rows of a chunk at least, so that adding the product of a wide chunk takes little beside the product itself."""

SYMMETRIC = 2_048
"""Most features for which the CPU takes half of a product and mirrors it: that needs memory for another matrix."""

SHIFT_ROWS = 64
"""Rows whose median becomes the shift: one outlying first row then does no harm."""


class Moments(NamedTuple):
    """The first two moments of n samples of d features, float64.

    Attributes:
        num_samples: n.
        mean: Column means, shape (d,).
        scatter: ``(X - mean)^T (X - mean)``, not divided by n, shape (d, d).
    """

    num_samples: int
    mean: Tensor
    scatter: Tensor


class InputMoments(Metric):
    """Count, mean and centred scatter of inputs of shape (n, ...), flattened to (n, d).

    One packed state of shape (d + 1, d + 1) holds all of them, since the scatter of two ranks can only be joined
    together with their means and counts: the scatter, in the last column the mean minus the shift, in the last row
    the shift, in the corner the count. It is (0, 0) until the first sample, so a rank without samples may take part.
    It lies on the device to which the metric was moved, else on that of the first batch, or on the CPU where that
    device has no float64 (MPS, to which the metric cannot be moved). Memory: ``8 (d + 1)^2`` bytes, and twice as much
    again for each rank while the ranks are joined.

    Args:
        sync_on_compute: Whether :meth:`compute` joins the ranks of a distributed run (then call it on each of them).

    >>> moments = InputMoments()
    >>> moments.update(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    >>> moments.update(torch.tensor([[5.0, 2.0]]))
    >>> moments.compute().scatter.round(decimals=9).tolist()
    [[8.0, 0.0], [0.0, 0.0]]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = True
    packed: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute, dist_sync_fn=gather_filled, compute_with_cache=False)
        self.add_state("packed", torch.zeros(0, 0, dtype=torch.float64), dist_reduce_fx=join_moments)

    @property
    def num_features(self) -> int | None:
        """Features d of one flattened input; None before the first sample."""
        return len(self.packed) - 1 if self.packed.numel() else None

    def update(self, inputs: Array) -> None:
        """Add a batch.

        Args:
            inputs: Floating-point or uint8 tensor or array of shape (n, ...); n = 0 adds nothing.

        Raises:
            ConfigurationError: No samples dimension, token ids (integers other than uint8, booleans), more than 8,192
                features, another number of features than before, or NaN or infinity. The moments are then unchanged.
        """
        rows = as_rows(inputs)
        if not len(rows):
            return
        if self.num_features not in (None, rows.shape[1]):
            raise ConfigurationError(
                f"The moments hold {self.num_features} features, but this batch has {rows.shape[1]} when flattened; "
                "give every input the same shape (resize, crop or pad)."
            )
        refuse_non_finite(rows)
        self.add(rows)

    def add(self, rows: Tensor) -> None:
        """Add rows (n, d), n > 0, that were checked: finite, and as wide as those before."""
        if self.num_features is None:
            self.packed = _started(rows, self.packed.device)
        size = max(CHUNK_ROWS, CHUNK_BYTES // (8 * rows.shape[1]))
        for chunk in torch.split(rows.to(self.packed.device), size):
            _add(self.packed, chunk)

    def compute(self) -> Moments:
        """The moments so far, over all ranks.

        Raises:
            ConfigurationError: No sample was seen on any rank.
        """
        if self.num_features is None:
            raise ConfigurationError("The moments of the inputs were asked for before any sample; update them first.")
        return unpacked(self.packed)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another instance (or of its ``metric_state``).

        Raises:
            ConfigurationError: When the numbers of features differ.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        other: Tensor = state["packed"]  # type: ignore[assignment]
        filled = [part for part in (self.packed, other.to(self.packed.device)) if part.numel()]
        if filled:
            self.packed = join_moments(_stacked(filled))
            self._update_count = max(1, self._update_count)


def gather_filled(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the packed states of all ranks and leave out those of ranks without samples.

    Raises:
        ConfigurationError: When the ranks saw different numbers of features.
    """
    gathered = gather_all_tensors(state, group)
    filled = [part for part in gathered if part.numel()] or gathered[:1]
    return list(_stacked(filled))


def unpacked(packed: Tensor) -> Moments:
    """The moments of a packed state."""
    scatter, offset, shift, count = parts_of(packed)
    return Moments(int(count), shift + offset, scatter)


def join_moments(states: Tensor | Sequence[Tensor]) -> Tensor:
    """Join packed states of shape (d + 1, d + 1) in their order, so that every rank gets the same bits.

    With ``delta`` the difference of the means: ``S = S_a + S_b + delta delta^T n_a n_b / n`` (Chan, Golub and LeVeque,
    The American Statistician 37, 1983).
    """
    joined = states[0].clone()
    if not joined.numel():
        return joined
    scatter, offset, shift, count = parts_of(joined)
    for state in states[1:]:
        other_scatter, other_offset, other_shift, other_count = parts_of(state)
        total = count + other_count
        delta = (other_shift - shift) + (other_offset - offset)
        scatter += other_scatter
        scatter.addr_(delta, delta * (count * other_count / total))
        offset += delta * (other_count / total)
        count.copy_(total)
    return joined


def _stacked(states: list[Tensor]) -> Tensor:
    features = sorted({len(state) - 1 for state in states})
    if len(features) > 1:
        raise ConfigurationError(
            f"Moments of {' and '.join(map(str, features))} features were to be joined; give every rank inputs of the "
            "same shape."
        )
    return torch.stack(states)


def parts_of(packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scatter, mean minus shift, shift and count as views."""
    return packed[:-1, :-1], packed[:-1, -1], packed[-1, :-1], packed[-1, -1]


def _started(rows: Tensor, device: torch.device) -> Tensor:
    """An empty packed state with its shift set, on the device where the sums will be taken."""
    device = rows.device if device.type == "cpu" else device
    device = torch.device("cpu") if device.type == "mps" else device
    packed = torch.zeros(rows.shape[1] + 1, rows.shape[1] + 1, dtype=torch.float64, device=device)
    # The lower median is a value of the column: a constant column is then exactly zero relative to it.
    # On the CPU: with deterministic algorithms CUDA has no median along a dimension.
    packed[-1, :-1] = rows[:SHIFT_ROWS].to("cpu", torch.float64).median(dim=0).values.to(device)
    return packed


def _add(packed: Tensor, rows: Tensor) -> None:
    """Add one chunk in place: a single matrix product, whose last row is the correction between the two means.

    On the CPU all of it is NumPy's: that sees that the product is symmetric and takes half the time of torch's, but
    threads of both wait for each other where calls alternate.
    """
    in_numpy = packed.device.type == "cpu" and rows.shape[1] <= SYMMETRIC
    state: Any = packed.numpy() if in_numpy else packed
    values: Any = (rows.double() if rows.dtype == torch.bfloat16 else rows).numpy() if in_numpy else rows
    scatter, offset, shift, count = parts_of(state)
    size = len(values)
    shape = size + 1, values.shape[1]
    work: Any = np.empty(shape) if in_numpy else torch.empty(shape, dtype=torch.float64, device=packed.device)
    (np.subtract if in_numpy else torch.sub)(values, shift, out=work[:size])
    mean = work[:size].mean(0)
    work[:size] -= mean
    total = count + size
    delta = mean - offset
    work[size] = delta * (count * size / total) ** 0.5
    if in_numpy:
        with np.errstate(over="ignore", invalid="ignore"):  # like torch: what overflows is refused by name later
            scatter += work.T @ work
    else:
        scatter.addmm_(work.T, work)
    offset += delta * (size / total)
    state[-1, -1] = total
