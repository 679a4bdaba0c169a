"""How many gradients does a Hessian-vector product cost, and how much time do solvers spend outside the products?"""

from __future__ import annotations

import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp

from lightning_sloppy import hessian_spectrum
from lightning_sloppy.curvature.central_differences import CentralDifferences
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

warnings.filterwarnings("ignore")


def main() -> None:
    """Time, report."""
    options = common.arguments(__doc__)
    digits = common.mnist(options.data, 200 if options.quick else 10_000, options.device)
    images = common.cifar(options.data, 64 if options.quick else 512, options.device)
    letters = common.text(16 if options.quick else 256, options.device)
    n = 100 if options.quick else 2000
    cases = {
        "784-600-600-10, N = 2,000": (common.mlp(), digits, n),
        "784-600-600-10, N = 10,000": (common.mlp(), digits, len(digits[1])),
        "LeNet, N = 512": (common.lenet(), digits, min(512, n)),
        "ResNet-20, N = 512": (common.resnet(), images, len(images[1])),
        "transformer, N = 256": (common.Transformer(), letters, len(letters[1])),
    }
    rows = [product(name, *case, options) for name, case in cases.items()]
    remarks = [
        "Target: at most 2.0 gradients per product with the kept graph, on 784-600-600-10. memory.py measures the peak "
        "memory."
    ]
    common.report("one_product", __doc__, rows, remarks, options)
    for count, allowed in ((n, 20), (len(digits[1]), 10)):
        part = (digits[0][:count], digits[1][:count])
        module = common.mlp().to(options.device).eval()
        spectra = [
            hessian_spectrum(module, [part], F.cross_entropy, k=10, tol=1e-9, max_products=60)
            for _ in range(1 if options.quick else 2)
        ]
        shares = sorted(1 - s.cost.product_seconds / s.cost.seconds for s in spectra)
        remarks.append(
            f"Time outside the products at m = 60, p = {spectra[0].dim:,}, N = {count:,}: "
            f"{shares[len(shares) // 2]:.1%} (target {allowed} %), including the two evaluations of the loss."
        )
    common.report("one_product", __doc__, rows, remarks, options)


def product(name: str, module: nn.Module, data: common.Data, count: int, options: Any) -> dict[str, Any]:
    """One row."""
    module = module.to(options.device).eval()
    part = (data[0][:count], data[1][:count])
    objective, layout = Objective(module, F.cross_entropy), ParameterLayout.of(module)
    leaves = layout.leaves(module, objective.dtype)
    vector = torch.randn(layout.dim, device=options.device)
    tangent = layout.table(vector)

    def gradient() -> Any:
        return torch.autograd.grad(
            F.cross_entropy(functional_call(module, leaves, (part[0],)), part[1]), leaves.values()
        )

    def forward_mode() -> Any:
        def loss(table: dict[str, torch.Tensor]) -> torch.Tensor:
            return F.cross_entropy(functional_call(module, table, (part[0],)), part[1])

        return jvp(grad(loss), ({k: v.detach() for k, v in leaves.items()},), (tangent,))

    with double_backward(module):
        kept = HessianOperator(objective, layout, [part], method="kept_graph")
        anew = HessianOperator(objective, layout, [part], method="recomputed")
        near = CentralDifferences(objective, layout, [part])
        ways = {
            "gradient": gradient,
            "kept graph": lambda: kept.matvec(vector),
            "recomputed": lambda: anew.matvec(vector),
            "central differences": lambda: near.matvec(vector),
            "jvp(grad)": forward_mode,
        }
        for way in ways.values():
            way()
        seconds, _ = common.interleaved(ways, 3 if options.quick else 7)
    one = seconds.pop("gradient")
    return {"task": name, "gradient, s": one, **{f"{way}, gradients": value / one for way, value in seconds.items()}}


if __name__ == "__main__":
    main()
