"""Benchmarks that need a GPU, in one command of a few minutes: python benchmarks/gpu.py [--out FILE].

It needs no network and no data. Each line of the file is a record in the format of the other benchmarks. The file is
rewritten after every row, so an interrupted run keeps its results. ``run_all.py --tables`` shows them.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package may not be installed
sys.path.insert(0, str(Path(__file__).parent))

import common
import top_pairs

from lightning_sloppy import SloppyMonitor, hessian_spectrum
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.memory import counted_graph
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.precision import full_precision

FILE = common.RESULTS / "gpu.json"
MEGABYTE = 2**20


class CausalBlock(nn.Module):
    """Causal attention, then a network four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Both parts with skip connections."""
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.mix(self.norms[0](x)).chunk(3, 2))
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.net(self.norms[1](x))


class GPT(nn.Module):
    """Eight blocks of width 512, 10,000 tokens whose table is used again in the last layer: 30.4 million parameters."""

    def __init__(self, tokens: int = 10_000, length: int = 128, width: int = 512, blocks: int = 8) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(tokens, width), nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.table.weight, std=0.02)
        self.blocks = nn.Sequential(*[CausalBlock(width, 8) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token, (n, tokens, length)."""
        hidden = self.norm(self.blocks(self.table(tokens) + self.places))
        return (hidden @ self.table.weight.T).movedim(-1, 1)


@dataclass
class Case:
    """A network with the samples to measure it on."""

    name: str
    module: nn.Module
    batch: common.Data

    @property
    def operator_parts(self) -> tuple[Objective, ParameterLayout]:
        """The arguments of an operator."""
        return Objective(self.module, F.cross_entropy), ParameterLayout.of(self.module)


def small_resnet() -> nn.Sequential:
    """One block, on quarters of the images."""
    first, last = nn.AvgPool2d(4), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return nn.Sequential(first, nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), common.Block(4, 4, 1), *last)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The three networks, each trained for a short time, one after the other so that only one takes memory."""
    tiny, device = options.tiny, options.device
    digits = common.mnist(None, 400 if tiny else 20_000, device)
    n = 50 if tiny else 2000
    net = common.trained(common.mlp(*((784, 8, 10) if tiny else ())), digits, 1)
    yield Case(f"784-600-600-10, N = {n:,}", net, (digits[0][:n], digits[1][:n]))
    images = common.cifar(None, 16 if tiny else 4096, device)
    n = 8 if tiny else 512
    net = common.trained(small_resnet() if tiny else common.resnet(), images, 1)
    yield Case(f"ResNet-20, N = {n}", net, (images[0][:n], images[1][:n]))
    n, tokens, length = (4, 40, 6) if tiny else (16, 10_000, 128)
    net = GPT(tokens, length, 16, 1) if tiny else GPT()
    text = torch.randint(0, tokens, (4 * n, length + 1), generator=torch.Generator().manual_seed(0)).to(device)
    net = common.trained(net, (text[:, :-1], text[:, 1:]), 2, size=n)
    size = sum(p.numel() for p in net.parameters())
    yield Case(f"GPT, {size:,} parameters, N = {n} x {length} tokens", net, (text[:n, :-1], text[:n, 1:]))


@dataclass
class Records:
    """The results so far, written to the file after every row.

    Attributes:
        options: Of the command line.
        found: One record for each question.
    """

    options: argparse.Namespace
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, question: str, remarks: list[str], row: dict[str, Any]) -> None:
        """Keep one more row, print it, write the file."""
        print(json.dumps({"question": question, **row}), flush=True)
        rows = [*self.found.get(question, {"rows": []})["rows"], row]
        self.found[question] = common.record(question, rows, remarks, self.options)
        if self.options.out is not None:
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            self.options.out.write_text("".join(json.dumps(record) + "\n" for record in self.found.values()))

    def tried(self, question: str, remarks: list[str], name: str, row: Callable[[], dict[str, Any]]) -> None:
        """Add a row, or the error instead, so that the other rows are still computed."""
        try:
            found = row()
        except Exception as error:  # of a peer, of the memory, of a version
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        self.add(question, remarks, {"work": name, **found})
        if self.options.device == "cuda":
            torch.cuda.empty_cache()


PRODUCT = "What does one Hessian-vector product cost on the GPU, in gradients?"
PRODUCT_REMARKS = [
    "Products are made in whole float32 whatever the precision of the fit, and so is the gradient; beside it the "
    "gradient in bfloat16 by autocast, as bf16-mixed computes it. Medians of runs in turn."
]


def product(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a gradient, and of products relative to it."""
    objective, layout = case.operator_parts
    leaves = layout.leaves(case.module, objective.dtype)
    vector = torch.randn(layout.dim, device=options.device)

    def gradient(reduced: bool) -> Any:
        with torch.autocast(options.device, torch.bfloat16, enabled=reduced):
            outputs = torch.func.functional_call(case.module, leaves, (case.batch[0],))
            loss = F.cross_entropy(outputs.float(), case.batch[1])
        return torch.autograd.grad(loss, list(leaves.values()))

    with full_precision(), double_backward(case.module):
        kept = HessianOperator(objective, layout, [case.batch], method="kept_graph")
        anew = HessianOperator(objective, layout, [case.batch], method="recomputed")
        ways = {
            "gradient": lambda: gradient(False),
            "gradient in bfloat16": lambda: gradient(True),
            "kept graph": lambda: kept.matvec(vector),
            "recomputed": lambda: anew.matvec(vector),
        }
        for way in ways.values():
            way()
        seconds, _ = common.interleaved(ways, 2 if options.tiny else 9)
    one, reduced = seconds["gradient"], seconds["gradient in bfloat16"]
    return {
        "p": layout.dim,
        "gradient, s": one,
        "kept graph, gradients": seconds["kept graph"] / one,
        "recomputed, gradients": seconds["recomputed"] / one,
        "gradient in bfloat16, s": reduced,
        "kept graph, gradients in bfloat16": seconds["kept graph"] / reduced,
    }


WAITS = "How often does the host wait for the GPU, for each Hessian-vector product?"
WAITS_REMARKS = ["Counted by torch.cuda.set_sync_debug_mode: one warning for each operation that waits."]
NO_WAITS = "Waits are not counted without CUDA."


@contextmanager
def counted_waits(device: str) -> Iterator[list[int]]:
    """Count the operations inside that wait for the device; the list stays empty where there is no CUDA."""
    found: list[int] = []
    if device != "cuda":
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    found.append(sum("synchronizing" in str(warning.message) for warning in seen))


def waits(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Of products alone, and of a whole solve."""
    objective, layout = case.operator_parts
    vector = torch.randn(layout.dim, device=options.device)
    count = 3 if options.tiny else 20
    with full_precision(), double_backward(case.module):
        operator = HessianOperator(objective, layout, [case.batch])
        operator.matvec(vector)
        with counted_waits(options.device) as alone:
            for _ in range(count):
                operator.matvec(vector)
    with counted_waits(options.device) as solve:
        found = hessian_spectrum(case.module, [case.batch], F.cross_entropy, k=10, verify_multiplicity=False)
    return {
        "products": found.cost.products,
        "waits for a product": alone[0] / count if alone else "not counted",
        "of a solve, for a product": solve[0] / found.cost.products if solve else "not counted",
    }


PAIRS = "How fast are the ten Hessian eigenvalues of largest magnitude on the GPU, beside the tools people use?"
PAIRS_REMARKS = [
    "Differences are of the ten values, relative to the largest; ours meet a residual of 1e-3 of it. All in whole "
    "float32, and with the attention that has second derivatives. Medians of runs in turn; a peer that would take too "
    "long runs once."
]
PEERS: dict[str, Callable[[nn.Module, common.Data], list[float]]] = {
    "PyHessian": top_pairs.pyhessian,
    "curvlinops": top_pairs.curvlinops,
}


def pairs(case: Case, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Ten pairs by this package and by those that are installed."""
    seconds: dict[str, list[float]] = {"ours": []}
    values: dict[str, Any] = {}
    ways: dict[str, Callable[[nn.Module, common.Data], Any]] = {"ours": top_pairs.ours, **PEERS}
    remarks: dict[str, Any] = {}
    hessian_spectrum(case.module, [case.batch], top_pairs.LOSS, k=1)  # warm
    for _ in range(1 if options.tiny else 3):
        for name, way in list(ways.items()):
            taken = statistics.median(seconds.get(name) or [0.0])
            if time.perf_counter() + taken > deadline:
                continue
            try:
                common.wait()
                start = time.perf_counter()
                with full_precision(), sdpa_kernel(SDPBackend.MATH):
                    values[name] = way(case.module, case.batch)
                common.wait()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
            except ImportError:
                ways.pop(name)
            except Exception as error:  # of a peer: ours is worth a row
                if name == "ours":
                    raise
                ways.pop(name)
                remarks[f"{name}, times slower"] = f"failed: {type(error).__name__}"
    mine = values["ours"]
    reference = mine.eigenvalues[mine.eigenvalues.abs().argsort(descending=True)]
    ours = statistics.median(seconds["ours"])
    row = {"p": mine.dim, "products": mine.cost.products, "status": mine.status.name, "ours, s": ours}
    for peer in (name for name in values if name != "ours"):
        others = torch.tensor([float(value) for value in values[peer]], dtype=torch.float64)
        others = others[others.abs().argsort(descending=True)]
        row[f"{peer}, times slower"] = statistics.median(seconds[peer]) / ours
        row[f"{peer}, difference"] = float((others - reference).abs().max() / reference[0].abs())
    return {**row, **remarks}


MEMORY = "How much memory do ten Hessian pairs take on the GPU, and how much was foreseen?"
MEMORY_REMARKS = [
    "Foreseen is what the kept graph holds, as the package counts it to decide whether it fits, and the most that the "
    "Lanczos basis takes. The peak is that of torch's allocator beyond what was there before."
]
NO_PEAK = "The peak is not measured without CUDA."


def memory(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Expected and measured bytes of one solve."""
    objective, layout = case.operator_parts
    leaves = layout.leaves(case.module, objective.dtype)
    with full_precision(), double_backward(case.module), counted_graph() as graph:
        gradients = torch.autograd.grad(
            objective.loss(leaves, objective.prepare([case.batch])[0]), list(leaves.values()), create_graph=True
        )
    del gradients
    on_gpu = options.device == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = hessian_spectrum(case.module, [case.batch], F.cross_entropy, k=10, verify_multiplicity=False)
    basis = float(found.detail["basis_bytes"])
    row: dict[str, Any] = {
        "graph, MB": graph[0] / MEGABYTE,
        "basis, MB": basis / MEGABYTE,
        "method": found.cost.method,
        "peak, MB": "not measured",
    }
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before
        row |= {"peak, MB": peak / MEGABYTE, "peak over foreseen": peak / (graph[0] + basis)}
    return row


FIT = "What does the whole SloppyMonitor cost a fit on the GPU?"
FIT_REMARKS = [
    "784-600-600-10, batches of 128, the defaults: every part measures behind every epoch, and the first 60 s of "
    "measuring are free. Epochs are medians without the first, measurements behind the epoch included; the whole fit "
    "holds the measurements before and after as well."
]


class Clock(Callback):
    """Seconds of every epoch, waits for the device included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin."""
        common.wait()
        self._start = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """End."""
        common.wait()
        self.seconds.append(time.perf_counter() - self._start)


class Perceptron(LightningModule):
    """Adam and cross-entropy."""

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        self.net = common.mlp(*((784, 8, 10) if tiny else ()))
        self.loss_fn = nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores."""
        return self.net(inputs)

    def training_step(self, batch: common.Data) -> Tensor:
        """Mean loss."""
        return self.loss_fn(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def fitted(options: argparse.Namespace, monitor: SloppyMonitor | None, precision: str) -> tuple[float, float]:
    """Seconds of an epoch, median without the first, and of the whole fit."""
    seed_everything(1, verbose=False)
    module = Perceptron(options.tiny)
    data = TensorDataset(*common.mnist(None, 256 if options.tiny else 20_000, "cpu"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=2 if options.tiny else 6,
            callbacks=[clock] if monitor is None else [clock, monitor],
            default_root_dir=folder,
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            precision=precision,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        start = time.perf_counter()
        trainer.fit(module, DataLoader(data, 128, shuffle=True))
        common.wait()
        return statistics.median(clock.seconds[1:]), time.perf_counter() - start


def watched(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """With and without the monitor, in turn."""
    plain, measured = [], []
    monitor = SloppyMonitor()
    for _ in range(1 if options.tiny else 2):
        plain.append(fitted(options, None, precision))
        monitor = SloppyMonitor()
        measured.append(fitted(options, monitor, precision))
    row: dict[str, Any] = {
        "epoch without, s": statistics.median(epoch for epoch, _ in plain),
        "epoch with, s": statistics.median(epoch for epoch, _ in measured),
        "fit without, s": statistics.median(whole for _, whole in plain),
        "fit with, s": statistics.median(whole for _, whole in measured),
    }
    for name, found in monitor.measurements.items():
        row[f"{name}, s each"] = statistics.median(each.cost.seconds for each in found) if found else "nothing"
    return row


def main() -> int:
    """Run all parts, the short ones first. Parts for which no time remains are left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, also without a GPU: does everything run?")
    parser.add_argument("--out", type=Path, help=f"file to write; {FILE.name} among the results unless --tiny")
    parser.add_argument("--seconds", type=float, default=330.0, help="no row begins later than this")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "This benchmark needs a CUDA device and there is none; --device cpu --tiny shows whether it runs.",
            file=sys.stderr,
        )
        return 2
    options.data, options.quick = None, options.tiny
    torch.manual_seed(0)  # the same networks in every run
    if options.out is None and not options.tiny:
        options.out = FILE
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    records, deadline = Records(options), time.perf_counter() + options.seconds
    on_gpu = options.device == "cuda"
    held = list(cases(options))
    short = [
        (PRODUCT, PRODUCT_REMARKS, product),
        (WAITS, WAITS_REMARKS if on_gpu else [NO_WAITS], waits),
        (MEMORY, MEMORY_REMARKS if on_gpu else [*MEMORY_REMARKS, NO_PEAK], memory),
    ]
    for question, remarks, asked in short:
        for case in held:
            if time.perf_counter() < deadline:
                records.tried(question, remarks, case.name, lambda c=case, a=asked: a(c, options))
    for precision in ("32-true", "bf16-mixed"):
        if time.perf_counter() < deadline:
            records.tried(FIT, FIT_REMARKS, f"precision {precision}", lambda p=precision: watched(options, p))
    for index, case in enumerate(held):
        if time.perf_counter() < deadline:
            until = time.perf_counter() + (deadline - time.perf_counter()) / (len(held) - index)
            records.tried(PAIRS, PAIRS_REMARKS, case.name, lambda c=case, u=until: pairs(c, options, u))
    print("\n" + "\n".join(map(common.markdown, records.found.values())))
    return 0


def sections() -> list[str]:
    """The tables of the records there are, for RESULTS.md."""
    if not FILE.exists():
        return []
    return [common.markdown(json.loads(line)) for line in FILE.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
