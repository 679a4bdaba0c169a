"""The guessed loss is compared with what the first step of the training returns; the step is not called beside it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from support.dense import dense_hessian_of
from support.tiny import CLASSES, FEATURES, Classifier, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import (
    FisherSpectrum,
    HessianSpectrum,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    Status,
    fisher_spectrum,
    is_measuring,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*", "ignore:No PAC-Bayes bound.*")


class Counted(LightningModule):
    """Counts the calls of its step where nothing is turned back."""

    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 6),
            nn.BatchNorm1d(6) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(6, CLASSES),
        )

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        calls.append(batch_idx)
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


calls: list[int] = []


def fitted(tmp_path, module, *callbacks, data=None, **options):
    calls.clear()
    host = trainer(tmp_path, callbacks=list(callbacks), **{"max_epochs": 2, **options})
    host.fit(module, loader(shuffle=False) if data is None else data)
    return host


class Chained(Counted):
    """LBFGS calls the step several times for one batch."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)


class Dicts(Counted):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "extra": 3}


class DrawsInAHook(Counted):
    def on_train_batch_start(self, batch, batch_idx):
        torch.rand(2)


class CallsThePart(Counted):
    """Draws, then calls a part of itself instead of itself."""

    def training_step(self, batch, batch_idx):
        calls.append(batch_idx)
        torch.rand(2)
        return F.cross_entropy(self.net(batch[0]), batch[1])


class SpoilsTheBatch(Counted):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        batch[0].data.zero_()
        return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Counted, {}),
        (lambda: Counted(dropout=0.5, norm=True), {}),
        (lambda: Counted(dropout=0.5), {"accumulate_grad_batches": 3}),
        (lambda: Counted(dropout=0.5, norm=True), {"precision": "bf16-mixed"}),
        (lambda: Counted(norm=True), {"precision": "bf16-true"}),
        (lambda: Counted(dropout=0.5), {"precision": "64-true"}),
        (Chained, {}),
        (Dicts, {}),
        (lambda: DrawsInAHook(dropout=0.5), {}),
        (lambda: CallsThePart(dropout=0.5), {}),
        (SpoilsTheBatch, {}),
    ],
    ids=[
        "plain",
        "dropout",
        "accumulation",
        "bf16-mixed",
        "bf16-true",
        "64-true",
        "LBFGS",
        "dict",
        "hook",
        "part",
        "batch",
    ],
)
def test_a_right_guess_is_confirmed_and_the_step_called_by_the_training_alone(tmp_path, make, options):
    def run(*callbacks):
        seed_everything(3, verbose=False)
        module = make()
        # Copies, for a step may spoil its batch.
        fitted(
            tmp_path, module, *callbacks, data=DataLoader([tuple(t.clone() for t in p) for p in blobs()], 16), **options
        )
        return module, list(calls)

    plain, before = run()
    fisher = FisherSpectrum(num_samples=16, strict=True)
    watched, after = run(fisher)
    assert after == before
    assert fisher.measurements[0].step == 0
    assert all(m.status.ok for m in fisher.measurements)
    for mine, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


class Summed(Counted):
    """The loss adds up its samples, so the guess is compared before it is made a mean."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.criterion = nn.CrossEntropyLoss(reduction="sum")

    def training_step(self, batch, batch_idx):
        calls.append(batch_idx)
        return self.criterion(self(batch[0]), batch[1])


class Triples(Counted):
    def forward(self, inputs, mask):
        return self.net(inputs * mask)

    def training_step(self, batch, batch_idx):
        calls.append(batch_idx)
        return F.cross_entropy(self(*batch[:2]), batch[2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The loss adds up its samples.*")
@pytest.mark.parametrize("make", [Counted, Summed, Triples])
@pytest.mark.parametrize("modes", [("eval", "train"), ("train", "eval"), ("train",)])
def test_one_step_confirms_the_guess_for_both_modes(tmp_path, make, modes):
    inputs, targets = blobs().tensors
    rows = (inputs, torch.ones_like(inputs), targets) if make is Triples else (inputs, targets)
    data = DataLoader(TensorDataset(*rows), 16)
    fitted(tmp_path, make(), data=data)
    before = list(calls)
    found = [FisherSpectrum(num_samples=16, mode=mode, name=mode, strict=True) for mode in modes]

    class AfterTheStep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            published.append([len(fisher.measurements) for fisher in found])

    published = []
    fitted(tmp_path, make(), AfterTheStep(), *found, data=data)
    assert calls == before
    assert published[0] == [1] * len(found)
    for fisher in found:
        assert fisher.measurements[0].step == 0
        assert all(m.status.ok for m in fisher.measurements)


@pytest.mark.slow
def test_a_bound_in_eval_mode_trusts_what_a_step_has_confirmed_for_train_mode(tmp_path):
    """It asks for the loss when the spectrum is published, behind the comparison of the first step."""

    class AfterTheStep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            published.append(len(bound.measurements))

    published = []
    bound = PACBayesBound(strict=True)
    hessian = HessianSpectrum(k=2, num_samples=16, mode="train", strict=True)
    fitted(tmp_path, Counted(), hessian, bound, AfterTheStep())
    assert published[0] == 1


class Smoothed(Counted):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The fisher measurement failed.*")
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
def test_a_wrong_guess_is_found(tmp_path, options):
    fisher, hessian = FisherSpectrum(num_samples=16), HessianSpectrum(k=2, num_samples=16)
    with pytest.warns(UserWarning, match="cross-entropy gives .*, but training_step"):
        fitted(tmp_path, Smoothed(), fisher, hessian, **options)
    assert {m.status for m in fisher.measurements} == {Status.FAILED}
    assert all(m.status.ok for m in hessian.measurements)
    assert hessian.measurements[0].step == 0


def test_what_is_measured_first_is_of_the_weights_before_the_step(tmp_path):
    seed_everything(5, verbose=False)
    module = Counted(norm=True)
    # Of the module in eval mode with its fresh running statistics.
    expected = fisher_spectrum(module, [blobs(48).tensors], F.cross_entropy)
    fisher = FisherSpectrum(num_samples=48, strict=True)
    fitted(tmp_path, module, fisher)
    found = fisher.measurements[0].spectrum
    assert float(found.largest) == pytest.approx(float(expected.largest), rel=1e-5)


class Watching(Callback):
    """Notes what monitors and others can see, and when."""

    def __init__(self):
        self.first_end = self.first_validation = None

    def on_train_batch_end(self, host, module, *_):
        if self.first_end is None:
            self.first_end = sorted(name for name in host.callback_metrics if name.startswith("sloppy_"))

    def on_validation_start(self, host, module):
        if not host.sanity_checking and self.first_validation is None:
            self.first_validation = sorted(name for name in host.callback_metrics if name.startswith("sloppy_"))


@pytest.mark.slow
def test_the_first_measurement_is_there_before_any_end_of_a_batch(tmp_path):
    watching = Watching()
    watcher = SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=16), strict=True)
    stop = EarlyStopping("sloppy_fisher/trace", mode="max", patience=50)
    keep = ModelCheckpoint(tmp_path, monitor="sloppy_hessian/largest", every_n_train_steps=1)
    host = trainer(tmp_path, callbacks=[watching, stop, keep, watcher], enable_checkpointing=True, val_check_interval=1)
    host.fit(Classifier(), loader(), loader(blobs(seed=1), shuffle=False))
    for seen in (watching.first_end, watching.first_validation):
        for name in (
            "hessian/largest",
            "fisher/trace",
            "jacobian/effective_dimension",
            "bound/gibbs_error",
            "input/decades",
        ):
            assert f"sloppy_{name}" in seen
    assert [m.step for m in watcher.measurements["bound"]] == [m.step for m in watcher.measurements["hessian"]]
    assert watcher.measurements["bound"][0].certificate.valid


class Skips(Counted):
    """Its first steps have no loss."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if len(calls) < 3 else loss


@pytest.mark.slow
def test_steps_without_a_loss_are_waited_for(tmp_path):
    fisher = FisherSpectrum(num_samples=16, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted(tmp_path, Skips(), fisher)
    assert len(calls) == 6
    assert [m.step for m in fisher.measurements] == [0, 2, 5]
    assert all(m.status.ok for m in fisher.measurements)


class Never(Counted):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_training_that_never_has_a_loss_is_said(tmp_path):
    fisher = FisherSpectrum(num_samples=16)
    with pytest.warns(UserWarning, match="training_step returned no loss"):
        fitted(tmp_path, Never(), fisher)
    assert {m.status for m in fisher.measurements} == {Status.FAILED}
    assert len(calls) == 6


class Manual(Counted):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        calls.append(batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.optimizers().step()


def test_under_manual_optimisation_a_loss_is_asked_for(tmp_path):
    fisher = FisherSpectrum(num_samples=16)
    with pytest.warns(UserWarning, match="Under manual optimisation.* pass loss_fn="):
        fitted(tmp_path, Manual(), fisher)
    assert {m.status for m in fisher.measurements} == {Status.FAILED}
    given = FisherSpectrum(num_samples=16, loss_fn=F.cross_entropy, strict=True)
    fitted(tmp_path, Manual(), given)
    assert len(calls) == 6
    assert all(m.status.ok for m in given.measurements)


class Stream(IterableDataset):
    def __iter__(self):
        yield from blobs(48)


def test_the_guess_for_a_stream_comes_from_its_first_batch(tmp_path):
    fisher = FisherSpectrum(num_samples=16, strict=True)
    fitted(tmp_path, Counted(dropout=0.3), fisher, data=DataLoader(Stream(), 16))
    assert [m.step for m in fisher.measurements] == [0, 2, 5]
    assert len(calls) == 6


def test_a_resumed_run_is_compared_too(tmp_path):
    module = Counted(dropout=0.3)
    host = fitted(tmp_path, module, FisherSpectrum(num_samples=16, strict=True))
    host.save_checkpoint(tmp_path / "run.ckpt")
    fisher, bound = FisherSpectrum(num_samples=16, strict=True), PACBayesBound()
    again = trainer(tmp_path, callbacks=[fisher, bound], max_epochs=3)
    again.fit(Counted(dropout=0.3), loader(shuffle=False), ckpt_path=tmp_path / "run.ckpt")
    assert [m.step for m in fisher.measurements] == [6, 8]


def test_the_step_is_hooked_for_one_batch(tmp_path):
    module = Counted(dropout=0.3)
    hooks = []

    class Look(Callback):
        def on_train_batch_end(self, host, module, *_):
            hooks.append(sum(len(part._forward_pre_hooks) for part in module.modules()))

    fitted(tmp_path, module, FisherSpectrum(num_samples=16, strict=True), Look())
    assert hooks == [0] * 6


def test_a_step_that_raises_leaves_no_hooks_in_the_module(tmp_path):
    class Raises(Classifier):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    model, callback = Raises(), HessianSpectrum(k=2, num_samples=16)
    with pytest.raises(RuntimeError, match="boom"):
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, loader())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not callback._held


@pytest.mark.slow
def test_measurements_before_the_first_loss_are_all_published(tmp_path):
    class Late(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx < 2 else super().training_step(batch, batch_idx)

    schedule = Schedule(every_n_steps=1, max_overhead=None)
    callback = HessianSpectrum(k=2, num_samples=16, schedule=schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Late(), loader())
    assert [event.step for event in callback.measurements] == [0, 0, 1, 2]
    largest = [event.estimates["largest"].value for event in callback.measurements]
    assert largest[0] == largest[1] == largest[2] != largest[3]


def test_a_loss_without_a_hash_is_measured(tmp_path):
    @dataclass
    class Scaled:
        factor: float = 2.0

        def __call__(self, outputs, targets):
            return self.factor * nn.functional.cross_entropy(outputs, targets)

    callback = HessianSpectrum(k=2, num_samples=16, loss_fn=Scaled(), strict=True)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Classifier(), loader())
    assert callback.latest.estimates["largest"].value > 0


class Acts(Counted):
    """REINFORCE: the loss is that of actions that the step draws."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def training_step(self, batch, batch_idx):
        chosen = torch.distributions.Categorical(logits=self(batch[0].double()))
        actions = chosen.sample()
        return -(chosen.log_prob(actions) * (actions == batch[1])).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the Hessian is that of training_step.*")
def test_a_step_that_draws_actions_is_measured_at_one_draw_of_them(tmp_path):
    hessian = HessianSpectrum(k=1_000, num_samples=64, strict=True)
    module = Acts()
    fitted(tmp_path, module, hessian, data=DataLoader(blobs(24), 24))  # one batch, as large as the probe
    for event in hessian.measurements:
        assert event.status is Status.ONE_DRAW
        assert any("Values are those of one draw" in note for note in event.notes)
    x, y = blobs(24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]  # as the probe has them

    def one_draw():
        torch.manual_seed(0)
        return module.training_step((x, y), 0)

    right = torch.linalg.eigvalsh(dense_hessian_of(module, one_draw)).flip(0)
    torch.testing.assert_close(hessian.latest.spectrum.eigenvalues, right, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_what_is_measured_anew_has_the_buffers_from_before_the_step(tmp_path):
    """The step adds a penalty, so that the guess is wrong; it also moves the statistics of BatchNorm."""

    class Penalised(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0.5

    torch.manual_seed(0)
    model, data = Penalised(batch_norm=True, lr=0.0), blobs(48)
    with torch.no_grad():
        right = float(nn.functional.cross_entropy(model.eval()(data.tensors[0]), data.tensors[1])) + 0.5
    model.train()
    part = HessianSpectrum(k=2, strict=True)
    with pytest.warns(UserWarning, match="the Hessian is that of training_step"):
        trainer(tmp_path, callbacks=[part], max_epochs=1).fit(model, loader(data, shuffle=False))
    first, last = (event.estimates["loss"].value for event in part.measurements)
    assert first == pytest.approx(right, rel=1e-5)
    assert abs(last - first) > 1e-2 * first, "the statistics have moved by then"


def test_log_dict_of_ones_own_is_silent_while_measuring(tmp_path):
    called = []

    class Own(Classifier):
        """Writes down what it is told, by a way of its own."""

        def log_dict(self, *given, **options):
            called.append(is_measuring())

        def forward(self, inputs):
            self.log_dict({"size": inputs.abs().mean()})
            return super().forward(inputs)

    part = FisherSpectrum(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(Own(), loader())
    assert called == [False] * 3, "once in each step of the training"
