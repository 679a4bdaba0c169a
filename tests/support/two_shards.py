"""A Hessian and a Fisher matrix over two processes with shards of 5 and 3 samples; run as a script it is one rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.analysis import Solve, hessian_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import all_ranks
from lightning_sloppy.linalg.vectors import generator
from support import ranks

SHARDS = (slice(0, 5), slice(5, 8))


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Always the same."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    return module, torch.randn(8, 12).double(), torch.randint(0, 3, (8,))


def measured(part: slice, *, over_ranks: bool) -> dict[str, list[float]]:
    """Eigenvalues by each way to make them; more than 256 parameters, so the Hessian's are those of Lanczos."""
    module, x, y = problem()
    batches = [(x[part], y[part])]
    found = {
        method: hessian_spectrum(module, batches, F.cross_entropy, k=4, method=method, over_ranks=over_ranks)
        for method in ("kept_graph", "recomputed", "central_differences")
    }
    for kind in ("empirical", "sampled", "exact"):
        for method in ("gram", "products"):
            found[f"{kind} by {method}"] = fisher_spectrum(
                module, batches, F.cross_entropy, kind, method=method, k=4, over_ranks=over_ranks
            )
    blocks = fisher_spectrum(module, batches, F.cross_entropy, by_layer=True, over_ranks=over_ranks).layers
    found |= {f"layer {name}": block for name, block in blocks.items()}
    return {name: spectrum.eigenvalues.tolist() for name, spectrum in found.items()}


def unequal(rank: int) -> dict[str, list[float]]:
    """Ranks that differ in what they have: free memory, or any sample at all."""
    module, x, y = problem()
    free = {
        # A graph fits into the memory of rank 1 alone; the basis of rank 0 must restart.
        "graphs": lambda _: 2**40 if rank else 1,
        "basis": lambda _: 2**40 if rank else 4 * 15 * 323 * 8,
        "nothing": lambda _: 2**40 if rank else 8,
    }
    found: dict[str, list[float]] = {}
    for name, bytes_of in free.items():
        basis = bytes_of if name != "graphs" else lambda _: 2**40
        graphs = bytes_of if name == "graphs" else lambda _: 2**40
        with (
            patch("lightning_sloppy.curvature.assembly.free_bytes", basis),
            patch("lightning_sloppy.curvature.kept_graph.free_bytes", graphs),
        ):
            batches = [(x[SHARDS[rank]], y[SHARDS[rank]])]
            spectrum = hessian_spectrum(module, batches, F.cross_entropy, 4, probes=2, steps=9, over_ranks=True)
        found[f"{name}: {spectrum.status.name}"] = spectrum.eigenvalues.tolist()
    # No rows of the weights: the batch cannot be cut, and the second rank has none.
    ranks_ = all_ranks()
    bag = nn.Sequential(nn.EmbeddingBag(40, 8, mode="mean"), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in bag.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
    objective = Objective(bag, F.cross_entropy, ranks=ranks_)
    mine = [(torch.arange(24).view(6, 4), torch.arange(6) % 3)] if rank == 0 else []
    spectrum = hessian_of(objective, mine, solve=Solve(3), rng=generator(0))
    found[f"no samples: {spectrum.cost.method}"] = spectrum.eigenvalues.tolist()
    return found


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = measured(SHARDS[rank], over_ranks=True) if sys.argv[2] == "alike" else unequal(rank)
    Path(sys.argv[1]).write_text(json.dumps(results))
    distributed.barrier()
    ranks.leave()
