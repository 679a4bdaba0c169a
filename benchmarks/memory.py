"""Is memory constant over a hundred products, and does the Lanczos basis take as much as expected?"""

from __future__ import annotations

import resource
import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F

from lightning_sloppy import hessian_spectrum
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

warnings.filterwarnings("ignore")


def peak(device: str) -> float:
    """Highest memory so far, in MB: of the process, or of torch on the device."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, report."""
    options = common.arguments(__doc__)
    count = 200 if options.quick else 2000
    data = common.mnist(options.data, count, options.device)
    module = common.mlp(*((784, 60, 10) if options.quick else ())).to(options.device).eval()
    objective, layout = Objective(module, F.cross_entropy), ParameterLayout.of(module)
    rows: list[dict[str, Any]] = []
    for method in ("kept_graph", "recomputed"):
        operator = HessianOperator(objective, layout, [data], method=method)  # type: ignore[arg-type]
        vector = torch.randn(layout.dim, device=options.device)
        operator.matvec(vector)
        before = peak(options.device)
        for _ in range(100):
            operator.matvec(vector)
        rows.append({"test": f"100 products, {method}", "increase of peak memory, MB": peak(options.device) - before})
    size = layout.dim * 4
    for name, memory in (("restart within 24 vectors", 24 * size), ("no restart", None)):
        found = hessian_spectrum(module, [data], F.cross_entropy, k=10, basis_memory=memory, tol=1e-4)
        rows.append(
            {
                "test": name,
                "basis, MB": float(found.detail["basis_bytes"]) / 2**20,
                "basis, number of vectors": float(found.detail["basis_bytes"]) / size,
                "products": found.cost.products,
                "restarts": found.detail["restarts"],
                "largest eigenvalue": found.largest,
            }
        )
    remarks = [
        "Memory is the peak resident memory of the process, so a leak per product would show 100 times. The basis "
        "takes (number of vectors) x p numbers, and while it grows, also half of its previous size."
    ]
    common.report("memory", __doc__, rows, remarks, options)


if __name__ == "__main__":
    main()
