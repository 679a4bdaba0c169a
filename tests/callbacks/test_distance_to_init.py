"""The term does what the same term in the loss does, and nothing where it is zero."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningModule
from support.tiny import SAFELY, Classifier, Regressor, blobs, trainer
from torch.utils.data import DataLoader

from lightning_sloppy import ConfigurationError, DistanceToInit, SloppyMonitor, UnsupportedError
from lightning_sloppy.probing import trainer_internals

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

GAMMA = 0.1


class ByHand(Regressor):
    """The term written into the loss; ``strength`` of (batches done, batches in all)."""

    def __init__(self, strength, names=("net",)) -> None:
        super().__init__()
        self.strength, self.names, self.done = strength, names, 0
        self.start = {name: value.detach().clone() for name, value in self.named_parameters()}

    def training_step(self, batch):
        loss = super().training_step(batch)
        self.done += 1
        away = [
            (value - self.start[name]).square().sum()
            for name, value in self.named_parameters()
            if name.startswith(self.names)
        ]
        return loss + self.strength(self.done) * sum(away)


def data() -> DataLoader:
    inputs, _ = blobs(48)[:]
    return DataLoader(torch.utils.data.TensorDataset(inputs, inputs[:, :2].sin()), 16)


def adam(module: LightningModule):
    return torch.optim.Adam(module.parameters(), 0.02)


def momentum(module: LightningModule):
    return torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)


def fitted(tmp_path, build, callbacks, optimizer=momentum, **options):
    torch.manual_seed(0)
    module = build()
    module.configure_optimizers = partial(optimizer, module)
    trainer(tmp_path, callbacks=callbacks, **{"max_epochs": 4, **options}).fit(module, data())
    return module


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulated", "clipped", "mixed"],
)
def test_it_is_the_term_in_the_loss(tmp_path, optimizer, options):
    expected = fitted(tmp_path, lambda: ByHand(lambda _: GAMMA), [], optimizer, **options)
    found = fitted(tmp_path, Regressor, [DistanceToInit(GAMMA)], optimizer, **options)
    without = fitted(tmp_path, Regressor, [], optimizer, **options)
    for name, value in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), value, rtol=1e-4, atol=1e-6)
    moved = [torch.dist(a, b) for a, b in zip(found.parameters(), without.parameters(), strict=True)]
    assert max(moved) > 1e-3


def test_it_grows_until_the_planned_end(tmp_path):
    expected = fitted(tmp_path, lambda: ByHand(lambda done: GAMMA * done / 12), [])
    found = fitted(tmp_path, Regressor, [DistanceToInit(GAMMA, schedule="linear")])
    for name, value in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), value, rtol=1e-4, atol=1e-6)


def test_parameters_by_pattern(tmp_path):
    expected = fitted(tmp_path, lambda: ByHand(lambda _: GAMMA, ("net.0.weight",)), [])
    found = fitted(tmp_path, Regressor, [DistanceToInit(GAMMA, parameters="net.0.w*")])
    for name, value in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), value, rtol=1e-4, atol=1e-6)


def test_zero_changes_nothing(tmp_path):
    plain = fitted(tmp_path, Regressor, [])
    zero = fitted(tmp_path, Regressor, [DistanceToInit(0.0)])
    for mine, theirs in zip(plain.parameters(), zero.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_it_shortens_the_way_and_lowers_the_complexity(tmp_path):
    def displacement(callbacks):
        torch.manual_seed(0)
        monitor = SloppyMonitor(strict=True)
        trainer(tmp_path, callbacks=[*callbacks, monitor], max_epochs=4).fit(Classifier(), DataLoader(blobs(64), 16))
        return monitor.latest["bound"].certificate

    plain, held = displacement([]), displacement([DistanceToInit(0.3)])
    assert held.valid
    assert held.kl_displacement + held.kl_covariance < plain.kl_displacement + plain.kl_covariance


def test_a_resumed_run_goes_on_from_the_same_beginning(tmp_path):
    whole = fitted(tmp_path, Regressor, [DistanceToInit(GAMMA)])
    torch.manual_seed(0)
    module = Regressor()
    module.configure_optimizers = partial(momentum, module)
    host = trainer(tmp_path, callbacks=[DistanceToInit(GAMMA)], max_epochs=2)
    host.fit(module, data())
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = Regressor()
    again.configure_optimizers = partial(momentum, again)
    trainer(tmp_path, callbacks=[DistanceToInit(GAMMA)], max_epochs=4).fit(
        again, data(), ckpt_path=tmp_path / "run.ckpt", **SAFELY
    )
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:.*you didn't.*", "ignore:.*callbacks in the checkpoint.*")
def test_a_checkpoint_without_the_beginning_is_named(tmp_path):
    host = trainer(tmp_path, max_epochs=1)
    host.fit(Regressor(), data())
    host.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.warns(
        UserWarning, match=r"does not know the initial weights of net.0.weight, net.0.bias, net.2.weight"
    ):
        trainer(tmp_path, callbacks=[DistanceToInit(GAMMA)], max_epochs=2).fit(
            Regressor(), data(), ckpt_path=tmp_path / "run.ckpt"
        )


class Thawed(Regressor):
    """Its first layer is trained in the second part alone."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.net[0].requires_grad_(not frozen)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def test_layers_that_are_trained_later_are_named_and_the_others_keep_their_beginning(tmp_path):
    torch.manual_seed(0)
    first, callback = Thawed(frozen=True), DistanceToInit(GAMMA)
    begun = first.net[2].weight.detach().clone()
    host = trainer(tmp_path, callbacks=[callback], max_epochs=2)
    host.fit(first, data())
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = DistanceToInit(GAMMA)
    with pytest.warns(UserWarning, match=r"does not know the initial weights of net.0.weight, net.0.bias \("):
        trainer(tmp_path, callbacks=[again], max_epochs=3).fit(
            Thawed(frozen=False), data(), ckpt_path=tmp_path / "run.ckpt", **SAFELY
        )
    start = again.state_dict()["start"]
    assert torch.equal(start["net.2.weight"], begun)
    assert torch.equal(start["net.0.weight"], first.net[0].weight)


def test_two_of_them_hold_different_layers(tmp_path):
    both = [DistanceToInit(GAMMA, parameters="net.0.*"), DistanceToInit(GAMMA, parameters=["net.2.*"])]
    expected = fitted(tmp_path, lambda: ByHand(lambda _: GAMMA), [])
    torch.manual_seed(0)
    module = Regressor()
    module.configure_optimizers = partial(momentum, module)
    host = trainer(tmp_path, callbacks=both, max_epochs=4)
    host.fit(module, data())
    for name, value in expected.named_parameters():
        torch.testing.assert_close(module.get_parameter(name), value, rtol=1e-4, atol=1e-6)
    host.save_checkpoint(tmp_path / "run.ckpt")
    states = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]
    assert sorted(name for state in states.values() for name in state.get("start", {})) == [
        "net.0.bias",
        "net.0.weight",
        "net.2.bias",
        "net.2.weight",
    ]


@pytest.mark.slow
def test_its_beginning_and_that_of_the_measurements_are_one_tensor(tmp_path):
    callback, monitor = DistanceToInit(GAMMA), SloppyMonitor(strict=True)
    trainer(tmp_path, callbacks=[monitor, callback], max_epochs=1).fit(Classifier(), DataLoader(blobs(64), 16))
    whole = monitor.state_dict()["hessian"]["start"]
    for start in callback.state_dict()["start"].values():
        assert start.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_sparse_gradients_have_one_sentence(tmp_path):
    class Words(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 6, sparse=True)

        def training_step(self, batch):
            return super().training_step((self.table(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    words = DataLoader(torch.utils.data.TensorDataset(torch.arange(5), torch.ones(5, 2)), 5)
    with pytest.raises(UnsupportedError, match="sparse=False"):
        trainer(tmp_path, callbacks=[DistanceToInit(1.0)]).fit(Words(), words)
    trainer(tmp_path, callbacks=[DistanceToInit(1.0, parameters="net.*")]).fit(Words(), words)


def test_the_other_copy_of_lightning_takes_it(tmp_path):
    callback = DistanceToInit(GAMMA)

    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(6, 2)

        def training_step(self, batch):
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    pytorch_lightning.Trainer(
        max_epochs=1,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    ).fit(Other(), data())
    assert {name: tuple(start.shape) for name, start in callback.state_dict()["start"].items()} == {
        "net.weight": (2, 6),
        "net.bias": (2,),
    }


class Manual(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_bad_input_has_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="at least 0"):
        DistanceToInit(-1.0)
    with pytest.raises(ConfigurationError, match="constant, linear"):
        DistanceToInit(1.0, schedule="cosine")
    with pytest.raises(ConfigurationError, match="uses manual optimisation"):
        trainer(tmp_path, callbacks=[DistanceToInit(1.0)]).fit(Manual(), data())
    with pytest.raises(ConfigurationError, match="matches no trainable parameter"):
        trainer(tmp_path, callbacks=[DistanceToInit(1.0, parameters="head.*")]).fit(Regressor(), data())
    with pytest.raises(ConfigurationError, match="set max_epochs or max_steps"):
        trainer(tmp_path, callbacks=[DistanceToInit(1.0, schedule="linear")], max_epochs=-1).fit(Regressor(), data())
    monkeypatch.setattr(trainer_internals, "gradients_are_scaled", lambda *_: True)
    with pytest.raises(UnsupportedError, match="fused=False"):
        trainer(tmp_path, callbacks=[DistanceToInit(1.0)]).fit(Regressor(), data())
