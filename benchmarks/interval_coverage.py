"""How often the intervals of `inspect` hold the truth: python benchmarks/interval_coverage.py [--seeds 200] [--quick].

Rows of known correlation matrices, complete, with 30 % of the cells missing, or autocorrelated; at most half as many
columns as rows. Everything is made up, so --data is not needed. About 50 minutes on one core.
"""

from __future__ import annotations

import common
import numpy as np

from lightning_sloppy.inspection.inspecting import inspect
from lightning_sloppy.inspection.spectrum_numbers import entropy_rank, participation_ratio, ridge_degrees_of_freedom

SHAPES = ((200, 100), (300, 60), (500, 20))
KINDS = ("independent", "power law", "three strong directions", "three decades")
WAYS = ("complete", "30 % missing", "autocorrelated")
PHI = 0.6


def correlation(kind: str, d: int) -> np.ndarray:
    """A correlation matrix with about these eigenvalues, in random coordinates."""
    values = {
        "independent": np.ones(d),
        "power law": 1 / np.arange(1, d + 1),
        "three strong directions": np.concatenate([d * np.array([0.3, 0.15, 0.08]), np.ones(d - 3)]),
        "three decades": 10 ** (-3 * np.arange(d) / d),
    }[kind]
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    matrix = (basis * values) @ basis.T
    scale = np.sqrt(matrix.diagonal())
    return matrix / scale[:, None] / scale


def rows(matrix: np.ndarray, n: int, way: str, seed: int) -> np.ndarray:
    """Gaussian rows of it."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, len(matrix)))
    if way == "autocorrelated":
        for row in range(1, n):
            noise[row] = PHI * noise[row - 1] + np.sqrt(1 - PHI**2) * noise[row]
    found = noise @ np.linalg.cholesky(matrix).T
    if way == "30 % missing":
        found[rng.random(found.shape) < 0.3] = np.nan
    return found


def main() -> None:
    """A row for each matrix, shape and way."""
    options = common.arguments(__doc__ or "", seeds=200)
    seeds = 3 if options.quick else options.seeds
    table = []
    for n, d in SHAPES[-1:] if options.quick else SHAPES:
        for kind in KINDS:
            matrix = correlation(kind, d)
            values = np.linalg.eigvalsh(matrix)[::-1]
            truth = np.array(
                [participation_ratio(values), entropy_rank(values), ridge_degrees_of_freedom(values), values[0]]
            )
            for way in WAYS:
                hits = np.zeros(4)
                for seed in range(seeds):
                    found = inspect(rows(matrix, n, way, seed), seed=seed).spectrum
                    ends = [found.participation_ratio, found.entropy_rank, found.ridge_degrees_of_freedom]
                    pairs = np.array([[end.low, end.high] for end in ends] + [list(found.intervals[0])])
                    hits += (pairs[:, 0] <= truth + 1e-9) & (truth <= pairs[:, 1] + 1e-9)
                names = ("participation ratio", "entropy rank", "ridge degrees of freedom", "largest eigenvalue")
                table.append(
                    {"rows x columns": f"{n} x {d}", "matrix": kind, "rows are": way}
                    | {name: float(hit / seeds) for name, hit in zip(names, hits, strict=True)}
                )
                print(table[-1], flush=True)
    remarks = [
        f"Part of {seeds} seeds in which the 95 % interval holds the value of the matrix that the rows come from."
    ]
    common.report("interval_coverage", "Do the intervals of inspect hold the truth?", table, remarks, options)


if __name__ == "__main__":
    main()
