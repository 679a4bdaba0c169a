"""What projects train: losses of their own, parts under two names, complex weights, forces, sparse tables, pruning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from support.dense import dense_hessian_of
from support.tiny import CLASSES, FEATURES, blobs, trainer
from support.zoo import Trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sloppy import (
    DistanceToInit,
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    LearningPlan,
    PACBayesBound,
    SloppyMonitor,
)

COUNT = 24


class Weighed(Trained):
    """Two terms with learnt weights, and a penalty, in a method that callbacks find."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES))
        self.logs = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss_fn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = torch.stack([F.cross_entropy(outputs, targets), outputs.square().mean()])
        penalty = sum((p.square().sum() for p in self.net.parameters()), torch.zeros(()))
        return (self.logs.neg().exp() * terms + self.logs).sum() + 0.05 * penalty

    def training_step(self, batch: Any) -> Tensor:
        return self.loss_fn(self(batch[0]), batch[1])


class TwoNames(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)
        self.model = nn.Sequential(self.backbone, nn.Tanh(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Waves(Trained):
    """Complex weights in front of a real layer."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = nn.Parameter(torch.randn(4, FEATURES, dtype=torch.cfloat) / 2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(self.waves.dtype) @ self.waves.T).abs())


class Physics(Trained):
    """The derivative in the inputs is taken in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, t: Tensor) -> Tensor:
        return self.net(t)

    def training_step(self, batch: Any) -> Tensor:
        t = batch[0].clone().requires_grad_(True)
        u = self(t)
        slope = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]
        return F.mse_loss(slope, torch.cos(t)) + F.mse_loss(u, batch[1])


class Forces(Physics):
    """The derivative is an output, and a method is the loss."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.requires_grad_(True)
        u = self.net(t)
        return u, torch.autograd.grad(u.sum(), t, create_graph=True)[0]

    def loss_fn(self, found: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.mse_loss(found[0], targets) + F.mse_loss(found[1], targets.square())

    def training_step(self, batch: Any) -> Tensor:
        return self.loss_fn(self(batch[0]), batch[1])


class Slopes(Trained):
    """A classifier by the slope of an energy in the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 1))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_(True)
        return self.head(torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0])


class Sparse(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(words).sum(1)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def times() -> Dataset:
    t = torch.linspace(0, 6, COUNT)[:, None]
    return TensorDataset(t, torch.sin(t))


def words() -> Dataset:
    rng = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, 9, (COUNT, 4), generator=rng), torch.randint(0, 3, (COUNT,), generator=rng))


KINDS: dict[str, tuple[type[Trained], Callable[[], Dataset], bool]] = {
    # name: module, data, whether outputs and loss are known apart
    "loss of its own": (Weighed, lambda: blobs(COUNT), True),
    "two names": (TwoNames, lambda: blobs(COUNT), True),
    "complex": (Waves, lambda: blobs(COUNT), True),
    "physics": (Physics, times, False),
    "forces": (Forces, times, True),
    "slopes": (Slopes, lambda: blobs(COUNT), True),
    "sparse": (Sparse, words, True),
}


def fitted(build: type[Trained], data: Callable[[], Dataset], tmp_path: Any, callbacks: list[Callback]) -> Trained:
    torch.manual_seed(0)
    module = build()
    trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, DataLoader(data(), 8))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_is_measured_and_trains_as_without(tmp_path, kind):
    build, data, apart = KINDS[kind]
    hessian = HessianSpectrum(k=3, num_samples=COUNT, strict=True)
    fisher = FisherSpectrum(num_samples=COUNT, strict=True) if apart else None
    options = {"input": None} if kind == "sparse" else {}
    watcher = SloppyMonitor(hessian=hessian, fisher=fisher, bound=None, strict=True, **options)
    plain = fitted(build, data, tmp_path, [])
    said = nullcontext() if apart else pytest.warns(UserWarning, match="the Hessian is that of training_step")
    with said:
        watched = fitted(build, data, tmp_path, [watcher])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert all(event.status.ok for part in watcher.latest for event in watcher.measurements[part])
    x, y = data().tensors
    if kind == "sparse":
        watched.table.sparse = False  # for the reference alone
    expected = torch.linalg.eigvalsh(dense_hessian_of(watched, lambda: watched.training_step((x.clone(), y))))
    found = watcher.latest["hessian"].spectrum
    assert found.dim == len(expected)
    assert found.largest == pytest.approx(float(expected[-1]), rel=1e-3)
    assert found.smallest == pytest.approx(float(expected[0]), rel=1e-3, abs=1e-3 * float(expected[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two names", "complex", "slopes", "sparse"])
def test_bounds_and_certificates(tmp_path, kind):
    build, data, _ = KINDS[kind]
    bound, final = PACBayesBound(strict=True), FinalCertificate(learning=LearningPlan(seconds=5, epochs=2), strict=True)
    hessian = HessianSpectrum(k=2, num_samples=COUNT, strict=True)
    watched = fitted(build, data, tmp_path, [hessian, bound, final])
    plain = fitted(build, data, tmp_path, [])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert bound.latest.certificate.valid
    pair = final.certificates[0]
    assert pair.valid
    # The files hold the networks that were judged: as many errors by hand.
    x, y = data().tensors
    folder = next(tmp_path.rglob(pair.networks[0])).parent
    wrong = 0
    for name in pair.networks:
        again = build().eval()
        again.load_state_dict(torch.load(folder / name, weights_only=True)["state_dict"])
        wrong += int((again(x).argmax(1) != y).sum())
    assert pair.empirical_risk == pytest.approx(wrong / (2 * COUNT))


@pytest.mark.slow
def test_notes_say_what_matrices_of_the_outputs_leave_out(tmp_path):
    hessian, fisher = (
        HessianSpectrum(k=2, num_samples=COUNT, strict=True),
        FisherSpectrum(num_samples=COUNT, strict=True),
    )
    fitted(Weighed, lambda: blobs(COUNT), tmp_path, [hessian, fisher])
    for callback in (hessian, fisher):
        assert any(
            "The loss also depends on net.0.weight, net.0.bias, net.2.weight and 1 more past" in note
            for note in callback.latest.notes
        )
    assert not any("logs" in note for note in fisher.latest.notes)
    assert any("Only the loss depends on logs" in note for note in hessian.latest.notes)


def test_a_loss_that_differentiates_its_outputs_keeps_its_hessian(tmp_path):
    class Inside(Physics):
        def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
            t = t.requires_grad_(True)
            return self.net(t), t

        def loss_fn(self, found: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
            return F.mse_loss(torch.autograd.grad(found[0].sum(), found[1], create_graph=True)[0], targets)

        def training_step(self, batch: Any) -> Tensor:
            return self.loss_fn(self(batch[0]), batch[1])

    hessian = HessianSpectrum(k=2, num_samples=COUNT, strict=True)
    with pytest.warns(UserWarning, match="No Gauss-Newton part: .* differentiates its outputs"):
        fitted(Inside, times, tmp_path, [hessian])
    assert all(event.status.ok for event in hessian.measurements)
    assert "effective_dimension" not in hessian.latest.estimates


def test_the_distance_of_complex_weights_is_that_of_both_parts(tmp_path):
    class ByHand(Waves):
        def on_train_start(self) -> None:
            self.start = [p.detach().clone() for p in self.parameters()]

        def training_step(self, batch: Any) -> Tensor:
            moved = [(p - s).abs().square().sum() for p, s in zip(self.parameters(), self.start, strict=True)]
            return super().training_step(batch) + 0.1 * torch.stack(moved).sum()

    held = fitted(Waves, lambda: blobs(COUNT), tmp_path, [DistanceToInit(gamma=0.1)])
    by_hand = fitted(ByHand, lambda: blobs(COUNT), tmp_path, [])
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(held.state_dict()[name], value, rtol=1e-4, atol=1e-6)


class Later(Callback):
    """Changes a module when its second epoch begins."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        self.change = change

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.change(pl_module)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda module: prune.l1_unstructured(module.backbone, "weight", amount=0.5),
        lambda module: parametrizations.weight_norm(module.head),
    ],
    ids=["pruned", "weight norm"],
)
@pytest.mark.filterwarnings("ignore:.*Buffers or frozen parameters changed.*")
def test_parameters_that_get_other_names_are_one_sentence(tmp_path, change):
    hessian, bound = HessianSpectrum(k=2, num_samples=COUNT, strict=True), PACBayesBound(strict=True)
    with pytest.warns(
        UserWarning, match="No PAC-Bayes bound .* The set of trainable parameters changed during the fit"
    ):
        module = fitted(TwoNames, lambda: blobs(COUNT), tmp_path, [Later(change), hessian, bound])
    assert [event.certificate.valid for event in bound.measurements] == [True, True, False]
    assert all(event.status.ok for event in hessian.measurements)
    assert hessian.latest.spectrum.dim == sum(p.numel() for p in module.parameters())
    # The directions of the time before are in another order.
    assert ["overlap" in event.estimates for event in hessian.measurements] == [False, True, False]
