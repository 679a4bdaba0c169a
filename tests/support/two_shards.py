"""A Hessian over two processes with shards of 5 and 3 samples; run as a script it is one rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_sloppy import hessian_spectrum

SHARDS = (slice(0, 5), slice(5, 8))


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Always the same."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    return module, torch.randn(8, 12).double(), torch.randint(0, 3, (8,))


def measured(part: slice, *, over_ranks: bool) -> dict[str, list[float]]:
    """Eigenvalues by each way to make a product; more than 256 parameters, so by Lanczos."""
    module, x, y = problem()
    return {
        method: hessian_spectrum(
            module, [(x[part], y[part])], F.cross_entropy, k=4, method=method, over_ranks=over_ranks
        ).eigenvalues.tolist()
        for method in ("kept graph", "recomputed", "central differences")
    }


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    Path(sys.argv[1]).write_text(json.dumps(measured(SHARDS[rank], over_ranks=True)))
    distributed.barrier()
    # Not sys.exit: torch's own threads may still run then, and their end at exit is a race.
    sys.stdout.flush()
    os._exit(0)
