"""A Hessian and a Fisher matrix over two processes with shards of 5 and 3 samples; run as a script it is one rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ranks
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum

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
        for method in ("kept graph", "recomputed", "central differences")
    }
    for kind in ("empirical", "sampled", "exact"):
        for method in ("gram", "products"):
            found[f"{kind} by {method}"] = fisher_spectrum(
                module, batches, F.cross_entropy, kind, method=method, k=4, over_ranks=over_ranks
            )
    blocks = fisher_spectrum(module, batches, F.cross_entropy, by_layer=True, over_ranks=over_ranks).layers
    found |= {f"layer {name}": block for name, block in blocks.items()}
    return {name: spectrum.eigenvalues.tolist() for name, spectrum in found.items()}


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    Path(sys.argv[1]).write_text(json.dumps(measured(SHARDS[rank], over_ranks=True)))
    distributed.barrier()
    ranks.leave()
