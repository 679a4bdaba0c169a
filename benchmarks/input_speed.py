"""How fast are input_spectrum and inspect, and how much memory do they take? python benchmarks/input_speed.py.

Four questions, each answered by a ratio of medians of runs that alternate:

1. MNIST, 60,000 x 784: input_spectrum beside a bare float64 product with eigvalsh, and PCA of scikit-learn.
2. A parquet file of 5e6 x 40 numbers: inspect beside duckdb and polars, which give the correlation alone, and beside a
   bare loop over the file; and the same at a tenth of the rows, since memory should not grow with them. Every run is a
   process of its own. Both packages are optional: pip install duckdb polars.
3. SECOM (only with --data FOLDER): the command `lightning-sloppy inspect`, intervals included, from start to end.
4. Moments over two processes beside one.

`--part` runs one of them. With --quick all are small. About ten minutes on two cores, and 2 GB of disk for the file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import distributed, multiprocessing

PARTS = ("all", "mnist", "parquet", "secom", "processes")
COLUMNS = 40
PORT = 29_731


def participation_ratio(correlation: np.ndarray) -> float:
    """``(sum lambda)^2 / sum lambda^2``."""
    values = np.linalg.eigvalsh(correlation)
    return float(values.sum() ** 2 / (values**2).sum())


def mnist(options: Any) -> list[dict[str, Any]]:
    """Three ways to the spectrum of one float64 matrix."""
    from sklearn.decomposition import PCA

    from lightning_sloppy import input_spectrum

    images, _ = common.mnist(options.data, 2_000 if options.quick else 60_000, "cpu")
    rows = images.double()
    values = rows.numpy()

    def bare() -> float:
        spectrum = torch.linalg.eigvalsh(rows.T @ rows)
        return float(spectrum.sum() ** 2 / (spectrum**2).sum())

    def ours() -> float:
        spectrum = input_spectrum(rows, "covariance").eigenvalues
        return float(spectrum.sum() ** 2 / (spectrum**2).sum())

    def pca() -> float:
        spectrum = PCA().fit(values).explained_variance_
        return float(spectrum.sum() ** 2 / (spectrum**2).sum())

    ways: dict[str, Callable[[], float]] = {"product and eigvalsh": bare, "input_spectrum": ours, "PCA": pca}
    seconds, found = common.interleaved(ways, options.repeats)
    return [
        {
            "question": f"spectrum of {len(rows):,} x {rows.shape[1]}",
            "way": name,
            "seconds": seconds[name],
            "times the first": seconds[name] / seconds["product and eigvalsh"],
            "participation ratio": found[name] if name != "product and eigvalsh" else "of the uncentred product",
        }
        for name in ways
    ]


def write_parquet(path: Path, rows: int) -> None:
    """Correlated Gaussian numbers, in row groups of 250,000."""
    import pyarrow
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    mix = rng.standard_normal((COLUMNS, COLUMNS))
    writer = None
    for start in range(0, rows, 250_000):
        part = rng.standard_normal((min(250_000, rows - start), COLUMNS)) @ mix
        table = pyarrow.table({f"c{index}": part[:, index] for index in range(COLUMNS)})
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def of_inspect(path: Path) -> float:
    """All of it."""
    from lightning_sloppy import inspect

    return inspect(path).spectrum.participation_ratio.value


def of_inspect_without_intervals(path: Path) -> float:
    """All but the intervals."""
    from lightning_sloppy import inspect

    return inspect(path, intervals=False).spectrum.participation_ratio.value


def of_a_loop(path: Path) -> float:
    """Read batches and add products, which is the least that has to be done."""
    from pyarrow import parquet

    total, sums, count = np.zeros((COLUMNS, COLUMNS)), np.zeros(COLUMNS), 0
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=100_000):
            rows = np.column_stack([column.to_numpy() for column in batch.columns])
            total += rows.T @ rows
            sums += rows.sum(0)
            count += len(rows)
    covariance = total / count - np.outer(sums, sums) / count**2
    scale = np.sqrt(covariance.diagonal())
    return participation_ratio(covariance / scale[:, None] / scale)


def of_duckdb(path: Path) -> float:
    """One query for all pairs."""
    import duckdb

    pairs = [(i, j) for i in range(COLUMNS) for j in range(i)]
    asked = ", ".join(f"corr(c{i}, c{j})" for i, j in pairs)
    (found,) = duckdb.sql(f"SELECT {asked} FROM read_parquet('{path}')").fetchall()
    matrix = np.eye(COLUMNS)
    for (i, j), value in zip(pairs, found, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return participation_ratio(matrix)


def of_polars(path: Path) -> float:
    """The frame in memory."""
    import polars

    return participation_ratio(polars.read_parquet(path).corr().to_numpy())


WAYS: dict[str, tuple[str, Callable[[Path], float]]] = {
    "reading and products in a loop": ("pyarrow", of_a_loop),
    "inspect": ("pyarrow", of_inspect),
    "inspect without intervals": ("pyarrow", of_inspect_without_intervals),
    "duckdb, correlation alone": ("duckdb", of_duckdb),
    "polars, correlation alone": ("polars", of_polars),
}


def peak() -> float:
    """Highest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(name: str, path: str) -> None:
    """One way in this process: prints seconds, memory beside that of the imports, and the result."""
    package, way = WAYS[name]
    for module in ("lightning_sloppy", "pandas", "pyarrow.parquet", package):
        __import__(module)
    if name.startswith("inspect"):  # what the package loads when first used
        from lightning_sloppy import inspect

        inspect(np.random.default_rng(0).standard_normal((200, 3)))
    before, start = peak(), time.perf_counter()
    found = way(Path(path))
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before, "ratio": found}))


def parquet_file(options: Any) -> list[dict[str, Any]]:
    """Every way on a large and on a small file, each run in a process of its own."""
    large = 100_000 if options.quick else 5_000_000
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in (large // 10, large):
            path = Path(folder) / f"{rows}.parquet"
            write_parquet(path, rows)
            ways = [name for name, (package, _) in WAYS.items() if importlib.util.find_spec(package)]
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for _ in range(options.repeats if rows == large else 1):
                for name in ways:
                    command = [sys.executable, __file__, "--alone", name, str(path)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            first = statistics.median(run["seconds"] for run in runs[ways[0]])
            for name in WAYS:
                row: dict[str, Any] = {"question": f"parquet, {rows:,} x {COLUMNS}", "way": name}
                if name in runs:
                    seconds = statistics.median(run["seconds"] for run in runs[name])
                    row |= {
                        "seconds": seconds,
                        "times the first": seconds / first,
                        "memory, MB": statistics.median(run["memory"] for run in runs[name]),
                        "participation ratio": runs[name][-1]["ratio"],
                    }
                else:
                    row["seconds"] = f"not installed: pip install {WAYS[name][0]}"
                table.append(row)
            path.unlink()
    return table


def secom(options: Any) -> list[dict[str, Any]]:
    """The command on the file as it is published, from start to end."""
    if options.data is None:
        return []
    seconds, ratio = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(options.data / "secom" / "secom.zip") as archive:
            archive.extract("secom.data", folder)
        report = Path(folder) / "secom.json"
        program = "from lightning_sloppy.cli import main; main()"
        command = [sys.executable, "-c", program, "inspect", f"{folder}/secom.data", "--json", str(report)]
        for _ in range(1 if options.quick else options.repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        ratio = json.loads(report.read_text())["participation_ratio"]["value"]
    middle = statistics.median(seconds)
    row = {"question": "SECOM, 1,567 x 590", "way": "lightning-sloppy inspect", "seconds": middle}
    return [row | {"participation ratio": ratio}]


def processes(options: Any) -> list[dict[str, Any]]:
    """Moments over two processes, each with half of the rows, beside one process with all of them."""
    with tempfile.NamedTemporaryFile() as file:
        multiprocessing.spawn(half, args=(options, file.name), nprocs=2)
        return json.loads(Path(file.name).read_text())


def half(rank: int, options: Any, path: str) -> None:
    """One of the two."""
    from lightning_sloppy.inputs.moments import InputMoments

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=2)
    count = 2_000 if options.quick else 20_000
    rows = common.mnist(options.data, count, "cpu")[0].double()
    times: dict[str, list[float]] = {"one process": [], "two processes": []}
    found = {}
    for _ in range(options.repeats):
        for name in times:
            distributed.barrier()
            moments = InputMoments(sync_on_compute=name == "two processes")
            start = time.perf_counter()
            if name == "two processes":
                moments.update(rows[rank * count // 2 : (rank + 1) * count // 2])
            elif rank == 0:
                moments.update(rows)
            if name == "two processes" or rank == 0:
                found[name] = moments.compute().scatter
            times[name].append(time.perf_counter() - start)
    if rank == 0:
        seconds = {name: statistics.median(each) for name, each in times.items()}
        one, two = found["one process"], found["two processes"]
        table = [
            {
                "question": f"moments of {count:,} x {rows.shape[1]}",
                "way": name,
                "seconds": seconds[name],
                "times the first": seconds[name] / seconds["one process"],
                "largest relative difference": float((two - one).abs().max() / one.abs().max()),
            }
            for name in times
        ]
        Path(path).write_text(json.dumps(table))
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # threads of torch that still run at exit may abort the process


def main() -> None:
    """The parts that were asked for."""
    if "--alone" in sys.argv:
        alone(*sys.argv[sys.argv.index("--alone") + 1 :][:2])
        return
    options = common.arguments(__doc__ or "", part=PARTS)
    asked = {"mnist": mnist, "parquet": parquet_file, "secom": secom, "processes": processes}
    table = []
    for name, part in asked.items():
        if options.part in ("all", name):
            found = part(options)
            table += found
            print(*found, sep="\n", flush=True)
    remarks = [
        "Targets: input_spectrum takes at most 1.3 times the bare product and no longer than PCA; the memory of "
        "inspect does not grow with the rows; SECOM takes less than 30 s; two processes give the moments of one. The "
        "bare product is neither centred nor checked for NaN.",
        "Memory is the highest resident memory of a process, less what its imports take. inspect reads the file twice, "
        "because which columns can be used is known only at its end.",
    ]
    seconds = {row["way"]: row["seconds"] for row in table}
    if "PCA" in seconds:
        ratio = seconds["input_spectrum"] / seconds["PCA"]
        met = "met" if ratio <= 1 else "missed"
        remarks.append(f"input_spectrum takes {ratio:.2g} times as long as PCA, so that target is {met}.")
    question = "How fast are input_spectrum and inspect, and how much memory do they take?"
    if options.part == "all" and not options.quick:
        common.report("input_speed", question, table, remarks, options)
    else:
        print(common.markdown(common.record(question, table, remarks, options)))


if __name__ == "__main__":
    main()
