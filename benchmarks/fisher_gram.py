"""How much faster is the Gram matrix of layer inputs and output gradients than a loop over samples?

784-600-600-10, N = 1000, empirical Fisher information, eigenvalues of both compared. Run:

    python benchmarks/fisher_gram.py [--samples 1000] [--repeats 3]

The two are timed in turn in one process; printed are medians, their ratio, and the largest difference of the
eigenvalues relative to the largest one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum


def by_loop(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """One backward for each sample, then the dense Gram matrix in float64."""
    rows = []
    for index in range(len(inputs)):
        loss = nn.functional.cross_entropy(module(inputs[index : index + 1]), targets[index : index + 1])
        rows.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(module.parameters()))]))
    gradients = torch.stack(rows).double()
    return torch.linalg.eigvalsh(gradients @ gradients.T / len(inputs)).flip(0)


def main() -> None:
    """Time, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = nn.Sequential(nn.Linear(784, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 10)).to(
        device
    )
    inputs = torch.rand(options.samples, 784, device=device)
    targets = torch.randint(0, 10, (options.samples,), device=device)
    seconds: dict[str, list[float]] = {"gram": [], "loop": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        spectrum = fisher_spectrum(module, [(inputs, targets)], nn.functional.cross_entropy)
        seconds["gram"].append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = by_loop(module, inputs, targets).cpu()
        seconds["loop"].append(time.perf_counter() - start)
    gram, loop = (statistics.median(seconds[name]) for name in ("gram", "loop"))
    difference = float((spectrum.eigenvalues - reference[: len(spectrum.eigenvalues)]).abs().max() / spectrum.largest)
    print(f"device {device}, N = {options.samples}, p = {spectrum.dim:,}; median of {options.repeats}, in turn")
    print(f"gram {gram:.3f} s ({spectrum.cost.method}), loop {loop:.3f} s, ratio {loop / gram:.1f}")
    print(f"largest difference of the eigenvalues: {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
