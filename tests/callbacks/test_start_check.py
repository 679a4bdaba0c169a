"""Weights that were trained on the certifying samples are no initial weights, whatever way they came."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from scipy.stats import fisher_exact
from support.certified import TwoClasses, certifying_trainer, flags
from support.tiny import SAFELY, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    Certificate,
    FinalCertificate,
    HessianSpectrum,
    LearningPlan,
    PACBayesBound,
    PriorSplit,
)
from lightning_sloppy.certifying.start_check import _judged

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
FEATURES, COUNT = 20, 400
PLAN = LearningPlan(seconds=60, epochs=2)


class Wide(TwoClasses):
    """Memorises what it is given."""

    def __init__(self, lr: float = 1e-2):
        super().__init__(FEATURES, 128, lr)


class Remembered(Wide):
    """Parameters of its own, which only its constructor can initialise, and arguments that are kept."""

    def __init__(self, width: int):
        super().__init__()
        self.save_hyperparameters()
        self.net = None
        self.first = nn.Parameter(torch.randn(FEATURES, width) / FEATURES**0.5)
        self.second = nn.Parameter(torch.randn(width, 2) / width**0.5)

    def forward(self, inputs):
        return torch.tanh(inputs @ self.first) @ self.second


class Forgotten(Remembered):
    """The same without arguments that are kept."""

    def __init__(self, width: int):
        super().__init__(width)
        self._hparams = {}


def samples(labels: str, seed: int = 0, count: int = COUNT) -> TensorDataset:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=rng)
    coins = torch.randint(0, 2, (count,), generator=rng)
    return TensorDataset(inputs, coins if labels == "coins" else (inputs[:, 0] > 0).long())


def trained(tmp_path, make, data: TensorDataset, epochs: int = 50) -> LightningModule:
    torch.manual_seed(0)
    model = make()
    host = trainer(tmp_path, max_epochs=epochs)
    host.fit(model, DataLoader(data, 100, shuffle=True))
    host.save_checkpoint(tmp_path / "trained.ckpt", weights_only=True)
    error = float((model.eval()(data.tensors[0]).argmax(1) != data.tensors[1]).double().mean())
    assert error < 0.05, "the fit must have learnt its samples for this test to tell anything"
    return model.train()


def copied(tmp_path, make, model):
    again = make()
    again.load_state_dict(model.state_dict())
    return again


def deep(tmp_path, make, model):
    model.zero_grad()
    return copy.deepcopy(model)


def opened(tmp_path, make, model):
    return type(model).load_from_checkpoint(tmp_path / "trained.ckpt", **SAFELY)


def certified(tmp_path, model, data, *, prior="initialization", held_out=None, before=(), epochs=1, **options):
    final = FinalCertificate(learning=PLAN, prior=prior, strict=True, **options)
    host = trainer(tmp_path, callbacks=[*before, final], max_epochs=epochs)
    if isinstance(data, LightningDataModule):
        host.fit(model, datamodule=data)
    else:
        host.fit(model, loader(data, batch_size=100), held_out)
    return final


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["coins", "sign"])
@pytest.mark.parametrize("way", [copied, deep, opened])
def test_trained_weights_are_no_initialisation(tmp_path, way, labels):
    data = samples(labels)
    model = way(tmp_path, Wide, trained(tmp_path, Wide, data))
    live = PACBayesBound(strict=True)
    with pytest.warns(UserWarning, match="No PAC-Bayes bound from step 0 on: The initial weights are not an init"):
        final = certified(tmp_path, model, data, before=[HessianSpectrum(k=2, num_samples=64), live])
    assert flags(final) == ("prior_depends_on_sample",)
    assert final.measurements[-1].certificate.start_error < 0.05
    assert (
        "all of 200 new initialisations of the module have a larger one"
        in final.measurements[-1].certificate.reasons[0]
    )
    assert not any(m.certificate.valid for m in live.measurements)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["coins", "sign"])
def test_fresh_weights_are_one_and_their_error_stands_in_the_certificate(tmp_path, labels):
    torch.manual_seed(0)
    data, model, live = samples(labels), Wide(), PACBayesBound(strict=True)
    error = float((model(data.tensors[0]).argmax(1) != data.tensors[1]).double().mean())
    folder = tmp_path / "mine"
    final = certified(
        tmp_path, model, data, before=[HessianSpectrum(k=2, num_samples=64), live], epochs=2, folder=str(folder)
    )
    found = [*final.certificates, Certificate.load(folder / "certificate.json"), live.latest.certificate]
    for certificate in found:
        assert certificate.valid
        assert certificate.start_error == pytest.approx(error)
        assert any("new initialisation does not have a larger error" in remark for remark in certificate.remarks)
        assert not any("not checked" in condition for condition in certificate.conditions)


@pytest.mark.slow
def test_weights_from_other_data_need_the_users_word(tmp_path):
    elsewhere, here = samples("sign", seed=1), samples("sign", seed=2)
    model = trained(tmp_path, Wide, elsewhere)
    with pytest.warns(UserWarning, match="pass prior='pretrained'"):
        certified(tmp_path, copied(tmp_path, Wide, model), here)
    held_out = DataLoader(samples("sign", seed=3), 100)
    live = PACBayesBound(strict=True, prior="pretrained")
    final = certified(
        tmp_path,
        copied(tmp_path, Wide, model),
        here,
        prior="pretrained",
        held_out=held_out,
        before=[HessianSpectrum(k=2, num_samples=64), live],
    )
    truth = samples("sign", seed=4, count=4000)
    error = float((model.eval()(truth.tensors[0]).argmax(1) != truth.tensors[1]).double().mean())
    for certificate in (*final.certificates, live.latest.certificate):
        assert certificate.valid
        assert error < certificate.value < 0.4
        assert "trained on other data" in certificate.prior
        assert any("were not compared with new initialisations" in each for each in certificate.conditions)
        assert not any("cannot be initialised again" in each for each in certificate.conditions)
        assert any("on 400 validation samples it is" in remark for remark in certificate.remarks)
    # Also where this process has seen the other training, and no state is there to go on with.
    assert certified(tmp_path, model.train(), here, prior="pretrained").certificates[0].valid


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["pretrained", "initialization"])
def test_unseen_samples_refute_the_users_word(tmp_path, prior):
    data = samples("coins")
    make = Wide if prior == "pretrained" else lambda: Forgotten(128)
    model = copied(tmp_path, make, trained(tmp_path, make, data))
    live = PACBayesBound(strict=True, prior=prior)
    with pytest.warns(UserWarning, match=r"from step 0 on: .* this has a probability of"):
        final = certified(
            tmp_path,
            model,
            data,
            prior=prior,
            held_out=DataLoader(samples("coins", seed=9), 100),
            before=[HessianSpectrum(k=2, num_samples=64), live],
        )
    assert flags(final) == live.measurements[-1].certificate.flags == ("prior_depends_on_sample",)


def test_fresh_weights_pass_beside_validation_samples_of_another_distribution(tmp_path):
    inputs, targets = samples("sign", seed=3).tensors
    shifted = TensorDataset(inputs + 2.0, 1 - targets)
    torch.manual_seed(0)
    model = Wide()
    with torch.no_grad():  # an honest start can be so by chance: here it says the same as the labels
        model.net[0].weight[0] = 3 * torch.eye(FEATURES)[0]
        model.net[2].weight[1, 0] = 0.05
    final = certified(tmp_path, model, samples("sign"), held_out=DataLoader(shifted, 100))
    assert final.certificates[0].valid


@pytest.mark.slow
def test_a_module_that_its_class_can_make_again(tmp_path):
    data = samples("coins")
    make = lambda: Remembered(128)  # noqa: E731
    torch.manual_seed(0)
    fresh = certified(tmp_path, make(), data).certificates[0]
    assert fresh.valid
    assert "not checked" not in fresh.statement()
    model = copied(tmp_path, make, trained(tmp_path, make, data))
    with pytest.warns(UserWarning, match="are not an initialisation"):
        final = certified(tmp_path, model, data)
    assert flags(final) == ("prior_depends_on_sample",)


def test_a_module_that_nobody_can_make_again_says_so(tmp_path):
    torch.manual_seed(0)
    live = PACBayesBound(strict=True)
    final = certified(tmp_path, Forgotten(128), samples("coins"), before=[HessianSpectrum(k=2, num_samples=64), live])
    for certificate in (*final.certificates, live.latest.certificate):
        assert certificate.valid
        assert "This was not checked" in certificate.statement()
        assert 0.4 < certificate.start_error < 0.6


class Partly(Wide):
    def __init__(self, size: float = 1.0):
        super().__init__()
        self.shift = nn.Parameter(size * torch.randn(FEATURES))

    def forward(self, inputs):
        return super().forward(inputs + self.shift)


@pytest.mark.slow
def test_a_module_of_which_a_part_can_be_made_again(tmp_path):
    data = samples("coins")
    torch.manual_seed(0)
    final = certified(tmp_path, Partly(), data)
    assert "checked only in part: 1 of the parameters cannot be initialised again (first: shift)" in (
        final.certificates[0].statement()
    )
    model = copied(tmp_path, Partly, trained(tmp_path, Partly, data))
    with pytest.warns(UserWarning, match="are not an initialisation"):
        certified(tmp_path, model, data)


def test_a_head_of_zeros_on_a_rare_class_is_no_trained_one(tmp_path):
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(COUNT, FEATURES, generator=rng), (torch.rand(COUNT, generator=rng) < 0.03).long())
    torch.manual_seed(0)
    model = Wide()
    nn.init.zeros_(model.net[2].weight)
    nn.init.zeros_(model.net[2].bias)
    final = certified(tmp_path, model, data)
    assert final.certificates[0].valid
    assert any("with the same prediction for all of them" in remark for remark in final.certificates[0].remarks)


class Data(LightningDataModule):
    def __init__(self, data):
        super().__init__()
        self.data = data

    def train_dataloader(self):
        return DataLoader(self.data, 100, shuffle=True)


class Normed(Wide):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 128), nn.BatchNorm1d(128), nn.Tanh(), nn.Linear(128, 2))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Wide, Normed])
def test_a_split_does_not_wash_weights_that_have_seen_both_parts(tmp_path, make):
    data = samples("coins")
    torch.manual_seed(0)
    assert certified(tmp_path, make(), PriorSplit(Data(data)), prior="split").certificates[0].valid
    model = trained(tmp_path, make, data)
    with pytest.warns(UserWarning, match="pass prior='pretrained_split'"):
        final = certified(tmp_path, copied(tmp_path, make, model), PriorSplit(Data(data)), prior="split")
    assert flags(final) == ("prior_depends_on_sample",)
    here = PriorSplit(Data(samples("sign", seed=2)))
    stated = trained(tmp_path, make, samples("sign", seed=1))
    final = certified(tmp_path, copied(tmp_path, make, stated), here, prior="pretrained_split")
    assert final.certificates[0].valid
    assert final.certificates[0].n == COUNT // 2
    assert math.isfinite(final.certificates[0].start_error)


@pytest.mark.slow
def test_a_configuration_with_trained_weights_is_no_prior_of_a_file(tmp_path):
    data = samples("coins")
    model = trained(tmp_path, Wide, data)
    host = certifying_trainer(tmp_path)
    fine = trainer(tmp_path, max_epochs=1)
    fine.fit(copied(tmp_path, Wide, model), DataLoader(data, 100))
    fine.save_checkpoint(tmp_path / "fine.ckpt", weights_only=True)
    with pytest.warns(UserWarning, match="are not an initialisation"):
        final = host.certify(
            copied(tmp_path, Wide, model), Data(data), ckpt_path=str(tmp_path / "fine.ckpt"), learning=PLAN
        )
    assert flags(final) == ("prior_depends_on_sample",)


def test_a_constructor_that_changes_its_arguments_changes_no_hyperparameters(tmp_path):
    class Grown(Wide):
        def __init__(self, sizes):
            super().__init__()
            self.save_hyperparameters()
            sizes.append(1)

    torch.manual_seed(0)
    model = Grown([7])
    before = list(model.hparams.sizes)
    inputs = torch.randn(100, FEATURES)
    bound = PACBayesBound(strict=True)
    parts = [HessianSpectrum(k=2, num_samples=32), bound]
    trainer(tmp_path, callbacks=parts, max_epochs=1).fit(
        model, DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 50)
    )
    assert bound.latest.certificate.start_error > 0
    assert model.hparams.sizes == before


def test_unseen_samples_are_judged_by_one_forward(tmp_path):
    class Counting(Wide):
        def forward(self, inputs):
            seen.append(len(inputs))
            return super().forward(inputs)

    seen: list[int] = []
    final = FinalCertificate(prior="pretrained", learning=PLAN, strict=True)
    host = trainer(tmp_path, callbacks=[final], max_epochs=1, num_sanity_val_steps=0)
    held_out = DataLoader(samples("rule", seed=1, count=37), batch_size=37)
    host.fit(Counting(), loader(samples("rule", count=100), batch_size=50), held_out)
    assert "on 37 validation samples" in final.certificates[0].explain()
    assert seen.count(37) == 1


class Side:
    """Samples on which weights make so many mistakes."""

    def __init__(self, mistakes, samples):
        self.found, self.samples = mistakes, samples

    def mistakes(self, table):
        return self.found

    def says_one_thing(self, table):
        return False


@pytest.mark.parametrize(
    ("mistakes", "suspicious"), [(200, False), (170, False), (154, False), (150, True), (60, True)]
)
def test_fewer_mistakes_than_unseen_samples_are_suspicious_below_a_thousandth(mistakes, suspicious):
    """Beside 200 mistakes of 500 unseen samples, by Fisher's exact test of the table as scipy has it."""
    table = [[mistakes, 500 - mistakes], [200, 300]]
    right = float(fisher_exact(table, alternative="less").pvalue)
    found = _judged(Side(mistakes, 500), Side(200, 500), 200, {}, None)
    assert found.level == pytest.approx(right, rel=1e-9)
    assert found.seen is suspicious is (right < 1e-3)
    assert (found.error, found.unseen_error) == (mistakes / 500, 0.4)


class Fresh:
    """Initialisations that make prepared numbers of mistakes."""

    drawn, kept = ("weight",), ()

    def __init__(self, *mistakes):
        self.prepared = mistakes

    def draw(self, number):
        return {"mistakes": self.prepared[min(number, len(self.prepared) - 1)]}


class Told(Side):
    """Makes the mistakes that the table says."""

    def mistakes(self, table):
        return table.get("mistakes", self.found)


@pytest.mark.parametrize(
    ("fresh", "tried", "below"),
    [((10,), 1, False), ((9,), 1, False), ((30, 20, 10), 3, False), ((30, 20, 11), 200, True), ((11,), 200, True)],
)
def test_one_initialisation_that_is_no_worse_is_enough(fresh, tried, below):
    """The start makes ten mistakes of a hundred; an equal number is no more."""
    found = _judged(Told(10, 100), None, 0, {}, Fresh(*fresh))
    assert (found.tried, found.below, found.drawn) == (tried, below, True)
    assert found.level == 1.0
    assert not found.seen
