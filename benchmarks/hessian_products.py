"""How many products do the top-10 Hessian pairs cost, and how much time goes elsewhere?

784-600-600-10 after a few epochs, N = 2000, residual 1e-3 of the largest magnitude. Run:

    python benchmarks/hessian_products.py [--data FOLDER] [--epochs 3] [--repeats 3]

FOLDER holds the four IDX files of MNIST; without it the inputs are random clusters. Printed are the products, the time
of a product against that of a gradient, measured in turn, and the share of the time outside the products.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from lightning_sloppy import hessian_spectrum
from lightning_sloppy.demo import IDXDataModule


def data(folder: str | None) -> tuple[Tensor, Tensor]:
    """MNIST, or ten noisy clusters of the same shape."""
    if folder is not None:
        module = IDXDataModule(folder)
        module.setup("fit")
        inputs, targets = module.train_set.tensors
        return inputs.flatten(1), targets
    targets = torch.randint(0, 10, (20_000,))
    return (torch.rand(10, 784)[targets] + 0.5 * torch.randn(20_000, 784)).clamp(0, 1), targets


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs, targets = (part.to(device) for part in data(options.data))
    module = nn.Sequential(nn.Linear(784, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 10)).to(
        device
    )
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(inputs)).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
            optimiser.step()
    probe = (inputs[:2000], targets[:2000])
    gradients, products, shares, totals = [], [], [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(module(probe[0]), probe[1])
        torch.autograd.grad(loss, list(module.parameters()))
        gradients.append(time.perf_counter() - start)
        spectrum = hessian_spectrum(module, [probe], nn.functional.cross_entropy, k=10)
        cost = spectrum.cost
        products.append(cost.product_seconds / cost.products)
        shares.append(1 - cost.product_seconds / cost.seconds)
        totals.append(cost.seconds)
    gradient, product = statistics.median(gradients), statistics.median(products)
    print(f"device {device}, N = 2000, p = {spectrum.dim:,}; median of {options.repeats}, in turn")
    print(f"{cost.products} products ({cost.method}), status {spectrum.status.name}, {statistics.median(totals):.2f} s")
    print(f"worst residual {float(spectrum.residuals.max()) / abs(spectrum.largest):.1e} of the largest eigenvalue")
    print(
        f"a product costs {product / gradient:.2f} gradients; {statistics.median(shares):.1%} of the time outside them"
    )


if __name__ == "__main__":
    main()
