"""Certificates in other coordinates: Kronecker bases, and a prior from the curvature at the start."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.pytorch import LightningModule
from support.certified import Data, certifying_trainer, fit, flags, true_error
from support.tiny import CLASSES, SAFELY, Classifier, blobs, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import ConfigurationError, FinalCertificate, LearningPlan, PriorSplit
from lightning_sloppy.certifying import curvature_coordinates as coordinates_module
from lightning_sloppy.curvature.diagonal import fisher_diagonal
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.posteriors.coordinates import curvature_scales

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
SPREADS = ["weights", "layers", "kronecker"]


def plan(spread: str, **options) -> LearningPlan:
    return LearningPlan(**{"seconds": 60, "epochs": 4, "batch_size": 50, "spread": spread, **options})


class HeldOut(Data):
    """With validation samples of their own."""

    def __init__(self, samples: TensorDataset, held_out: TensorDataset) -> None:
        super().__init__(samples)
        self.held_out = held_out

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, batch_size=50)


def data(count: int = 600) -> HeldOut:
    return HeldOut(blobs(count), blobs(150, seed=7))


@pytest.fixture
def seen(monkeypatch) -> list:
    """The coordinates that certificates were made in."""
    found = []

    def watched(*arguments, **keywords):
        found.append(original(*arguments, **keywords))
        return found[-1]

    original = coordinates_module._measured
    monkeypatch.setattr(coordinates_module, "_measured", watched)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("prior", ["initialization", "curvature", "split"])
def test_every_prior_goes_with_every_spread(tmp_path, prior, spread):
    torch.manual_seed(0)
    given = PriorSplit(data(1200)) if prior == "split" else data()
    final = fit(tmp_path, data=given, prior=prior, learning=plan(spread), folder=str(tmp_path / "mine"))
    pair, single = final.certificates
    assert pair.valid
    assert pair.n == 600
    assert pair.n_prior == {"initialization": 0, "curvature": 150, "split": 600}[prior]
    assert pair.posterior == {"weights": "diagonal"}.get(spread, spread)
    assert ("certifying" if prior == "split" else "training") in pair.statement()
    assert final.learnt.method == "noise of each example"
    errors = [true_error(tmp_path / "mine" / name) for name in pair.networks]
    assert sum(errors) / 2 < pair.value < 1 - 1 / CLASSES
    assert errors[0] < single.value


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("prior", ["initialization", "split"])
def test_leading_directions_are_learnt_beside_every_spread(tmp_path, prior, spread):
    torch.manual_seed(0)
    given = PriorSplit(data(1200)) if prior == "split" else data()
    final = fit(tmp_path, data=given, prior=prior, learning=plan(spread, directions=3), folder=str(tmp_path / "mine"))
    pair = final.certificates[0]
    assert pair.valid
    assert pair.rank == 3
    assert pair.posterior.endswith("and low rank")
    assert final.learnt.method == "one draw for each batch"
    errors = [true_error(tmp_path / "mine" / name) for name in pair.networks]
    assert sum(errors) / 2 < pair.value < 1 - 1 / CLASSES


def test_directions_and_a_prior_of_several_scales_do_not_go_together():
    with pytest.raises(ConfigurationError, match="directions= are orthogonal only if the prior is isotropic"):
        FinalCertificate(prior="curvature", learning=plan("weights", directions=2))
    with pytest.raises(ConfigurationError, match="directions=-1 is negative"):
        plan("weights", directions=-1)


@pytest.mark.slow
def test_what_was_judged_in_coordinates_is_what_was_saved(tmp_path):
    torch.manual_seed(0)
    final = fit(tmp_path, data=data(), prior="curvature", learning=plan("kronecker"), folder=str(tmp_path / "mine"))
    inputs, targets = blobs(600).tensors
    pair, single = final.certificates
    first = single.empirical_risk
    for name, rate in zip(pair.networks, [first, 2 * pair.empirical_risk - first], strict=True):
        network = Classifier.load_from_checkpoint(tmp_path / "mine" / name, **SAFELY).eval()
        assert float((network(inputs).argmax(1) != targets).double().mean()) == pytest.approx(rate)


@pytest.mark.slow
def test_a_turn_alone_changes_no_complexity(tmp_path):
    still = {"mean_rate": 0.0, "spread_rate": 0.0, "epochs": 1}
    found = []
    for spread in ("weights", "kronecker"):
        torch.manual_seed(0)
        found.append(fit(tmp_path, learning=plan(spread, **still)).certificates[0])
    plain, turned = found
    assert plain.epsilon == turned.epsilon
    assert turned.kl_displacement == pytest.approx(plain.kl_displacement, rel=1e-6)
    assert turned.kl_covariance == pytest.approx(plain.kl_covariance, rel=1e-6, abs=1e-9)
    assert turned.prior_hash == plain.prior_hash


@pytest.mark.slow
def test_the_scales_are_those_of_the_start_on_held_out_samples(tmp_path, seen):
    torch.manual_seed(0)
    model = Classifier()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(tmp_path, data=data(), model=model, prior="curvature", learning=plan("weights"))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = Classifier()
    fresh.load_state_dict(start)
    layout = ParameterLayout.of(fresh)
    batch = blobs(150, seed=7).tensors
    expected = fisher_diagonal(Objective(fresh.eval(), nn.CrossEntropyLoss()), layout, [batch])
    torch.testing.assert_close(seen[0].scales, curvature_scales(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen[0].origin, layout.vector(fresh).double())
    # The trained weights are back, to the last bit.
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.items())


def test_validation_samples_that_are_trained_on_forbid_the_prior(tmp_path):
    samples = blobs(400)
    shared = TensorDataset(*(tensor[:50] for tensor in samples.tensors))
    with pytest.warns(UserWarning, match="50 of the training samples are also validation samples"):
        final = fit(tmp_path, data=HeldOut(samples, shared), prior="curvature")
    assert flags(final) == ("prior_depends_on_sample",)
    assert final.certificates is None


def test_without_validation_samples_it_ends_before_the_training(tmp_path):
    with pytest.raises(ConfigurationError, match="measures the initial network on validation samples, but the fit has"):
        fit(tmp_path, data=blobs(200), prior="curvature")


def test_where_the_trainer_does_not_validate_the_samples_are_read_all_the_same(tmp_path):
    final = FinalCertificate(prior="curvature", learning=plan("weights"), strict=True)
    trainer(tmp_path, callbacks=[final], max_epochs=1, limit_val_batches=0).fit(Classifier(), datamodule=data())
    assert final.certificates[0].valid
    assert final.certificates[0].n_prior == 150


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["initialization", "curvature"])
def test_nothing_is_needed_beside_the_package(tmp_path, monkeypatch, seen, prior):
    for name in ("curvlinops", "backpack", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    torch.manual_seed(0)
    final = fit(tmp_path, data=data(), prior=prior, learning=plan("kronecker", epochs=1))
    assert final.certificates[0].valid
    assert None not in seen[0].bases


class OneLogit(Classifier):
    """The sign of one number says which of two classes."""

    def forward(self, inputs):
        scores = super().forward(inputs)
        return scores[:, 0] - scores[:, 1]

    def training_step(self, batch, batch_idx):
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())


def test_a_basis_of_the_posterior_is_that_of_the_training_s_loss(tmp_path, seen):
    torch.manual_seed(0)
    inputs, targets = blobs(600).tensors
    samples = TensorDataset(inputs, (targets == 0).float())
    loss_fn = nn.functional.binary_cross_entropy_with_logits
    final = fit(tmp_path, data=samples, model=OneLogit(), loss_fn=loss_fn, learning=plan("kronecker"))
    assert final.certificates[0].valid
    assert None not in seen[0].bases


class Convolving(LightningModule):
    """Convolutions, one of them grouped, a norm, a layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2, stride=2, bias=False),
            nn.Flatten(),
            nn.Linear(24, 2),
        )

    def forward(self, images):
        return self.body(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def images(count: int, seed: int) -> TensorDataset:
    rng = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (count,), generator=rng)
    found = torch.randn(count, 1, 4, 4, generator=rng)
    found[:, 0, :2, :2] += 2.0 * targets[:, None, None]
    return TensorDataset(found, targets)


@pytest.mark.slow
def test_convolutions_are_turned_and_what_cannot_be_is_not(tmp_path, seen):
    torch.manual_seed(0)
    given = HeldOut(images(800, 0), images(200, 1))
    final = fit(tmp_path, data=given, model=Convolving(), prior="curvature", learning=plan("kronecker", epochs=10))
    assert final.certificates[0].valid
    assert final.certificates[0].value < 0.5
    assert final.learnt.method == "noise of each example"
    turned = {
        name: basis is not None
        for name, basis in zip(ParameterLayout.of(Convolving()).names, seen[0].bases, strict=True)
    }
    assert {name for name, value in turned.items() if not value} == {
        "body.1.weight",
        "body.1.bias",
        "body.3.weight",
        "body.3.bias",
    }


@pytest.mark.slow
def test_a_checkpoint_is_certified_with_a_curvature_prior(tmp_path):
    torch.manual_seed(0)
    first = FinalCertificate(learning=plan("weights"), strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=2)
    host.fit(Classifier(), datamodule=data())
    host.save_checkpoint(tmp_path / "last.ckpt")
    again = certifying_trainer(tmp_path)
    path = str(tmp_path / "last.ckpt")
    final = again.certify(Classifier(), data(), path, prior="curvature", learning=plan("kronecker"))
    assert final.certificates[0].valid
    assert final.certificates[0].n_prior == 150
    assert final.certificates[0].prior_hash != first.certificates[0].prior_hash, "it has scales"


@pytest.mark.slow
def test_the_trained_model_stays_what_it_is(tmp_path):
    weights = []
    for callback in (True, False):
        torch.manual_seed(0)
        model = Classifier()
        callbacks = [FinalCertificate(prior="curvature", learning=plan("kronecker"), strict=True)] if callback else []
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, datamodule=data(200))
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Attending(LightningModule):
    """Attention, whose output layer is never called; a layer that is not used; one that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.unused = nn.Linear(3, 3)
        self.keyword = nn.Linear(6, 6)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, inputs):
        tokens = inputs[:, None] * torch.ones(1, 2, 1)
        attended = self.attention(tokens, tokens, tokens)[0].mean(1)
        return self.last(torch.tanh(self.keyword(input=attended)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Unturnable(Attending):
    """Nothing that a basis is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, CLASSES)
        self.first = nn.Conv1d(1, 6, 6)

    def forward(self, inputs):
        return nn.functional.linear(self.first(inputs[:, None])[..., 0], self.last.weight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Attending, Unturnable])
def test_layers_without_a_basis_keep_their_weights(tmp_path, kind):
    torch.manual_seed(0)
    final = fit(tmp_path, data=data(), model=kind(), prior="curvature", learning=plan("kronecker"))
    assert final.certificates[0].valid
    assert final.certificates[0].value <= 1


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
def test_networks_in_double_precision(tmp_path, spread):
    class Doubled(HeldOut):
        def __init__(self) -> None:
            samples, held_out = (TensorDataset(t.tensors[0].double(), t.tensors[1]) for t in (blobs(300), blobs(80, 7)))
            super().__init__(samples, held_out)

    final = FinalCertificate(prior="curvature", learning=plan(spread), strict=True)
    trainer(tmp_path, callbacks=[final], max_epochs=1, precision="64-true").fit(Classifier(), datamodule=Doubled())
    assert final.certificates[0].valid
    assert final.learnt.method == "noise of each example"


def doubled(samples):
    inputs, targets = torch.utils.data.default_collate(samples)
    return 2.0 * inputs, targets


class Noisy(torch.utils.data.Dataset):
    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        inputs, target = self.samples[index]
        return inputs + 1e-3 * torch.randn(inputs.shape), target


class Streaming(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(blobs(60, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["same data set", "random reads"])
def test_held_out_samples_that_may_certify_are_noticed(tmp_path, kind):
    samples = blobs(200)

    class Hiding(Data):
        def val_dataloader(self):
            if kind == "random reads":
                return DataLoader(Noisy(samples), batch_size=50)
            return DataLoader(samples, batch_size=50, collate_fn=doubled)

    sentence = {"same data set": "are also validation samples", "random reads": "Two reads of one validation"}[kind]
    with pytest.warns(UserWarning, match=sentence):
        final = fit(tmp_path, data=Hiding(samples), prior="curvature")
    assert flags(final) == ("prior_depends_on_sample",)


@pytest.mark.parametrize(
    ("held_out", "sentence"),
    [
        (Streaming(), "first validation loader, but they cannot be read"),
        (TensorDataset(torch.randn(60, 6)), "needs validation batches of inputs and class indices"),
        (TensorDataset(torch.randn(60, 6), torch.randn(60, 3)), "needs validation batches of inputs and class indices"),
    ],
)
def test_validation_samples_that_cannot_serve_are_named(tmp_path, held_out, sentence):
    class Odd(Data):
        def val_dataloader(self):
            return DataLoader(held_out, batch_size=20)

    final = FinalCertificate(prior="curvature", learning=plan("weights"))
    host = trainer(tmp_path, callbacks=[final], max_epochs=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match=sentence):
        host.fit(Classifier(), datamodule=Odd(blobs(200)))
    assert final.certificates is None
