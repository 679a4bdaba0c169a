"""Free memory, and the memory of a graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def free_bytes(device: torch.device) -> int:
    """Free memory of the device; 2 GiB if it is not known.

    On CUDA that is also what torch's allocator has taken from the driver and holds for the next tensors.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo", encoding="ascii") as table:
            for line in table:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2 * 1024**3


def peak_bytes(device: torch.device) -> int | None:
    """Highest memory of the process so far: of torch's allocator on CUDA, else resident; None if not known.

    Not that of a part of a run: torch's counter could be set back, but others may be reading it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as table:
            return next((int(line.split()[1]) * 1024 for line in table if line.startswith("VmHWM:")), None)
    except OSError:
        return None


@contextmanager
def counted_graph() -> Iterator[list[int]]:
    """Count the bytes that the graphs built inside hold at the end; the list holds one number afterwards.

    A graph that is gone by then does not count, so hold what is to be counted. The number depends on the graph alone:
    were tensors counted as they are saved, a freed one whose address the allocator uses again would change it.
    """
    saved: list[weakref.ref[torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # Not the tensor itself: a node that saves its own output would then keep itself alive for ever.
        packed = tensor.detach()
        saved.append(weakref.ref(packed))
        return packed

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    held: dict[int, int] = {}
    for reference in saved:
        tensor = reference()
        # Sparse and ragged tensors have no storage of their own.
        if tensor is not None and tensor.layout is torch.strided and not tensor.is_nested:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    total.append(sum(held.values()))
