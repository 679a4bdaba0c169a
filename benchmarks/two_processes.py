"""Do two processes measure faster than one, and do they get the same result?"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.records import Spectrum

warnings.filterwarnings("ignore")
PORT = 29_713


def main() -> None:
    """Start two, let the first report."""
    options = common.arguments(__doc__)
    multiprocessing.spawn(work, args=(options,), nprocs=2)


def work(rank: int, options: Any) -> None:
    """One of the two processes. It takes part, and waits while the first one works alone."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=2)
    rows: list[dict[str, Any]] = []
    count = 100 if options.quick else 1024
    for name, build in (("784-600-600-10", common.mlp), ("LeNet", common.lenet)):
        data = common.mnist(options.data, count, "cpu")
        torch.manual_seed(0)  # every process holds the same network
        module = common.trained(build(), data, 1)
        half = tuple(part[rank * count // 2 : (rank + 1) * count // 2] for part in data)
        questions: dict[str, Callable[[Any, bool], Spectrum]] = {
            "10 Hessian pairs": lambda batch, both, net=module: hessian_spectrum(
                net, [batch], F.cross_entropy, k=10, over_ranks=both
            ),
            "empirical Fisher": lambda batch, both, net=module: fisher_spectrum(
                net, [batch], F.cross_entropy, over_ranks=both
            ),
        }
        for question, ask in questions.items():
            alone, together = [], []
            for _ in range(options.repeats):
                distributed.barrier()
                if rank == 0:
                    start = time.perf_counter()
                    one = ask(data, False)
                    alone.append(time.perf_counter() - start)
                distributed.barrier()
                start = time.perf_counter()
                two = ask(half, True)
                together.append(time.perf_counter() - start)
            if rank == 0:
                rows.append(
                    {
                        "network": name,
                        "measurement": question,
                        "one process, s": statistics.median(alone),
                        "two processes, s": statistics.median(together),
                        "times faster": statistics.median(alone) / statistics.median(together),
                        "relative difference of the largest eigenvalue": abs(two.largest / one.largest - 1),
                    }
                )
    if rank == 0:
        remarks = [
            f"N = {count:,}; one thread per process. For a product, each process uses its half of the samples. For a "
            "Gram matrix, each process computes its part of the layers, but runs the forward and backward pass of "
            "all samples and computes all eigenvalues."
        ]
        common.report("two_processes", __doc__, rows, remarks, options)


if __name__ == "__main__":
    main()
