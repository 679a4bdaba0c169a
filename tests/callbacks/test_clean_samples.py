"""Training samples that are read at random are judged as clean= gives them, when those are the same samples."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule
from support.certified import QUICK, certifying_trainer, fit, flags
from support.tiny import FEATURES, SAFELY, Classifier, blobs, loader, trainer
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler

from lightning_sloppy import (
    ConfigurationError,
    FinalCertificate,
    HessianSpectrum,
    PACBayesBound,
    PriorSplit,
    SloppyMonitor,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Noisy(Dataset):
    """Samples with fresh noise at every read, from a stream of its own; without any where its size is zero."""

    def __init__(self, count=300, size=0.1, seed=0):
        self.inputs, self.targets = blobs(count).tensors
        self.size = size
        self.rng = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        added = self.size * torch.randn(FEATURES, generator=self.rng) if self.size else 0.0
        return self.inputs[index] + added, self.targets[index]


class NoisyData(LightningDataModule):
    def __init__(self, count=300):
        super().__init__()
        self.count = count

    def train_dataloader(self):
        return loader(Noisy(self.count))

    def clean_dataloader(self):
        return DataLoader(blobs(self.count), batch_size=50)


def certified(tmp_path, data, **options):
    torch.manual_seed(0)
    return fit(tmp_path, data=data, epochs=2, folder=str(tmp_path / "mine"), **options)


def live_bound(tmp_path, data, model=None, held_out=None, **options):
    torch.manual_seed(0)
    live = PACBayesBound(strict=True, **options)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live], max_epochs=2)
    host.fit(model or Classifier(), data if isinstance(data, DataLoader) else loader(data), held_out)
    return live


def rate(path, samples):
    network = Classifier()
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    inputs, targets = samples.tensors
    return float((network.eval()(inputs).argmax(1) != targets).double().mean())


def test_without_clean_samples_the_refusal_comes_at_the_start_and_names_them(tmp_path):
    with pytest.warns(UserWarning, match="Two reads of the same sample differ .* pass clean=") as said:
        final = fit(tmp_path, data=Noisy())
    assert flags(final) == ("augmentation_in_certification",)
    assert len([each for each in said if "Two reads" in str(each.message)]) == 1


def test_the_clean_samples_are_judged_and_the_conditions_say_so(tmp_path):
    final = certified(tmp_path, Noisy(), clean=blobs(300))
    pair, single = final.certificates
    assert pair.valid
    assert pair.n == 300
    rates = [rate(tmp_path / "mine" / name, blobs(300)) for name in pair.networks]
    assert pair.empirical_risk == pytest.approx(sum(rates) / 2)
    assert single.empirical_risk == pytest.approx(rates[0])
    for certificate in (pair, single):
        assert "the error on samples that are read in this way" in certificate.statement()


@pytest.mark.slow
def test_what_is_certified_is_that_of_a_training_that_was_never_augmented(tmp_path):
    """Noise too small to change a float: the training is that on plain samples, and so are all numbers."""
    plain = certified(tmp_path, blobs(300))
    clean = certified(tmp_path, Noisy(size=1e-30), clean=loader(blobs(300)))
    for a, b in zip(plain.certificates, clean.certificates, strict=True):
        assert (a.value, a.n, a.log_ratio, a.sample_hash) == (b.value, b.n, b.log_ratio, b.sample_hash)
        assert a.network_hashes == b.network_hashes


@pytest.mark.slow
def test_a_live_bound_takes_them_too(tmp_path):
    for m in live_bound(tmp_path, Noisy(), clean=blobs(300)).measurements:
        assert m.certificate.valid
        assert m.certificate.n == m.certificate.risk_samples == 300
        assert "read from clean=" in m.certificate.statement()
    plain = live_bound(tmp_path, blobs(300)).measurements[-1].certificate
    same = live_bound(tmp_path, Noisy(size=1e-30), clean=blobs(300)).measurements[-1].certificate
    assert (plain.value, plain.network_hashes) == (same.value, same.network_hashes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "clean",
    [
        lambda: blobs(300),
        lambda: DataLoader(blobs(300), batch_size=7, shuffle=True),
        lambda: lambda: blobs(300),
        lambda: [(x, y) for x, y in blobs(300)],
    ],
    ids=["data set", "loader", "function", "list"],
)
def test_what_may_be_given(tmp_path, clean):
    assert certified(tmp_path, Noisy(), clean=clean()).certificates[0].n == 300


@pytest.mark.slow
def test_a_method_of_the_data_module_through_the_monitor(tmp_path):
    final = FinalCertificate(learning=QUICK)
    monitor = SloppyMonitor(
        input=None,
        fisher=None,
        hessian=HessianSpectrum(k=2, num_samples=64),
        certificate=final,
        clean="clean_dataloader",
        strict=True,
    )
    trainer(tmp_path, callbacks=[monitor], max_epochs=1).fit(Classifier(), datamodule=NoisyData())
    assert monitor.latest["bound"].certificate.valid
    assert final.certificates[0].valid
    assert final.certificates[0].evaluation == 3
    with pytest.raises(ConfigurationError, match="clean='cleaner' is not the name of a method of the data module"):
        fit(tmp_path, data=NoisyData(), clean="cleaner")


@pytest.mark.slow
def test_the_weights_are_bitwise_what_they_are_without(tmp_path):
    weights = []
    for callbacks in ([], [HessianSpectrum(k=2, num_samples=64), PACBayesBound(clean=Noisy(size=0), strict=True)]):
        torch.manual_seed(0)
        model = Classifier()
        if callbacks:
            callbacks.append(FinalCertificate(learning=QUICK, clean=Noisy(size=0), strict=True))
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, loader(Noisy()))
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Relabelled(Noisy):
    def __init__(self, order=None, labels=None, **options):
        super().__init__(size=0, **options)
        order = torch.arange(len(self)) if order is None else order
        self.inputs, self.targets = self.inputs[order], self.targets[order]
        if labels is not None:
            self.targets = labels(self.targets)


class Stream(IterableDataset):
    def __iter__(self):
        yield from blobs(300)


def one_other(targets):
    targets = targets.clone()
    targets[17] = (targets[17] + 1) % 3
    return targets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clean", "flag", "sentence"),
    [
        (lambda: blobs(299), "other_samples", "clean= has 299 samples, but the training data have 300"),
        (
            lambda: Relabelled(torch.randperm(300, generator=torch.Generator().manual_seed(1))),
            "other_samples",
            "clean= has the labels of the training data in another order",
        ),
        (
            lambda: Relabelled(labels=one_other),
            "other_samples",
            "clean= has other labels than the training data for 1 of 300 samples",
        ),
        (
            lambda: Relabelled(labels=lambda targets: torch.nn.functional.one_hot(targets)),
            "other_samples",
            "The labels of clean= have another shape",
        ),
        (Noisy, "augmentation_in_certification", "Two reads of the same sample of clean= differ"),
        (lambda: DataLoader(Stream(), batch_size=4), "no_sample", "clean= cannot be read by index"),
    ],
    ids=["length", "order", "labels", "shape", "random", "stream"],
)
def test_other_samples_are_refused_by_both(tmp_path, clean, flag, sentence):
    with pytest.warns(UserWarning, match=sentence):
        final = fit(tmp_path, data=Noisy(), clean=clean())
    assert flags(final) == (flag,)
    with pytest.warns(UserWarning, match=sentence):
        live = live_bound(tmp_path, Noisy(), clean=clean())
    assert all(m.certificate.flags == (flag,) for m in live.measurements)


def test_what_gives_no_samples_is_no_argument():
    for kind in (FinalCertificate, PACBayesBound):
        with pytest.raises(ConfigurationError, match="clean=3 provides no samples; pass a DataLoader or a data set"):
            kind(clean=3)
    with pytest.raises(ConfigurationError, match="clean=3 provides no samples"):
        SloppyMonitor(clean=3)
    with pytest.raises(ConfigurationError, match=r"Stream object.* provides no samples"):
        FinalCertificate(clean=Stream())


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["the whole set", "the same subset"])
def test_subsets_and_samplers_are_followed_by_index(tmp_path, whole):
    some = torch.randperm(300, generator=torch.Generator().manual_seed(3))[:200].tolist()
    clean = blobs(300) if whole else Subset(blobs(300), some)
    chosen = [tensor[some] for tensor in blobs(300).tensors]
    for data in (Subset(Noisy(), some), Subset(Subset(Noisy(), range(300)), some)):
        final = certified(tmp_path, data, clean=clean)
        rates = [
            rate(tmp_path / "mine" / name, torch.utils.data.TensorDataset(*chosen)) for name in ("certified_1.ckpt",)
        ]
        assert (final.certificates[1].n, final.certificates[1].empirical_risk) == (200, pytest.approx(rates[0]))
    live = live_bound(tmp_path, DataLoader(Noisy(), 16, sampler=SubsetRandomSampler(some)), clean=clean)
    assert live.latest.certificate.n == 200


@pytest.mark.slow
@pytest.mark.parametrize("copied", [True, False], ids=["copies of rows", "the same places"])
def test_samples_that_training_has_twice_count_once(tmp_path, copied):
    twice = [*range(150), *range(50)]
    data = Subset(Noisy(150), twice)
    rows = [tensor[twice] for tensor in blobs(150).tensors]
    clean = torch.utils.data.TensorDataset(*rows) if copied else blobs(150)
    pair = certified(tmp_path, data, clean=clean, duplicates="natural").certificates[0]
    assert pair.n == 150
    both = ConcatDataset([blobs(100), blobs(100)])
    half = certified(tmp_path, ConcatDataset([same := Noisy(100), same]), clean=both, duplicates="natural")
    assert half.certificates[0].n == 100


@pytest.mark.slow
def test_labels_that_nobody_can_read_are_the_users_statement(tmp_path):
    class Mixed(Noisy):
        """Labels that are drawn at every read."""

        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            return inputs, target if torch.rand(()) < 0.5 else (target + 1) % 3

    pair = certified(tmp_path, Mixed(), clean=Relabelled(labels=one_other)).certificates[0]
    assert pair.valid
    assert "were not compared" in pair.statement()
    assert "not compared" not in certified(tmp_path, Noisy(), clean=blobs(300)).certificates[0].statement()


class OfMappings(Classifier):
    def training_step(self, batch, batch_idx):
        return self.loss_fn(self(batch["x"]), batch["y"])

    def forward(self, x):
        return self.net(x["x"] if isinstance(x, dict) else x)


class Mappings(Noisy):
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return {"x": inputs, "y": target}


def test_labels_in_a_mapping_are_found(tmp_path):
    def loss(outputs, batch):
        return torch.nn.functional.cross_entropy(outputs, batch["y"])

    def predict(outputs, batch):
        return outputs.argmax(1) != batch["y"]

    given = {"model": OfMappings(), "loss_fn": loss, "predict": predict}
    final = certified(tmp_path, Mappings(), clean=Mappings(size=0), **given)
    assert final.certificates[0].valid
    assert "not compared" not in final.certificates[0].statement()
    turned = Mappings(size=0)
    turned.targets = turned.targets.flip(0)
    given["model"] = OfMappings()
    with pytest.warns(UserWarning, match="in another order"):
        certified(tmp_path, Mappings(), clean=turned, **given)


@pytest.mark.slow
def test_hold_out_samples_are_looked_for_among_the_clean_ones(tmp_path):
    held_out = DataLoader(Subset(blobs(300), range(200, 300)), 50)
    live = live_bound(tmp_path, Subset(Noisy(300), range(250)), held_out=held_out, clean=blobs(300))
    assert "50 validation samples are also training samples" in live.measurements[-1].notes[0]
    live = live_bound(tmp_path, Noisy(300), held_out=held_out, clean=blobs(300))
    assert "100 validation samples are also training samples" in live.measurements[-1].notes[0]
    live = live_bound(tmp_path, Noisy(300), held_out=DataLoader(blobs(100, seed=8), 50), clean=blobs(300))
    assert "hold_out" in live.latest.estimates
    same, other = Noisy(300, size=0), blobs(300)  # the clean samples look otherwise: the place alone tells
    other.tensors = (other.tensors[0] + 1, other.tensors[1])
    held_out = DataLoader(Subset(same, range(150, 250)), 50)
    live = live_bound(tmp_path, Subset(same, range(200)), held_out=held_out, clean=other)
    assert "50 validation samples are also training samples" in live.measurements[-1].notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["split", "curvature"])
def test_priors_from_other_samples(tmp_path, prior):
    class Both(NoisyData):
        def val_dataloader(self):
            return DataLoader(blobs(100, seed=8), 50)

    data = PriorSplit(Both(), 0.5) if prior == "split" else Both()
    final = certified(tmp_path, data, prior=prior, clean="clean_dataloader")
    pair = final.certificates[0]
    assert pair.valid
    assert pair.n == (150 if prior == "split" else 300)
    rates = [rate(tmp_path / "mine" / name, blobs(300)) for name in pair.networks]
    if prior == "split":
        rest = Subset(blobs(300), data.certification_dataloader().dataset.indices)
        chosen = torch.utils.data.TensorDataset(*(tensor[rest.indices] for tensor in blobs(300).tensors))
        rates = [rate(tmp_path / "mine" / name, chosen) for name in pair.networks]
    assert pair.empirical_risk == pytest.approx(sum(rates) / 2)


def test_a_split_of_clean_copies_is_seen(tmp_path):
    class Twice(NoisyData):
        def train_dataloader(self):
            return loader(ConcatDataset([Noisy(150), Noisy(150, seed=1)]))

        def clean_dataloader(self):
            return DataLoader(ConcatDataset([blobs(150), blobs(150)]), batch_size=50)

    with pytest.warns(UserWarning, match="of the certifying samples are also training samples"):
        final = certified(tmp_path, PriorSplit(Twice(), 0.5), prior="split", clean="clean_dataloader")
    assert flags(final) == ("prior_depends_on_sample",)
    with pytest.warns(UserWarning, match="clean= has 150 samples, but the training data are split from another"):
        certified(tmp_path, PriorSplit(NoisyData(), 0.5), prior="split", clean=blobs(150))


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["initialization", "split"])
def test_a_resume_and_the_certifying_of_a_checkpoint(tmp_path, prior):
    def data():
        return PriorSplit(NoisyData(), 0.5) if prior == "split" else NoisyData()

    torch.manual_seed(0)
    first = FinalCertificate(learning=QUICK, prior=prior, clean="clean_dataloader", strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=1)
    host.fit(Classifier(), datamodule=data())
    path = tmp_path / "last.ckpt"
    host.save_checkpoint(path)
    resumed = FinalCertificate(learning=QUICK, prior=prior, clean="clean_dataloader", strict=True)
    host = trainer(tmp_path, callbacks=[resumed], max_epochs=2)
    host.fit(Classifier(), datamodule=data(), ckpt_path=path, **SAFELY)
    assert resumed.certificates[0].valid
    later = certifying_trainer(tmp_path)
    options = {"ckpt_path": str(path), "learning": QUICK, "prior": prior}
    found = later.certify(Classifier(), data(), clean="clean_dataloader", **options)
    assert found.certificates[0].n == (150 if prior == "split" else 300)
    assert "read from clean=" in found.certificates[0].statement()
