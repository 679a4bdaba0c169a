"""How does the cost of the top eigenpairs grow with parameters p, samples N and eigenpairs k?"""

from __future__ import annotations

import time
import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F

from lightning_sloppy import hessian_spectrum
from lightning_sloppy.records import Status

warnings.filterwarnings("ignore")
SECONDS = 90.0
"""A cell that would take longer by the time of its smaller neighbour is left out and marked as such."""


def main() -> None:
    """One sweep for each of p, N and k; a table and a picture."""
    options = common.arguments(__doc__)
    widths = {10_000: 12, 100_000: 113, 1_000_000: 674, 3_000_000: 1380, 30_000_000: 5085}
    sweeps: dict[str, list[tuple[int, int, int]]] = {
        "p": [(p, 512, 10) for p in widths],
        "N": [(1_000_000, n, 10) for n in (128, 512, 2048, 8192)],
        "k": [(100_000, 512, k) for k in (1, 3, 10, 30, 100)],
    }
    data = common.mnist(options.data, 8192, options.device)
    rows: list[dict[str, Any]] = []
    for axis, cells in sweeps.items():
        last, factor = 0.0, 1.0
        for index, (p, n, k) in enumerate(cells[:2] if options.quick else cells):
            row: dict[str, Any] = {"sweep": axis, "p": p, "N": n, "k": k}
            if index:
                before = cells[index - 1]
                factor = max(p / before[0], 1) * max(n / before[1], 1) * max(k / before[2], 1)
            if last * factor > SECONDS:
                row["seconds"] = f"left out: about {last * factor:.0f} s"
            else:
                torch.manual_seed(0)
                module = common.mlp(784, widths[p], widths[p], 10).to(options.device).eval()
                start = time.perf_counter()
                found = hessian_spectrum(module, [(data[0][:n], data[1][:n])], F.cross_entropy, k=k)
                last = time.perf_counter() - start
                row |= {"p": found.dim, "seconds": last, "products": found.cost.products, "method": found.cost.method}
                row["status"] = found.status.name
                if found.status is not Status.OUT_OF_MEMORY:
                    row["basis, MB"] = float(found.detail["basis_bytes"]) / 2**20
            rows.append(row)
    picture(rows, options)
    remarks = [f"Untrained networks, one run per row. Rows that would take more than {SECONDS:.0f} s are left out."]
    common.report("growth", __doc__, rows, remarks, options)


def picture(rows: list[dict[str, Any]], options: Any) -> None:
    """Seconds against each of the three, on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), sharey=True, constrained_layout=True)
    for axis, name in zip(axes, "pNk", strict=True):
        cells = [row for row in rows if row["sweep"] == name and isinstance(row["seconds"], float)]
        axis.loglog([row[name] for row in cells], [row["seconds"] for row in cells], "o-")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / f"growth_{options.device}.png", dpi=110)


if __name__ == "__main__":
    main()
