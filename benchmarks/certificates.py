"""How small are the bounds, with all terms included, and how long do they take?"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from lightning_sloppy import (
    Certificate,
    DistanceToInit,
    FinalCertificate,
    HessianSpectrum,
    LearningPlan,
    PACBayesBound,
    PriorSplit,
)
from lightning_sloppy.bounds import hold_out_bound
from lightning_sloppy.certifying.priors import Prior
from lightning_sloppy.demo import IDXDataModule
from lightning_sloppy.posteriors.learning_plan import Spread

DELTA = 0.05
RECORD = common.RESULTS / "certificates_cpu.json"


PLAIN: dict[str, Any] = {
    "logger": False,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "limit_val_batches": 0,
}
"""A Trainer that does nothing else."""


def quiet() -> None:
    """Only the numbers."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning_sloppy"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Network(LightningModule):
    """A network with SGD, momentum and a cosine."""

    def __init__(self, net: nn.Module, rate: float = 0.05) -> None:
        super().__init__()
        self.net, self.rate, self.loss_fn = net, rate, nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores."""
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss."""
        return self.loss_fn(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Momentum 0.9, to zero over the epochs."""
        optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)]


def fully_connected(*widths: int) -> nn.Module:
    """On flat images."""
    return nn.Sequential(nn.Flatten(), common.mlp(*widths))


def lenet() -> nn.Module:
    """44,426 weights."""
    return nn.Sequential(nn.Flatten(), common.lenet())


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        name: In the table.
        at_most: What the bound must not be above.
        net: Makes the network.
        data: Makes the data module from a folder; the second folder is that of Fashion-MNIST.
        epochs: Of training.
        gamma: Of DistanceToInit.
        learning: Seconds of optimising the posterior; 0 for the live bound alone.
        prior: Where the prior comes from; "split": half of the samples.
        spread: What has a deviation of its own.
    """

    name: str
    at_most: float
    net: Callable[[], nn.Module]
    data: str
    binary: bool
    epochs: int
    gamma: float
    learning: float
    prior: Prior = "initialization"
    spread: Spread = "kronecker"


ROWS = (
    Row(
        "binary MNIST, 784-600-600-2, PACBayesBound",
        0.40,
        lambda: fully_connected(784, 600, 600, 2),
        "mnist",
        True,
        4,
        1e-2,
        0,
    ),
    Row("the same, posterior optimised", 0.186, lambda: fully_connected(784, 600, 600, 2), "mnist", True, 4, 1e-3, 480),
    Row(
        "the same, prior from the initial curvature",
        0.186,
        lambda: fully_connected(784, 600, 600, 2),
        "mnist",
        True,
        4,
        1e-3,
        480,
        prior="curvature",
    ),
    Row("10-class MNIST, LeNet, posterior optimised", 0.30, lenet, "mnist", False, 6, 1e-3, 360),
    Row(
        "10-class MNIST, LeNet, prior from the initial curvature",
        0.30,
        lenet,
        "mnist",
        False,
        6,
        1e-3,
        360,
        prior="curvature",
    ),
    Row(
        "10-class MNIST, LeNet, half of the samples for the prior",
        0.03,
        lenet,
        "mnist",
        False,
        20,
        0,
        120,
        prior="split",
        spread="weights",
    ),
    Row(
        "Fashion-MNIST, 784-600-600-600-10, half of the samples for the prior",
        0.158,
        lambda: fully_connected(784, 600, 600, 600, 10),
        "fashion",
        False,
        20,
        0,
        300,
        prior="split",
    ),
)


def measured(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Train, certify, and evaluate on the test part."""
    seed_everything(1, verbose=False)
    start = time.perf_counter()
    folder = options.fashion if row.data == "fashion" else options.data / "mnist"
    data: LightningDataModule = IDXDataModule(str(folder), binary=row.binary)
    data = PriorSplit(data) if row.prior == "split" else data
    module = Network(row.net())
    callbacks: list[Any] = [DistanceToInit(row.gamma)] if row.gamma else []
    seconds = row.learning * options.scale
    final = FinalCertificate(
        DELTA,
        prior=row.prior,
        learning=LearningPlan(seconds=max(seconds, 1), spread=row.spread),
        strict=True,
    )
    live = PACBayesBound(DELTA, strict=True)
    callbacks += [final] if row.learning else [HessianSpectrum(k=30, probes=4, num_samples=2_000), live]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            max_epochs=max(round(row.epochs * options.scale), 1),
            callbacks=callbacks,
            default_root_dir=scratch,
            **PLAIN,
        )
        trainer.fit(module, datamodule=data)
        spent = time.perf_counter() - start
        if row.learning:
            assert final.certificates is not None
            certificate: Certificate = final.certificates[0]
            networks = [_weights(Path(scratch) / "certificate" / name) for name in certificate.networks]
        else:
            found = [m.certificate for m in live.measurements if m.certificate is not None and m.certificate.valid]
            certificate, networks = min(found, key=lambda one: one.value), []
    test = _test_set(data)
    errors = [_errors(module, weights, test) for weights in networks]
    count = len(test[1])
    mean = sum(errors) / len(errors) / count if errors else float("nan")
    return {
        "setting": row.name,
        "bound": certificate.value,
        "target": row.at_most,
        "n": certificate.n,
        "error of the drawn pair": certificate.empirical_risk,
        "complexity, nats": certificate.log_ratio,
        "test error of the drawn pair": mean,
        "hold-out bound of the model": hold_out_bound(_errors(module, None, test), count, DELTA),
        "largest part": certificate.weakest,
        "seconds": spent,
    }


def _weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def _test_set(data: Any) -> tuple[Tensor, Tensor]:
    inner = data.datamodule if isinstance(data, PriorSplit) else data
    tensors: tuple[Tensor, Tensor] = inner.test_set.tensors
    return tensors


def _errors(module: LightningModule, weights: dict[str, Tensor] | None, test: tuple[Tensor, Tensor]) -> int:
    own = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(weights or own)
    with torch.no_grad():
        wrong = sum(int((module.eval()(x).argmax(1) != y).sum()) for x, y in _parts(test))
    module.load_state_dict(own)
    return wrong


def _parts(test: tuple[Tensor, Tensor]) -> Iterator[Sequence[Tensor]]:
    return zip(test[0].split(2_000), test[1].split(2_000), strict=True)


def main() -> None:
    """Compute row after row. Rows that are recorded already are kept, unless they are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/")
    parser.add_argument("--fashion", type=Path, help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows to measure again, from 1")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the time: does everything run?")
    options = parser.parse_args()
    options.device, options.scale = "cpu", 0.02 if options.quick else 1.0
    quiet()
    kept = {}
    if RECORD.is_file():
        kept = {row["setting"]: row for row in json.loads(RECORD.read_text())["rows"]}
    remarks = [
        "delta = 0.05 in total. The bound is on the mean error of two drawn networks. All terms of the bound are "
        "included: n, KL divergence and ln(xi(n) / delta).",
        "The posterior is optimised in the Kronecker eigenbases of the layers (spread='kronecker'); in the row with "
        "half of the samples for the prior, over single weights (spread='weights').",
    ]
    for number, row in enumerate(ROWS, start=1):
        if row.data == "fashion" and options.fashion is None:
            remarks.append(f"Not run: {row.name} (needs --fashion).")
            kept.pop(row.name, None)
        elif row.name not in kept or number in (options.rows or ()):
            kept[row.name] = measured(row, options)
            print(kept[row.name], flush=True)
            common.report("certificates", __doc__, [kept[r.name] for r in ROWS if r.name in kept], remarks, options)
    common.report("certificates", __doc__, [kept[r.name] for r in ROWS if r.name in kept], remarks, options)


if __name__ == "__main__":
    main()
