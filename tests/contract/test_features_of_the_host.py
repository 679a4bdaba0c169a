"""Whatever people do in a fit: with the monitor on, everything they could look at is bitwise what it is without."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from support.tiny import FEATURES, Classifier, blobs, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, Schedule, SloppyMonitor


class Adversaries(LightningModule):
    """Two networks against one another: manual optimisation, two optimisers, requires_grad switched back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = (
            nn.Linear(2, FEATURES),
            nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)),
        )

    def forward(self, inputs):
        return self.judge(inputs)

    def training_step(self, batch):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        made = self.maker(torch.randn(len(batch[0]), 2))
        first.zero_grad()
        self.manual_backward(-self.judge(made).mean())
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(self.judge(made.detach()).mean() - self.judge(batch[0]).mean())
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 0.01) for part in (self.maker, self.judge)]


class Augmented(Dataset):
    """Draws from all three global streams for every sample."""

    def __init__(self) -> None:
        self.data = blobs(48)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        inputs, targets = self.data[index]
        shift = 0.01 * (float(torch.randn(())) + np.random.randn() + random.random())  # noqa: NPY002
        return inputs + shift, targets


class NoisyStream(IterableDataset):
    def __iter__(self):
        for inputs, targets in blobs(48):
            yield inputs + 0.01 * torch.randn(FEATURES), targets


class Stateful(DataLoader):
    """Remembers how far it is, as loaders do that can resume within an epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


class Paired(Classifier):
    """One step on the batches of two loaders."""

    def training_step(self, batch, batch_idx):
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        return sum(super(Paired, self).training_step(part, batch_idx) for part in parts)


def score(outputs, targets):
    return (outputs.squeeze(1) - targets.float()).square().mean()


def shuffled(dataset: Any = None) -> DataLoader:
    return DataLoader(blobs(48) if dataset is None else dataset, 16, shuffle=not isinstance(dataset, IterableDataset))


def noisy() -> Classifier:
    return Classifier(batch_norm=True, dropout=0.3)


CASES: dict[str, tuple[Callable[[], LightningModule], Callable[[], Any], dict[str, Any]]] = {
    "two optimisers": (Adversaries, shuffled, {"loss_fn": score}),
    "averaged weights": (noisy, shuffled, {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]}),
    "stochastic averaging": (
        noisy,
        shuffled,
        {"callbacks": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=2)], "max_epochs": 4},
    ),
    "augmentation": (noisy, lambda: shuffled(Augmented()), {}),
    "stream": (noisy, lambda: shuffled(NoisyStream()), {}),
    "stateful loader": (noisy, lambda: Stateful(blobs(48), 16, shuffle=True), {}),
    "list of loaders": (Paired, lambda: [shuffled(), shuffled()], {}),
    "dict of loaders": (Paired, lambda: {"a": shuffled(), "b": shuffled()}, {}),
    "workers": (
        noisy,
        lambda: DataLoader(Augmented(), 16, num_workers=1, persistent_workers=True, multiprocessing_context="fork"),
        {},
    ),
    "accumulation and clipping": (noisy, shuffled, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "current batch": (noisy, shuffled, {"measure_on": "current_batch"}),
}


def everything(module: LightningModule, host: Any, data: Any) -> dict[str, Any]:
    """All that a person could look at."""
    found: dict[str, Any] = {f"state {name}": value for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad
        found[f"requires {name}"] = parameter.requires_grad
    found |= {f"mode {name}": child.training for name, child in module.named_modules()}
    found["metrics"] = {k: float(v) for k, v in host.callback_metrics.items() if not k.startswith("sloppy_")}
    for index, optimiser in enumerate(host.optimizers):
        for place, entry in optimiser.state_dict()["state"].items():
            found |= {f"optimiser {index} {place} {name}": value for name, value in entry.items()}
    found["torch"], found["python"] = torch.get_rng_state(), random.getstate()
    found["numpy"] = torch.as_tensor(np.random.get_state()[1].astype(np.int64))  # noqa: NPY002
    found["grad mode"], found["inference"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found["seen"] = getattr(module, "seen", None)
    found["given"] = getattr(data, "given", None)
    return found


def fitted(tmp_path, name: str, *extra) -> dict[str, Any]:
    make, load, options = CASES[name]
    options = {key: value for key, value in options.items() if key not in ("loss_fn", "measure_on")}
    seed_everything(7, verbose=False)
    module, data = make(), load()
    callbacks = [*options.pop("callbacks", list)(), *extra]
    host = trainer(tmp_path, callbacks=callbacks, **{"max_epochs": 3, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(module, data)
    return everything(module, host, data)


def assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_everything_is_bitwise_the_same(tmp_path, name):
    options = {key: value for key, value in CASES[name][2].items() if key in ("loss_fn", "measure_on")}
    watcher = SloppyMonitor(
        input=None,
        hessian=HessianSpectrum(k=2, num_samples=24),
        fisher=FisherSpectrum(num_samples=24),
        every_n_steps=2,
        **options,
    )
    plain, watched = fitted(tmp_path, name), fitted(tmp_path, name, watcher)
    assert_same(watched, plain)
    assert sum(m.status.ok for m in watcher.measurements["hessian"]) >= 3


class Spoiling(FisherSpectrum):
    """Changes all that it can reach, and raises."""

    def measure(self, trainer, pl_module, probe):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        pl_module.eval()
        torch.set_grad_enabled(False)
        pl_module.net[1].running_mean.add_(1.0)
        pl_module.seen.append(0.0)
        raise RuntimeError("broken on purpose")


def test_everything_is_the_same_after_an_exception_inside_a_measurement(tmp_path):
    plain = fitted(tmp_path, "augmentation")
    assert_same(fitted(tmp_path, "augmentation", Spoiling(schedule=Schedule(every_n_steps=2))), plain)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_a_measurement_ends_the_fit_and_leaves_no_trace(tmp_path, error):
    class Stopping(FisherSpectrum):
        def measure(self, trainer, pl_module, probe):
            if probe.step == 0:
                return super().measure(trainer, pl_module, probe)
            pl_module.eval()
            torch.set_grad_enabled(False)
            raise error

    seed_everything(7, verbose=False)
    module, watcher = noisy(), Stopping(schedule=Schedule(every_n_steps=2), num_samples=16)
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit):
            host.fit(module, shuffled())
    assert [m.step for m in watcher.measurements] == [0]
    assert module.training
    assert torch.is_grad_enabled()
    assert "log" not in vars(module)
