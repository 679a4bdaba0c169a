"""How many products does an effective dimension with an error below 5 % need, compared with other estimates?"""

from __future__ import annotations

import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy import effective_dimension, fisher_spectrum, hessian_spectrum
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

warnings.filterwarnings("ignore")
VECTORS, DEPTHS = 4, (10, 20, 40, 80, 160)


def soft(values: Tensor, weights: Tensor, z: float) -> float:
    """Sum over the positive nodes of a quadrature."""
    positive = values.clamp_min(0)
    return float((weights * positive / (positive + z)).sum())


def _eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix with a column of imaginary parts, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors if eigenvectors else matrix.new_zeros(0)


def pyhessian(module: nn.Module, data: common.Data, steps: int, z: float, dim: int) -> float:
    """Its density: nodes and weights of each run."""
    from pyhessian import hessian

    # torch.eig, which it calls on its tridiagonal matrices, has left torch; the same numbers in its old form.
    torch.eig = _eig  # type: ignore[attr-defined]
    nodes, weights = hessian(module, nn.CrossEntropyLoss(), data=data, cuda=data[0].is_cuda).density(steps, VECTORS)
    module.zero_grad(set_to_none=True)
    parts = [soft(torch.tensor(n), torch.tensor(w), z) for n, w in zip(nodes, weights, strict=True)]
    return dim * sum(parts) / len(parts)


def by_products(name: str, module: nn.Module, part: common.Data, z: float, steps: int, exact: float) -> dict[str, Any]:
    """The effective dimension of the Gauss-Newton matrix after so many steps, over its exact value."""
    seen = fisher_spectrum(
        module, [part], F.cross_entropy, "exact", method="products", k=1, probes=VECTORS, steps=steps
    )
    mine = effective_dimension(seen, z)
    return {
        "network": name,
        "steps": steps,
        "products": VECTORS * steps,
        "Gauss-Newton part": mine.value / exact,
        "standard error + truncation error, status": (
            f"{mine.standard_error / exact:.3f} + {mine.truncation_error / exact:.3f}, {mine.status.name}"
        ),
    }


def main() -> None:
    """Measure, report."""
    options = common.arguments(__doc__)
    data = common.mnist(options.data, 2000 if options.quick else 20_000, options.device)
    pooled = (F.avg_pool2d(data[0].view(-1, 1, 28, 28), 2).flatten(1), data[1])
    module = common.trained(common.mlp(196, 20, 20, 10), pooled, 6, rate=3e-3)
    count = 200 if options.quick else 1000
    part = (pooled[0][:count], pooled[1][:count])
    dim = ParameterLayout.of(module).dim
    size = sum(float(p.detach().square().sum()) for p in module.parameters())
    z = dim / size / (2 * 54_999)
    operator = HessianOperator(Objective(module, F.cross_entropy), ParameterLayout.of(module), [part])
    hessian = torch.linalg.eigvalsh(operator.dense())
    exact = {
        "Gauss-Newton": effective_dimension(fisher_spectrum(module, [part], F.cross_entropy, "exact"), z).value
        if count * 10 <= 8192
        else _by_dense(module, part, z),
        "Hessian, positive part": soft(hessian, torch.ones_like(hessian), z),
    }
    rows: list[dict[str, Any]] = []
    for steps in DEPTHS[:2] if options.quick else DEPTHS:
        row = by_products("196-20-20-10", module, part, z, steps, exact["Gauss-Newton"])
        whole = hessian_spectrum(module, [part], F.cross_entropy, k=1, probes=VECTORS, steps=steps)
        positive = effective_dimension(whole, z)
        row["Hessian, positive part"] = positive.value / exact["Hessian, positive part"]
        row["truncation error, status"] = (
            f"{positive.truncation_error / exact['Hessian, positive part']:.3f}, {positive.status.name}"
        )
        row["PyHessian's density"] = pyhessian(module, part, steps, z, dim) / exact["Hessian, positive part"]
        rows.append(row)
    wide = common.trained(common.mlp(), data, 1 if options.quick else 3)
    few = (data[0][: count * 3 // 10], data[1][: count * 3 // 10])
    wide_dim = ParameterLayout.of(wide).dim
    wide_z = wide_dim / sum(float(p.detach().square().sum()) for p in wide.parameters()) / (2 * 54_999)
    truth = effective_dimension(fisher_spectrum(wide, [few], F.cross_entropy, "exact", method="gram"), wide_z).value
    rows += [
        by_products("784-600-600-10", wide, few, wide_z, steps, truth)
        for steps in (DEPTHS[:2] if options.quick else DEPTHS)
    ]
    remarks = [
        f"196-20-20-10 on images pooled 2 x 2, p = {dim:,}, N = {count:,}, z = {z:.3g}; exact values "
        + ", ".join(f"{value:.1f} ({name})" for name, value in exact.items())
        + f" from dense matrices. Every value is divided by its exact value. {VECTORS} probe vectors. PyHessian's "
        "density needs a replacement for torch.eig, which current versions of torch do not have, and gives no error "
        "estimate. A value that is UNRESOLVED is never logged.",
        f"784-600-600-10 on whole images, p = {wide_dim:,}, N = {len(few[1]):,}, z = {wide_z:.3g}: exact value "
        f"{truth:.1f} from the Gram matrix of the exact Fisher matrix. The Hessian is too large for a dense reference.",
    ]
    common.report("effective_dimension", __doc__, rows, remarks, options)


def _by_dense(module: nn.Module, data: common.Data, z: float) -> float:
    from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator

    operator = GaussNewtonOperator(Objective(module, F.cross_entropy), ParameterLayout.of(module), [data])
    values = torch.linalg.eigvalsh(operator.dense())
    return soft(values, torch.ones_like(values), z)


if __name__ == "__main__":
    main()
