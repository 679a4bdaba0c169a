"""Fits with measurements; run as a script it is one rank of several, told by the environment."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    LearningPlan,
    Schedule,
    SloppyMonitor,
    load_run,
)
from lightning_sloppy.callbacks import fisher_spectrum as fisher_module
from lightning_sloppy.callbacks import instrument as instrument_module
from lightning_sloppy.callbacks import measuring as measuring_module
from lightning_sloppy.curvature import fisher_spectra as spectra_module
from lightning_sloppy.evaluation.batches import sample_count
from lightning_sloppy.evaluation.ranks import sum_over_ranks
from support import ranks
from support.tiny import Classifier, blobs, trainer

BATCH = 8


def rank() -> int:
    """0 for a process alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


class Stream(IterableDataset):
    """Each rank reads its share of every 8 samples, so that ranks together see the samples in order."""

    def __init__(self, count: int) -> None:
        self.data = blobs(count)

    def __iter__(self) -> Iterator[Any]:
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        own = BATCH // world
        for start in range(0, len(self.data), BATCH):
            for index in range(start + rank() * own, start + (rank() + 1) * own):
                yield self.data[index]


def everything(folder: Path, **options: Any) -> dict[str, float]:
    """What the monitors hold after a fit with every part, and the number of epochs."""
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=32),
        fisher=FisherSpectrum(num_samples=32),
        early_stopping=EffectiveDimensionEarlyStopping(patience=1, rel_tol=0.9),
        strict=True,
    )
    host = trainer(folder, callbacks=[watcher], max_epochs=3, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(40), BATCH))
    return {**{tag: float(value) for tag, value in host.callback_metrics.items()}, "epochs": host.current_epoch}


def measured(folder: Path, callbacks: list[Any], data: Any = None, epochs: int = 1, **options: Any) -> dict[str, Any]:
    """Eigenvalues, samples and sentences of every measurement of a fit with constant weights."""
    world = 1 if options == {} else 2
    host = trainer(folder, callbacks=callbacks, max_epochs=epochs, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(43), BATCH // world) if data is None else data)
    return {
        callback.name: [
            {
                "values": [] if m.spectrum is None else m.spectrum.eigenvalues.tolist(),
                "samples": m.num_samples,
                "status": m.status.name,
                "notes": list(m.notes),
                "steps": m.step,
            }
            for m in callback.measurements
        ]
        for callback in callbacks
    }


def uneven(folder: Path, **options: Any) -> dict[str, Any]:
    """43 samples: the sampler pads a shard, and the probe cannot be halved."""
    hessian = HessianSpectrum(k=3, num_samples=100, loss_fn=torch.nn.functional.cross_entropy, strict=True)
    fisher = FisherSpectrum(kind="sampled", num_samples=100, strict=True)
    samples, layers = set(), set()

    def samples_of_rank(*arguments: Any) -> Any:
        found = real_samples(*arguments)
        samples.add(sum(map(sample_count, found[0])))
        return found

    def layers_of_rank(*arguments: Any) -> Any:
        found = real_layers(*arguments)
        layers.add(found.dim)
        return found

    real_samples, real_layers = instrument_module.samples_of_rank, spectra_module.layers_of_rank
    with (
        patch.object(instrument_module, "samples_of_rank", samples_of_rank),
        patch.object(spectra_module, "layers_of_rank", layers_of_rank),
    ):
        found = measured(folder, [hessian, fisher], **options)
    return {**found, "own": [sorted(samples), sorted(layers)]}


def stream(folder: Path, **options: Any) -> dict[str, Any]:
    """The first batches of all ranks."""
    world = 1 if options == {} else 2
    data = DataLoader(Stream(48), BATCH // world)
    callbacks = [HessianSpectrum(k=3, num_samples=16, strict=True), FisherSpectrum(num_samples=16, strict=True)]
    return measured(folder, callbacks, data, **options)


def current(folder: Path, **options: Any) -> dict[str, Any]:
    """The batch just trained on, that of both ranks."""
    world = 1 if options == {} else 2
    data = DataLoader(Stream(48), BATCH // world)
    return measured(
        folder,
        [HessianSpectrum(schedule=Schedule(every_n_steps=2), k=3, measure_on="current_batch", strict=True)],
        data,
        **options,
    )


def failing(folder: Path, **options: Any) -> dict[str, Any]:
    """The last rank cannot make its second measurement."""
    calls = []

    def fisher_of(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 and rank() == 1:
            raise OSError("the sample is gone")
        return original(*arguments, **keywords)

    original = fisher_module.fisher_of
    with patch.object(fisher_module, "fisher_of", fisher_of):
        return measured(folder, [FisherSpectrum(num_samples=16)], epochs=2, **options)


def unguarded(folder: Path, **options: Any) -> dict[str, Any]:
    """The last rank cannot even open the guard around its second measurement."""
    calls = []

    def measuring(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6 and rank() == 1:
            raise RuntimeError("no room for a copy of the buffers")
        return original(*arguments)

    original = measuring_module.measuring
    with patch.object(measuring_module, "measuring", measuring):
        return measured(
            folder, [FisherSpectrum(schedule=Schedule(max_overhead=None), num_samples=16)], epochs=6, **options
        )


def short_of_memory(folder: Path, **options: Any) -> dict[str, Any]:
    """The last rank has no memory for the first product; all ranks then do less."""
    hessian = HessianSpectrum(k=3, num_samples=40, strict=True)
    original, calls = sum_over_ranks, []

    def add_up(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7 and rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")
        return original(tensor)

    with patch("lightning_sloppy.evaluation.ranks.sum_over_ranks", add_up):
        found = measured(folder, [hessian], **options)
    return {**found, "size": [hessian.size.num_samples, hessian.size.probes, hessian.size.k]}


def certified(folder: Path, **options: Any) -> dict[str, Any]:
    """43 samples of which the sampler pads a shard, weights that stand still."""
    plan = LearningPlan(seconds=60, epochs=3, batch_size=10)
    final = FinalCertificate(learning=plan, folder=str(folder / "certificate"), strict=True)
    host = trainer(folder, callbacks=[final], max_epochs=1, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(43), BATCH // (1 if options == {} else 2)))
    assert final.certificates is not None
    return {kind: asdict(one) for kind, one in zip(("pair", "single"), final.certificates, strict=True)}


def turned(folder: Path, **options: Any) -> dict[str, Any]:
    """The same in the Kronecker bases of the start, with held-out samples for the prior."""
    plan = LearningPlan(seconds=60, epochs=3, batch_size=10, spread="kronecker")
    final = FinalCertificate(prior="curvature", learning=plan, folder=str(folder / "certificate"), strict=True)
    host = trainer(folder, callbacks=[final], max_epochs=1, **options)
    batch = BATCH // (1 if options == {} else 2)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(43), batch), DataLoader(blobs(40, seed=9), batch))
    assert final.certificates is not None
    return {kind: asdict(one) for kind, one in zip(("pair", "single"), final.certificates, strict=True)}


def parted(folder: Path, **options: Any) -> dict[str, Any]:
    """Every rank has made a validation split of its own."""
    final = FinalCertificate(prior="curvature", folder=str(folder / "certificate"))
    host = trainer(folder, callbacks=[final], max_epochs=1, **options)
    held_out = DataLoader(blobs(40, seed=9 + rank()), BATCH)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(43), BATCH // 2), held_out)
    return {"flags": final.measurements[-1].certificate.flags, "reasons": final.measurements[-1].certificate.reasons}


def holed(count: int, holes: int) -> TensorDataset:
    """Samples of which some numbers are missing: a single one is on one rank alone."""
    inputs, targets = blobs(count).tensors
    inputs = inputs.clone()
    rng = torch.Generator().manual_seed(1)
    for _ in range(holes):
        row, column = int(torch.randint(count, (), generator=rng)), int(torch.randint(6, (), generator=rng))
        inputs[row, column] = float("nan")
    return TensorDataset(inputs, targets)


def inputs(folder: Path, **options: Any) -> dict[str, Any]:
    """The data side: 43 samples complete, with one number missing, with many; 5 samples; and a sample for one rank."""
    found = {}
    for name, count, holes in (("complete", 43, 0), ("one", 43, 1), ("many", 43, 30), ("few", 5, 2)):
        part = InputSpectrum(null=False, strict=True)
        host = trainer(folder / name, callbacks=[part], max_epochs=1, limit_train_batches=1, **options)
        host.fit(Filled(lr=0.0), DataLoader(holed(count, holes), BATCH // (1 if options == {} else 2)))
        event = part.latest
        halves = event.spectrum.halves
        found[name] = {
            "values": {key: each.value for key, each in event.estimates.items() if each.status.ok},
            "eigenvalues": event.spectrum.eigenvalues.tolist(),
            "halves": [] if halves is None else halves.flatten().tolist(),
            "notes": list(event.notes),
        }
    return found


def one_not_finite(folder: Path, **options: Any) -> dict[str, Any]:
    """A single number among the probe samples is not finite, and it is in the part of one rank alone."""
    inputs, targets = blobs(43).tensors
    inputs = inputs.clone()
    inputs[-1, 2] = float("inf")
    part = HessianSpectrum(k=2, num_samples=43)
    host = trainer(folder, callbacks=[part], max_epochs=1, limit_train_batches=1, **options)
    data = DataLoader(TensorDataset(inputs, targets), BATCH // (1 if options == {} else 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(Classifier(lr=0.0), data)
    return {"notes": [list(event.notes) for event in part.measurements]}


class Filled(Classifier):
    """Puts zeros where values are missing."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nan_to_num(inputs))


class Noisy(torch.utils.data.Dataset):
    """Noise at every read, on every rank another."""

    def __len__(self) -> int:
        return 43

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = blobs(43).tensors
        return inputs[index] + 0.1 * torch.randn(inputs.shape[1]), targets[index]


def cleaned(folder: Path, **options: Any) -> dict[str, Any]:
    """Augmented samples with the clean ones, which on one rank alone are too few in the second fit."""
    found = {}
    for name, clean in (("alike", lambda: blobs(43)), ("other", lambda: blobs(43 - rank()))):
        plan = LearningPlan(seconds=60, epochs=3, batch_size=10)
        final = FinalCertificate(learning=plan, folder=str(folder / name), clean=clean, strict=True)
        host = trainer(folder, callbacks=[final], max_epochs=1, **options)
        host.fit(Classifier(lr=0.0), DataLoader(Noisy(), BATCH // 2))
        certificate = final.measurements[-1].certificate
        found[name] = {"flags": certificate.flags, "hashes": certificate.network_hashes, "n": certificate.n}
    return found


def recorded(folder: Path, **options: Any) -> dict[str, Any]:
    """The events in the file of a run, as rank 0 finds them."""
    logger = CSVLogger(folder, name="logs", version=0)
    fisher = FisherSpectrum(num_samples=16, strict=True)
    host = trainer(folder, callbacks=[fisher], max_epochs=2, logger=logger, **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(40), BATCH // (1 if options == {} else 2)))
    if rank():
        return {}
    lines = (folder / "logs" / "version_0" / "sloppy_run.jsonl").read_text().splitlines()
    steps = [m.step for m in load_run(folder).instruments["fisher"].measurements]
    return {"events": [json.loads(line)["event"] for line in lines], "steps": steps}


ALL = (
    recorded, certified, turned, parted, cleaned, everything, inputs,
    one_not_finite, uneven, stream, current, failing, unguarded, short_of_memory,
)  # fmt: skip
SCENARIOS = {scenario.__name__: scenario for scenario in ALL}


def run(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """One scenario, always from the same seed."""
    seed_everything(5, verbose=False)
    return SCENARIOS[name](folder / name, **options)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    world = int(os.environ["WORLD_SIZE"])  # Lightning takes it away after a fit
    results = {name: run(name, target.parent, strategy="ddp", devices=world) for name in sys.argv[2:]}
    target.write_text(json.dumps(results))
    ranks.leave()
