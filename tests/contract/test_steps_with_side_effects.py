"""Steps and forwards that do more than compute: with the monitor on, each effect comes as often as without it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from support.tiny import CLASSES, FEATURES, blobs, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import lightning_sloppy
from lightning_sloppy import HessianSpectrum, SloppyMonitor, Status
from lightning_sloppy.probing.muted import muted_optimizer, muted_scheduler

BATCHES = 9
"""Three epochs of three batches."""


class Plain(LightningModule):
    """Cross-entropy of a small network, so that the guess is right; subclasses do something beside it."""

    penalty = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, CLASSES))

    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, batch):
        """With a penalty the guess is wrong, and the step itself is the objective."""
        outputs = self(batch[0])
        squares = sum(p.square().sum() for p in self.parameters()) if self.penalty else 0.0
        return F.cross_entropy(outputs, batch[1]) + self.penalty * squares

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def seen(self):
        """What the effects have left."""


class Scheduled(Plain):
    def training_step(self, batch, batch_idx):
        self.lr_schedulers().step()
        return self.loss(batch)

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), 0.1)
        return [optimiser], [torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)]

    def seen(self):
        return self.optimizers().param_groups[0]["lr"], self.lr_schedulers().last_epoch


class SchedulesItself(Plain):
    """The schedule is an attribute that the Trainer does not know, stepped in the forward."""

    def forward(self, inputs):
        self.schedule.step()
        return super().forward(inputs)

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)
        return optimiser

    def seen(self):
        return self.optimizers().param_groups[0]["lr"], self.schedule.last_epoch


class WritesTheRate(Plain):
    def training_step(self, batch, batch_idx):
        for group in self.optimizers().param_groups:
            group["lr"] *= 0.9
        return self.loss(batch)

    def seen(self):
        return self.optimizers().param_groups[0]["lr"]


class Counter:
    def __init__(self):
        self.count = 0
        self.history = [0]

    def step(self):
        self.count += 1
        self.history.append(self.count)
        return 1.0 / self.count


class Annealed(Plain):
    """A plain object counts the steps, and the loss depends on it."""

    def __init__(self):
        super().__init__()
        self.counter = Counter()

    def training_step(self, batch, batch_idx):
        return self.loss(batch) * self.counter.step()

    def seen(self):
        return self.counter.count, tuple(self.counter.history)


class AnnealedForward(Annealed):
    """The same in the forward."""

    def forward(self, inputs):
        return self.net(inputs) * (1 + self.counter.step())

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


class Slotted(Counter):
    __slots__ = ("inner",)

    def __init__(self):
        super().__init__()
        self.inner = {"draws": np.random.default_rng(0), "table": np.zeros(2)}

    def step(self):
        self.inner["table"] += self.inner["draws"].random()
        return float(self.inner["table"][0])


class Environment(Plain):
    """A game with random numbers of its own: what it gives depends on how often it was asked."""

    def __init__(self):
        super().__init__()
        self.environment = Slotted()

    def training_step(self, batch, batch_idx):
        return self.loss((batch[0] * (1 + self.environment.step()), batch[1]))

    def seen(self):
        return float(self.environment.inner["table"][0])


class Meter(Plain):
    """One registered metric, one in a plain dict, and an average by hand."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.meters = {"hidden": MulticlassAccuracy(CLASSES)}
        self.total, self.count = 0.0, 0

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        self.accuracy.update(outputs, batch[1])
        self.meters["hidden"].update(outputs, batch[1])
        loss = self.loss(batch)
        self.total, self.count = self.total + float(loss), self.count + 1
        return loss

    def seen(self):
        return float(self.accuracy.compute()), float(self.meters["hidden"].compute()), self.total, self.count


class Average:
    """An exponential moving average of weights, as many projects carry it."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.shadow = [p.detach().clone() for p in self.parameters]

    def update(self):
        for mean, parameter in zip(self.shadow, self.parameters, strict=True):
            mean.mul_(0.9).add_(parameter.detach(), alpha=0.1)


class Averaging(Plain):
    def __init__(self):
        super().__init__()
        self.average = Average(self.net.parameters())
        self.teacher = nn.Linear(FEATURES, CLASSES).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.average.update()
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.net[0].weight[:CLASSES], alpha=0.1)
        distance = sum(
            (p - mean).square().sum() for p, mean in zip(self.net.parameters(), self.average.shadow, strict=True)
        )
        return self.loss(batch) + 0.1 * distance + 0.1 * F.mse_loss(self(batch[0]), self.teacher(batch[0]))

    def seen(self):
        return float(sum(mean.sum() for mean in self.average.shadow)), float(self.teacher.weight.sum())


class KeepsTheGraph(Plain):
    def __init__(self):
        super().__init__()
        self.last = None

    def training_step(self, batch, batch_idx):
        before = 0.0 if self.last is None else float(self.last)
        self.last = self.loss(batch)
        return self.last + 0.01 * before

    def seen(self):
        return float(self.last)


class DrawsFirst(Plain):
    """The step draws before the forward, so that dropout draws other numbers than at the start of the step."""

    def training_step(self, batch, batch_idx):
        torch.rand(3)
        return self.loss(batch)


class Remembers(Plain):
    total = 0

    def training_step(self, batch, batch_idx):
        type(self).total += 1
        GLOBAL["steps"] += 1
        return self.loss(batch) * (1 + 0.01 * (type(self).total + GLOBAL["steps"]))

    def seen(self):
        return type(self).total, GLOBAL["steps"]


GLOBAL = {"steps": 0}


def closed_over():
    """A step that counts in variables of the function around it."""
    count, tally = 0, Counter()

    class Closed(Plain):
        def training_step(self, batch, batch_idx):
            nonlocal count
            count += 1
            return self.loss(batch) * (1 + 0.01 * count) * tally.step()

        def seen(self):
            return count, tally.count

    return Closed()


MODULES = {
    "scheduler": Scheduled,
    "own scheduler": SchedulesItself,
    "rate": WritesTheRate,
    "counter": Annealed,
    "counter in forward": AnnealedForward,
    "environment": Environment,
    "meter": Meter,
    "average": Averaging,
    "graph": KeepsTheGraph,
    "draws first": DrawsFirst,
    "class and global": Remembers,
    "closure": closed_over,
}


def fitted(tmp_path, make, *callbacks, penalty=0.0, **options):
    GLOBAL["steps"] = Remembers.total = 0
    seed_everything(7, verbose=False)
    module = make()
    module.penalty = penalty
    host = trainer(tmp_path, callbacks=list(callbacks), **{"max_epochs": 3, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(module, DataLoader(blobs(48), 16, shuffle=True))
    return module, host


def watch(**options):
    return SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24), grace_seconds=1e9, bound=None, **options)


def assert_same_weights(mine, theirs):
    for (name, value), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 0.01], ids=["guess", "step"])
@pytest.mark.parametrize("name", MODULES)
def test_the_step_is_seen_as_often_as_without(tmp_path, name, penalty):
    plain, plain_host = fitted(tmp_path, MODULES[name], penalty=penalty)
    seen = plain.seen()
    watcher = watch()
    watched, host = fitted(tmp_path, MODULES[name], watcher, penalty=penalty)
    assert watched.seen() == seen
    assert_same_weights(watched, plain)
    assert host.global_step == plain_host.global_step == BATCHES
    assert [m.step for m in watcher.measurements["hessian"]] == [0, 2, 5, 8]
    assert all(m.status.ok for m in watcher.measurements["hessian"]), watcher.measurements["hessian"][0].notes


def test_the_guess_of_a_step_that_draws_first_is_confirmed(tmp_path):
    """Otherwise the shifted dropout would look like another loss, and there would be no Fisher matrix."""
    watcher = watch()
    fitted(tmp_path, DrawsFirst, watcher)
    assert watcher.latest["fisher"] is not None


class Writes(Plain):
    def on_fit_start(self):
        self.writer = self.logger.experiment

    def forward(self, inputs):
        self.writer.add_scalar("mine/forward", 1.0, self.global_step)
        return super().forward(inputs)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.logger.experiment.add_scalar("mine/loss", float(loss), self.global_step)
        self.logger.log_metrics({"mine/again": float(loss)}, step=self.global_step)
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 0.01], ids=["guess", "step"])
def test_the_experiment_of_the_logger_gets_one_point_a_batch(tmp_path, penalty):
    logger = TensorBoardLogger(tmp_path, name="run")
    watcher = watch()
    fitted(tmp_path, Writes, watcher, penalty=penalty, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    for name in ("loss", "again", "forward"):
        assert [event.step for event in events.Scalars(f"mine/{name}")] == list(range(BATCHES))
    assert watcher.latest["hessian"] is not None


@pytest.mark.slow
def test_a_hook_is_told_that_a_measurement_runs(tmp_path):
    class Hooked(Plain):
        def __init__(self):
            super().__init__()
            self.all_calls = self.own_calls = self.own_backwards = 0
            self.net[0].register_forward_hook(self.forward_hook)
            self.net[0].register_full_backward_hook(self.backward_hook)

        def forward_hook(self, *_):
            calls.append(lightning_sloppy.is_measuring())

        def backward_hook(self, *_):
            backwards.append(lightning_sloppy.is_measuring())

    calls, backwards = [], []
    plain, _ = fitted(tmp_path, Hooked)
    assert calls.count(False) == backwards.count(False) == len(calls) == BATCHES
    calls, backwards = [], []
    watched, _ = fitted(tmp_path, Hooked, watch())
    assert calls.count(False) == backwards.count(False) == BATCHES
    assert calls.count(True) > 0
    assert_same_weights(watched, plain)
    assert not lightning_sloppy.is_measuring()


def test_functions_say_it_too():
    told = []
    module = nn.Linear(FEATURES, CLASSES)
    module.register_forward_hook(lambda *_: told.append(lightning_sloppy.is_measuring()))
    lightning_sloppy.hessian_spectrum(module, [blobs(16).tensors], F.cross_entropy, k=1)
    assert told
    assert all(told)
    assert not lightning_sloppy.is_measuring()


class Locked(Plain):
    """What hangs on it cannot be copied."""

    def __init__(self):
        super().__init__()
        self.guard = threading.Lock()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        with self.guard:
            self.steps += 1
        return self.loss(batch)

    def seen(self):
        return self.steps


ENDLESS = itertools.count()


class ReadsUp(Plain):
    """The step reads on in an iterator of the file."""

    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (1 + 0.01 * (next(ENDLESS) % 3))


class WritesAFile(Plain):
    def training_step(self, batch, batch_idx):
        self.note()
        return self.loss(batch)

    def note(self):
        with open("/dev/null", "a") as file:
            file.write("a step")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "words"), [(Locked, "guard"), (ReadsUp, "ENDLESS"), (WritesAFile, "open")])
def test_a_step_that_would_leave_a_trace_is_not_measured_unless_it_is_asked_for(tmp_path, make, words):
    hessian = HessianSpectrum(k=2, num_samples=24)
    with contextlib.suppress(StopIteration):
        watched, _ = fitted(tmp_path, make, hessian, penalty=0.01)
    assert {m.status for m in hessian.measurements} == {Status.FAILED}
    note = hessian.measurements[0].notes[0]
    assert words in note
    assert "side effects on the training" in note
    assert "loss_fn='training_step'" in note
    if make is Locked:
        assert watched.seen() == BATCHES
    asked = HessianSpectrum(k=2, num_samples=24, loss_fn="training_step", strict=True)
    fitted(tmp_path, make, asked, penalty=0.01)
    assert asked.latest.status.ok


@pytest.mark.slow
def test_the_step_that_was_asked_for_is_measured_without_a_guess(tmp_path):
    """It is the objective from the start: nothing is held back."""
    asked = HessianSpectrum(k=2, num_samples=24, loss_fn="training_step", strict=True)
    plain, _ = fitted(tmp_path, Annealed)
    watched, _ = fitted(tmp_path, Annealed, asked)
    assert_same_weights(watched, plain)
    assert watched.seen() == plain.seen()
    assert "effective_dimension" not in asked.latest.estimates


@pytest.mark.slow
def test_the_largest_eigenvalue_of_a_step_with_a_counter_is_that_of_plain_autograd(tmp_path):
    class Fixed(Annealed):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    hessian = HessianSpectrum(k=2, num_samples=48, strict=True)
    module, _ = fitted(tmp_path, Fixed, hessian, penalty=0.01)
    module.double().eval()
    inputs, targets = blobs(48).tensors
    names, leaves = zip(*module.net.named_parameters(), strict=True)

    def loss(*weights):
        outputs = torch.func.functional_call(module.net, dict(zip(names, weights, strict=True)), inputs.double())
        return F.cross_entropy(outputs, targets) + 0.01 * sum(w.square().sum() for w in weights)

    rows = torch.autograd.functional.hessian(loss, tuple(leaf.detach() for leaf in leaves))
    whole = torch.cat(
        [torch.cat([part.reshape(a.numel(), -1) for part in row], 1) for row, a in zip(rows, leaves, strict=True)]
    )
    # Before the first step the counter says 1, behind the last batch of the last epoch one tenth.
    first, last = hessian.measurements[0], hessian.measurements[-1]
    top = float(torch.linalg.eigvalsh(whole)[-1])
    assert first.spectrum.largest == pytest.approx(top / 2, rel=1e-3)
    assert last.spectrum.largest == pytest.approx(top / 10, rel=1e-3)


def test_a_muted_optimiser_does_nothing_that_an_optimiser_does():
    weight = torch.nn.Parameter(torch.ones(3))
    own = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.full((3,), 2.0)
    before = own.state_dict()
    muted = muted_optimizer(own)
    muted.step()
    muted.zero_grad()
    muted.load_state_dict({"state": {}, "param_groups": []})
    muted.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    muted.param_groups[0]["lr"] = 7.0
    assert torch.equal(weight, torch.ones(3))
    assert torch.equal(weight.grad, torch.full((3,), 2.0))
    assert own.state_dict() == before
    assert muted.param_groups[0]["lr"] == 7.0, "what was written can be read"
    schedule = torch.optim.lr_scheduler.StepLR(own, 1)
    now = schedule.state_dict()
    still = muted_scheduler(schedule)
    still.step()
    still.load_state_dict({"last_epoch": 5})
    assert schedule.state_dict() == now
    assert still.get_last_lr() == [0.1]
