"""What only a GPU can show: run with ``pytest -m cuda tests/cuda``."""

from __future__ import annotations

import warnings

import lightning.pytorch as lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from support.tiny import CLASSES, FEATURES, Classifier, blobs
from support.zoo import ZOO, made
from torch import nn
from torch.utils.data import DataLoader

from lightning_sloppy import (
    FisherSpectrum,
    HessianSpectrum,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    fisher_spectrum,
    hessian_spectrum,
    jacobian_spectrum,
)
from lightning_sloppy.curvature.memory import free_bytes
from lightning_sloppy.probing import trainer_internals

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
]


def small() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, CLASSES))
    return module, [blobs(48).tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_give_on_the_device_what_they_give_on_the_cpu(dtype):
    module, batches = small()
    tolerance = 1e-3 if dtype is torch.float32 else 1e-8

    def largest(device: str) -> torch.Tensor:
        placed = module.to(device, dtype)
        found = [
            hessian_spectrum(placed, batches, F.cross_entropy, k=5),
            *(fisher_spectrum(placed, batches, F.cross_entropy, kind=kind) for kind in ("empirical", "exact")),
            jacobian_spectrum(placed, batches),
        ]
        return torch.stack([spectrum.eigenvalues[:5] for spectrum in found])

    on_the_cpu = largest("cpu")
    torch.testing.assert_close(largest("cuda"), on_the_cpu, rtol=tolerance, atol=tolerance * float(on_the_cpu.max()))


def host(tmp_path, *callbacks, **options) -> lightning.Trainer:
    return lightning.Trainer(
        devices=1,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "gpu", "max_epochs": 3, **options},
    )


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_is_measured(tmp_path, name):
    """The top of the Hessian before the first step equals that of the same fit on the CPU."""

    def top(accelerator: str) -> float:
        seed_everything(3, verbose=False)
        module, data, loss = made(name)
        hessian = HessianSpectrum(k=2, num_samples=24, loss_fn=loss, schedule=Schedule(grace_seconds=1e9), strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            host(tmp_path, hessian, accelerator=accelerator, max_epochs=1).fit(module, data)
        return float(hessian.measurements[0].spectrum.largest)

    assert top("gpu") == pytest.approx(top("cpu"), rel=1e-2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*", "ignore:You defined a `validation_step`.*")
def test_training_is_bitwise_the_same_and_the_guess_is_confirmed(tmp_path, precision, monkeypatch):
    """16-mixed multiplies the loss by the scale of its GradScaler before anybody sees it go backward."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def run(*callbacks):
        seed_everything(7, verbose=False)
        module = Classifier(batch_norm=True, dropout=0.3)
        # bf16-true: torchmetrics in half precision would warn.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = host(tmp_path, *callbacks, precision=precision, deterministic=True)
            trainer.fit(module, DataLoader(blobs(96), 16, shuffle=True))
        return module, (torch.get_rng_state(), torch.cuda.get_rng_state())

    plain, streams = run()
    watcher = SloppyMonitor(grace_seconds=1e9, hessian=HessianSpectrum(k=2, num_samples=24))
    watched, watched_streams = run(watcher)
    for (name, mine), theirs in zip(watched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert watched.seen == plain.seen
    for mine, theirs in zip(watched_streams, streams, strict=True):
        assert torch.equal(mine, theirs)
    for name in ("jacobian", "hessian", "fisher"):
        assert all(m.status.ok for m in watcher.measurements[name]), watcher.measurements[name][0].notes


def test_memory_that_the_allocator_holds_is_free():
    device = torch.device("cuda", 0)
    before = free_bytes(device)
    taken = torch.empty(256 * 1024**2, dtype=torch.uint8, device=device)
    assert free_bytes(device) < before
    del taken  # held by the allocator, not given back to the driver
    assert free_bytes(device) >= before - 2 * 1024**2


def test_queued_training_is_not_charged_to_a_measurement(tmp_path):
    class Queued(Classifier):
        """Leaves the device busy for about half a second behind every step."""

        def on_after_backward(self):
            torch.cuda._sleep(1_000_000_000)

    fisher = FisherSpectrum(num_samples=16, strict=True, schedule=Schedule(every_n_steps=1, grace_seconds=1e9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = host(tmp_path, fisher, PACBayesBound(), max_epochs=1)
        trainer.fit(Queued(), DataLoader(blobs(48), 16))
    assert trainer_internals.root_device(trainer).type == "cuda"
    assert all(m.cost.seconds < 0.3 for m in fisher.measurements[1:])
