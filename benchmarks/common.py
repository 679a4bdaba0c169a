"""What the benchmarks share: models, data, interleaved timing, and records."""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
PEERS = ("PyHessian", "curvlinops-for-pytorch", "hessian-eigenthings", "nngeometry", "backpack-for-pytorch")
Data = tuple[Tensor, Tensor]
Task = TypeVar("Task")


def arguments(question: str, **own: int | tuple[str, ...] | type[Path]) -> argparse.Namespace:
    """The options of every script, and those of this one: whole numbers, choices (the first is the default), paths."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist/ and cifar10/; without it the data are synthetic")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, to test that everything runs")
    for name, value in own.items():
        if isinstance(value, tuple):
            parser.add_argument(f"--{name}", choices=value, default=value[0])
        elif isinstance(value, int):
            parser.add_argument(f"--{name}", type=int, default=value)
        else:
            parser.add_argument(f"--{name}", type=value)
    return parser.parse_args()


def mnist(root: Path | None, count: int, device: str, part: str = "train") -> Data:
    """Flat images with mean 0 and variance 1, of the part "train" or "t10k"; without a folder, noisy prototypes."""
    if root is None:
        return _made_up((784,), count, device)
    folder = root / "mnist"
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 784 * count]
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8 : 8 + count]
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(count, 784).float() / 255
    return ((pixels - 0.1307) / 0.3081).to(device), torch.tensor(list(labels)).to(device)


def cifar(root: Path | None, count: int, device: str) -> Data:
    """Colour images of 32 x 32."""
    if root is None:
        return _made_up((3, 32, 32), count, device)
    with lzma.open(root / "cifar10" / "data_batch_1.bin.xz") as file:
        raw = file.read(3073 * count)
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(count, 3073)
    images = rows[:, 1:].reshape(count, 3, 32, 32).float() / 255
    return ((images - 0.47) / 0.25).to(device), rows[:, 0].long().to(device)


def _made_up(shape: tuple[int, ...], count: int, device: str) -> Data:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=rng)
    prototypes = torch.randn(10, *shape, generator=rng)
    return (prototypes[labels] + 2 * torch.randn(count, *shape, generator=rng)).to(device), labels.to(device)


def mlp(*widths: int) -> nn.Sequential:
    """784-600-600-10 by default: 837,610 parameters."""
    widths = widths or (784, 600, 600, 10)
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Sequential:
    """44,426 parameters on 28 x 28."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


class Block(nn.Module):
    """Two convolutions with a skip connection, padded with zeros if the channels increase."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.stride, self.grown = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum."""
        beside = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        return F.relu(self.body(x) + beside)


def resnet() -> nn.Sequential:
    """ResNet-20 for CIFAR-10: 269,722 parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    wide = 16
    for width in (16, 32, 64):
        for index in range(3):
            layers.append(Block(wide, width, 2 if index == 0 and width != 16 else 1))
            wide = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Two layers, width 64, 32 tokens of 65 kinds: scores for the next token, (n, 65, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(65, 64), nn.Embedding(32, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 65)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores."""
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.body(hidden)).movedim(-1, 1)


def text(count: int, device: str) -> Data:
    """Random tokens and the next ones as targets. Times do not depend on their values."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 65, (count, 33), generator=rng).to(device)
    return tokens[:, :-1], tokens[:, 1:]


def trained(module: nn.Module, data: Data, epochs: int, *, size: int = 128, rate: float = 1e-3) -> nn.Module:
    """A few epochs of Adam, then eval mode."""
    torch.manual_seed(0)
    module.to(data[0].device).train()
    optimizer = torch.optim.Adam(module.parameters(), rate)
    for _ in range(epochs):
        for part in torch.randperm(len(data[1])).split(size):
            optimizer.zero_grad()
            F.cross_entropy(module(data[0][part]), data[1][part]).backward()
            optimizer.step()
    return module.eval()


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each way, run alternately, and the last result of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            wait()
            start = time.perf_counter()
            found[name] = way()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, found


def resumed(
    tasks: Sequence[Task],
    work: Callable[[Task], dict[str, Any]],
    task_of: Callable[[dict[str, Any]], Task],
    options: Any,
) -> dict[Task, dict[str, Any]]:
    """What is done of some tasks, after the rest of them was worked on in processes of their own.

    Args:
        tasks: All of them, in the order in which they are worked on.
        work: What is found for a task, as it is written to the file.
        task_of: The task of something that was read from the file.
        options: ``counts``, a file of JSON lines that is read and appended to, or None; ``processes``, 0 for no work.
    """
    done: dict[Task, dict[str, Any]] = {}
    if options.counts is not None and options.counts.exists():
        for found in map(json.loads, options.counts.read_text().splitlines()):
            done[task_of(found)] = found
    left = [task for task in tasks if task not in done] if options.processes else []
    if left:
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            for task, found in zip(left, pool.imap(work, left), strict=True):
                done[task] = found
                print(json.dumps(found), flush=True)
                if options.counts is not None:
                    with options.counts.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    return done


def wait() -> None:
    """Wait for the work queued on the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def record(question: str, rows: list[dict[str, Any]], remarks: list[str], options: Any) -> dict[str, Any]:
    """Rows with the hardware and software that they were measured on."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "question": question,
        "rows": rows,
        "remarks": remarks,
        "device": device,
        "data": "real" if options.data else "synthetic",
        "quick": options.quick,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **_peers()},
    }


def report(name: str, question: str, rows: list[dict[str, Any]], remarks: list[str], options: Any) -> None:
    """Print a table and save it as JSON with the hardware and software that it was measured on."""
    found = record(question, rows, remarks, options)
    RESULTS.mkdir(exist_ok=True)
    kind = "cuda" if options.device == "cuda" else "cpu"
    (RESULTS / f"{name}_{kind}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def _peers() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # noqa: PERF203 - a handful
            continue
    return found


def markdown(record: dict[str, Any]) -> str:
    """The record as a section."""
    rows = record["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"## {record['question']}", "", f"{record['device']}; {record['data']} data.", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join([*lines, "", *[f"* {remark}" for remark in record["remarks"]], ""])


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
