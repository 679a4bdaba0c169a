"""Do fewer inputs cost accuracy: repeated columns dropped, or rows projected, and how wide should the first layer be?

A network d-64-64-C is trained on all columns that vary, on one column for each group (SpectralReducer()), and on
projections to n90, n95, n99 and the participation ratio (SpectralReducer(project=...)); of pixels also on n95 of the
covariance. On all columns the first layer also has 16 and 256 units, and as many as the participation ratio counts.
Everything is fitted on the training rows. Adam, 1e-3, batches of 64, at most 60 epochs (30 for images). Training ends
when the validation loss was not lower for 10 epochs, and the test error is that of the epoch with the lowest one.
Errors are fractions of wrong classes; of rare failures (SECOM, AI4I) 1 - AUC. Rows are split at random, anew for each
seed; those of SECOM by time, so that its seeds differ in weights and batches alone.

    python benchmarks/reduction.py --data FOLDER [--fashion FOLDER] [--seeds 5] [--workers 2] [--out FILE]

FOLDER holds mnist, cifar10, steel-plates, ai4i2020 and secom as their publishers give them. Finished cells are kept in
the output file and not repeated; pass a new file to repeat them. `--quick` does one short seed on the bundled digits.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import factory_tables
import numpy as np
import torch
from small_sets import idx_images, load
from torch import Tensor, nn

from lightning_sloppy import SpectralReducer

RESULTS = Path(__file__).parent / "results" / "reduction.json"

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the package of Debian puts it."""

SETS = ("digits", "steel", "steel, noisy repeats", "ai4i", "secom", "mnist", "fashion", "cifar")
PIXELS = ("digits", "mnist", "fashion", "cifar")
RARE = ("ai4i", "secom")
TRAINING = 8_000
"""Training rows of a large set; a quarter of it for validation, as many for the test."""

REDUCERS: dict[str, dict[str, Any]] = {
    "all": {"threshold": None},
    "de-duplicated": {},
    "n99": {"project": "n99"},
    "n95": {"project": "n95"},
    "n90": {"project": "n90"},
    "participation ratio": {"project": "participation_ratio"},
    "n95 of the covariance": {"project": "n95", "standardize": False},
}
WIDTHS = ("width = participation ratio", "width = 16", "width = 256")
WIDTH = 64


HOW = (
    "Networks d-64-64-C, means over seeds; changes are differences to the same seed with all columns that vary, with "
    "the standard error over seeds. Everything is fitted on the training rows; the validation loss chooses the epoch, "
    "and the test error is reported. SECOM is split by time, with 17 failures among its 313 test rows, and its seeds "
    "differ in weights and batches alone: the standard errors leave out the error of that one split."
)


NOTES = """
* Dropping duplicates moved no error by more than one point, except that of SECOM by -4.6 with a standard error of 4.2.
  So it costs next to nothing, up to 41 % of the columns in real tables and 79 % where columns were repeated on purpose,
  but a lower error is not shown. The clearest loss is 0.25 +- 0.10 (Fashion-MNIST, 10 columns).
* n95 changed the error by less than one point on digits, steel plates and its noisy repeats, Fashion-MNIST and
  CIFAR-10, and by -6.4 +- 3.7 on SECOM, with 35 to 88 % fewer inputs. It lost on AI4I (2.7 +- 0.4: four of six
  directions hold 95 %, but the failures depend on the others, too) and on MNIST (1.2 +- 0.2). There n95 of the
  covariance lost 0.2 +- 0.1 with 151 directions: standardised pixels give those at the border, which are hardly ever
  lit, as much weight as the others.
* Failed: the projection to the participation ratio. It lost 1.1 to 6.9 points on six of eight sets; on SECOM nothing
  can be told, and on MNIST the error was 0.6 +- 0.3 lower.
* Failed: a first layer as wide as the participation ratio. Its mean error was higher on all eight sets, and on five by
  0.8 to 5.3 points and three standard errors and more. 16 units also were worse on all eight, by 0.3 to 4.0 points. 256
  units differed from 64 by at most one point where anything can be told.
* On SECOM nothing is decided: with all columns the AUC is .61, its standard error over seeds is 4 points for most
  reductions, and one split has 17 failures in its test rows.
"""


@dataclass(frozen=True)
class Plan:
    """How long a network is trained."""

    epochs: int = 60
    patience: int = 10


def ways(data: str) -> list[str]:
    """Names of all cells of a set."""
    return [name for name in REDUCERS if "covariance" not in name or data in PIXELS] + list(WIDTHS)


def table(data: str, root: Path | None, fashion: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes."""
    if data == "fashion":
        return idx_images(fashion)
    if data in PIXELS:
        return load(data, root)[:2]
    assert root is not None
    if data == "secom":
        with zipfile.ZipFile(root / "secom" / "secom.zip") as archive:
            lines = archive.read("secom_labels.data").decode().splitlines()
        return factory_tables.tables(root)["SECOM"], np.array([int(line.split()[0] == "1") for line in lines])
    if data == "ai4i":
        with zipfile.ZipFile(root / "ai4i2020" / "ai4i+2020+predictive+maintenance+dataset.zip") as archive:
            rows = list(csv.DictReader(io.StringIO(archive.read("ai4i2020.csv").decode("utf-8-sig"))))
        return factory_tables.tables(root)["AI4I"], np.array([int(row["Machine failure"]) for row in rows])
    values, labels = factory_tables.tables(root)["steel plates"], load("steel", root)[1]
    if data == "steel":
        return values, labels
    rng = np.random.default_rng(0)  # each column three times more, with a correlation of about .99
    noise = 0.15 * values.std(0) * rng.standard_normal((3, *values.shape))
    return np.concatenate([values, *(values + each for each in noise)], axis=1), labels


def parts(data: str, rows: int, seed: int) -> list[np.ndarray]:
    """Training, validation and test rows."""
    order = np.arange(rows) if data == "secom" else np.random.default_rng(seed).permutation(rows)
    n = min(TRAINING, int(0.6 * rows))
    rest = max((rows - n) // 2 if rows < 5 * TRAINING // 4 else 0, n // 4)
    return [order[:n], order[n : n + rest], order[n + rest : n + 2 * rest]]


def inputs(reducer: SpectralReducer, values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Reduced rows on a common scale: columns standardised and filled with means, or projected as they are."""
    reduced = reducer.transform(values)
    if reducer.project is None:
        mean, deviation = np.nanmean(reduced[training], 0), np.nanstd(reduced[training], 0)
        return np.nan_to_num((reduced - mean) / deviation)
    # The columns before the projection then have a variance of 1 on average: correlations are there already.
    return reduced * np.sqrt(len(reducer.kept_) / reducer.reduction_.eigenvalues.sum())


def trained(x: list[Tensor], y: list[Tensor], width: int, seed: int, rare: bool, plan: Plan) -> dict[str, float]:
    """Test error of the epoch with the lowest validation loss."""
    torch.manual_seed(seed)
    classes = int(max(part.max() for part in y)) + 1
    net = nn.Sequential(
        nn.Linear(x[0].shape[1], width), nn.ReLU(), nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes)
    )
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    lowest, found, since = np.inf, {}, 0
    for epoch in range(1, plan.epochs + 1):
        net.train()
        for batch in torch.randperm(len(y[0])).split(64):
            optimizer.zero_grad()
            loss(net(x[0][batch]), y[0][batch]).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            value = float(loss(net(x[1]), y[1]))
            since += 1
            if value < lowest:
                lowest, since = value, 0
                found = {"epoch": float(epoch)}
                for name, part in (("validation", 1), ("test", 2)):
                    found[name] = _error(net(x[part]), y[part], rare)
        if since >= plan.patience:
            break
    return {
        **found,
        "inputs": float(x[0].shape[1]),
        "width": float(width),
        "weights": float(sum(part.numel() for part in net.parameters())),
    }


def _error(outputs: Tensor, labels: Tensor, rare: bool) -> float:
    if not rare:
        return float((outputs.argmax(1) != labels).double().mean())
    score = (outputs[:, 1] - outputs[:, 0]).double()
    bad, good = score[labels == 1], score[labels == 0]
    higher = (bad[:, None] > good).double() + (bad[:, None] == good).double() / 2
    return 1.0 - float(higher.mean())


def run(
    data: str, seed: int, todo: list[str], root: Path | None, fashion: Path, plan: Plan
) -> dict[str, dict[str, float]]:
    """The missing cells of one set and seed."""
    torch.set_num_threads(1)
    values, labels = table(data, root, fashion)
    split = parts(data, len(values), seed)
    values, labels = values[np.concatenate(split)], labels[np.concatenate(split)]
    ends = np.cumsum([len(part) for part in split])[:-1]
    y = [torch.tensor(part, dtype=torch.long) for part in np.split(labels, ends)]
    training = np.arange(ends[0])
    found = {}
    for name in todo:
        reducer = SpectralReducer(**REDUCERS.get(name, REDUCERS["all"])).fit(values[: ends[0]])
        rows = np.split(inputs(reducer, values, training), ends)
        x = [torch.tensor(part, dtype=torch.float32) for part in rows]
        if name == "width = participation ratio":
            counted = SpectralReducer(threshold=None, project="participation_ratio").fit(values[: ends[0]])
            width = counted.reduction_.outputs
        else:
            width = int(name.split(" = ")[1]) if name in WIDTHS else WIDTH
        found[name] = trained(x, y, width, seed, data in RARE, plan)
    return found


def section(runs: dict[str, dict[str, float]] | None = None) -> str:
    """The tables, as Markdown; of the saved cells where none are given."""
    saved = runs is None
    if runs is None:
        if not RESULTS.exists():
            return ""
        runs = json.loads(RESULTS.read_text())
    lines = ["## Do fewer inputs cost accuracy?", "", HOW, "", *_table(runs, [*REDUCERS])]
    lines += ["The width of the first layer, on all columns:", ""]
    lines += _table(runs, ["all", *WIDTHS])
    lines += NOTES.strip().splitlines() if saved else []
    missing = _missing(runs)
    if missing:
        lines += [f"* Not run: {'; '.join(missing)}.", ""]
    return "\n".join(lines)


def compact(runs: dict[str, dict[str, float]]) -> str:
    """A row for each set, for docs/reduce.md: inputs with the change to all, and widths with the same."""
    short = ["de-duplicated", "n99", "n95", "n90", "participation ratio"]
    lines = ["| data | all | " + " | ".join(short) + " |", "| --- " * (len(short) + 2) + "|"]
    lines += [_row(runs, data, short, "inputs") for data in SETS]
    lines += ["", "| data | 64 | participation ratio | 16 | 256 |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(runs, data, [*WIDTHS], "width") for data in SETS]
    return "\n".join(lines)


def _row(runs: dict[str, dict[str, float]], data: str, names: list[str], what: str) -> str:
    seeds = [seed for seed in range(100) if _key(data, "all", seed) in runs]
    whole = [runs[_key(data, "all", seed)] for seed in seeds]
    cells = [f"{np.mean([cell[what] for cell in whole]):.0f}: {100 * np.mean([cell['test'] for cell in whole]):.1f}"]
    for name in names:
        found = [runs[_key(data, name, seed)] for seed in seeds]
        change = [100 * (cell["test"] - other["test"]) for cell, other in zip(found, whole, strict=True)]
        error = np.std(change, ddof=1) / len(change) ** 0.5 if len(change) > 1 else np.nan
        cells.append(f"{np.mean([cell[what] for cell in found]):.0f}: {np.mean(change):+.1f} ± {error:.1f}")
    return f"| {data} | " + " | ".join(cells) + " |"


def _table(runs: dict[str, dict[str, float]], names: list[str]) -> list[str]:
    lines = [
        "| data | inputs | columns or directions | first layer | weights | test error | change to all, points |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data in SETS:
        for name in names:
            cells = {seed: runs[_key(data, name, seed)] for seed in range(100) if _key(data, name, seed) in runs}
            if not cells:
                continue

            def mean(what: str, cells: dict[int, dict[str, float]] = cells) -> float:
                return float(np.mean([cell[what] for cell in cells.values()]))

            pairs = [
                100 * (cell["test"] - runs[_key(data, "all", seed)]["test"])
                for seed, cell in cells.items()
                if _key(data, "all", seed) in runs
            ]
            change = "" if name == "all" or not pairs else f"{np.mean(pairs):+.2f}"
            if change and len(pairs) > 1:
                change += f" +- {np.std(pairs, ddof=1) / len(pairs) ** 0.5:.2f}"
            label = f"{data} (1 - AUC)" if data in RARE else data
            width = f"{mean('width'):.0f}" + (" (participation ratio)" if name == WIDTHS[0] else "")
            lines.append(
                f"| {label} | {'all' if name in WIDTHS else name} | {mean('inputs'):.0f} | {width} | "
                f"{mean('weights'):,.0f} | {mean('test'):.4f} | {change} |"
            )
    return [*lines, ""]


def _missing(runs: dict[str, dict[str, float]]) -> list[str]:
    seeds = 1 + max((int(key.rsplit("|", 1)[1]) for key in runs), default=-1)
    gaps = []
    for data in SETS:
        lacking = sum(_key(data, name, seed) not in runs for name in ways(data) for seed in range(seeds))
        if lacking:
            gaps.append(f"{data} {lacking} of {seeds * len(ways(data))} cells")
    return gaps


def _key(data: str, name: str, seed: int) -> str:
    return f"{data}|{name}|{seed}"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    options, _ = parser.parse_known_args()  # run_all.py passes its own, too
    if options.quick:
        cells = run("digits", 0, ways("digits"), None, options.fashion, Plan(2))
        print(section({_key("digits", name, 0): cell for name, cell in cells.items()}))
        return
    runs = json.loads(options.out.read_text()) if options.out.exists() else {}
    here = [
        data for data in SETS if (options.data or data == "digits") and (data != "fashion" or _has(options.fashion))
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        waiting = {}
        for seed in range(options.seeds):
            for data in here:
                todo = [name for name in ways(data) if _key(data, name, seed) not in runs]
                plan = Plan(30 if data in ("mnist", "fashion", "cifar") else 60)
                if todo:
                    job = pool.submit(run, data, seed, todo, options.data, options.fashion, plan)
                    waiting[job] = data, seed
        for job in as_completed(waiting):
            data, seed = waiting[job]
            runs.update({_key(data, name, seed): cell for name, cell in job.result().items()})
            options.out.parent.mkdir(exist_ok=True)
            partial = options.out.with_name(options.out.name + ".partial")
            partial.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
            partial.replace(options.out)
            print(f"{data}, seed {seed}: done", flush=True)
    print(section(runs), compact(runs), sep="\n")


def _has(folder: Path) -> bool:
    return (folder / "train-images-idx3-ubyte.gz").is_file()


if __name__ == "__main__":
    main()
