"""Samples that come more than once: by their index they count once, by their content as the user states, or both."""

from __future__ import annotations

import math

import pytest
import torch
from support.certified import QUICK, Data, TwoClasses
from support.tiny import Classifier, blobs, loader, trainer
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_sloppy import ConfigurationError, FinalCertificate, HessianSpectrum, PACBayesBound, PriorSplit
from lightning_sloppy.bounds import kl_inverse, log_xi
from lightning_sloppy.bounds.hold_out import hold_out_certificate
from lightning_sloppy.probing.digests import first_of_equals, sample_digests
from lightning_sloppy.probing.samples import SampleSource

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
FEATURES = 7


class Table(TwoClasses):
    def __init__(self):
        super().__init__(FEATURES, 16)


def table(count=400, seed=1, noise=0.1):
    """Seven binary features, and a label that is now and then another for the same features."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 2, (count, FEATURES), generator=rng).float()
    return TensorDataset(inputs, ((inputs[:, 0] > 0) ^ (torch.rand(count, generator=rng) < noise)).long())


def certified(tmp_path, data, *, model=None, live=None, held_out=None, epochs=5, **options):
    torch.manual_seed(0)
    final = FinalCertificate(learning=QUICK, strict=True, folder=str(tmp_path / "mine"), **options)
    before = [] if live is None else [HessianSpectrum(k=2, num_samples=64), live]
    host = trainer(tmp_path, callbacks=[*before, final], max_epochs=epochs)
    if isinstance(data, PriorSplit):
        host.fit(model or Table(), datamodule=data)
    else:
        host.fit(model or Table(), loader(data, batch_size=50), held_out)
    return final


def rate(path, inputs, targets):
    network = Table()
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return float((network.eval()(inputs).argmax(1) != targets).double().mean())


def test_without_a_word_the_bound_holds_either_way(tmp_path):
    data = table()
    inputs, targets = data.tensors
    rows = torch.unique(torch.cat([inputs, targets[:, None]], 1), dim=0)
    assert len(rows) < 300, "the table must repeat itself, and have inputs with both labels"
    assert len(rows) > len(torch.unique(inputs, dim=0))
    pair = certified(tmp_path, data).certificates[0]
    assert pair.valid
    bounds = []
    for x, y in ((inputs, targets), (rows[:, :-1], rows[:, -1].long())):
        error = sum(rate(tmp_path / "mine" / name, x, y) for name in pair.networks) / 2
        nats = pair.log_ratio + log_xi(len(x)) - math.log(pair.delta_pac)
        bounds.append((kl_inverse(error, nats / len(x)), len(x), error))
    assert bounds[0] != bounds[1]
    value, n, error = max(bounds)
    assert pair.value == pytest.approx(value, abs=1e-9)
    assert (pair.n, pair.empirical_risk) == (n, pytest.approx(error))
    assert f"one on the {len(rows):,} different ones" in pair.statement()
    assert "not for a mixture of the two" in pair.statement()


@pytest.mark.slow
@pytest.mark.parametrize("duplicates", ["natural", "copies", None])
def test_the_users_word_decides(tmp_path, duplicates):
    data = table()
    different = len(torch.unique(torch.cat([data.tensors[0], data.tensors[1][:, None]], 1), dim=0))
    live = PACBayesBound(strict=True, duplicates=duplicates)
    final = certified(tmp_path, data, live=live, duplicates=duplicates)
    for certificate in (*final.certificates, live.latest.certificate):
        assert certificate.valid
        if duplicates is not None:
            assert certificate.n == (400 if duplicates == "natural" else different)
            assert f"duplicates='{duplicates}'" in certificate.statement()
        assert len([text for text in certificate.conditions if "duplicates=" in text]) == 1


@pytest.mark.slow
def test_a_live_bound_on_a_subsample_holds_either_way(tmp_path):
    live = PACBayesBound(strict=True, risk_samples=100)
    certified(tmp_path, table(), live=live)
    for measurement in live.measurements:
        certificate = measurement.certificate
        assert certificate.risk_samples == 100
        nats = certificate.log_ratio + log_xi(certificate.n) - math.log(certificate.delta_pac)
        upper = kl_inverse(certificate.empirical_risk, math.log(1 / certificate.delta_risk) / 100)
        assert certificate.risk_upper == pytest.approx(upper)
        assert certificate.value == pytest.approx(kl_inverse(upper, max(nats, 0) / certificate.n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: Subset(blobs(200), [*range(150), *range(50)]), 150),
        (lambda: ConcatDataset([data := blobs(100), data]), 100),
        (lambda: ConcatDataset([data := blobs(100), Subset(data, range(30))]), 100),
        (lambda: Subset(ConcatDataset([data := blobs(100), data]), range(20, 150)), 100),
    ],
    ids=["subset", "concat", "oversampled", "subset of a concat"],
)
def test_copies_by_index_count_once(tmp_path, make, count):
    live = PACBayesBound(strict=True)
    final = certified(tmp_path, make(), model=Classifier(), live=live)
    for certificate in (*final.certificates, live.latest.certificate):
        assert certificate.valid
        assert certificate.n == certificate.risk_samples == count
        assert not any("are equal to others" in text for text in certificate.conditions)


def test_each_sample_is_read_once_in_its_first_place():
    base = TensorDataset(torch.arange(6.0), torch.zeros(6))
    nested = Subset(ConcatDataset([base, Subset(base, [5, 1])]), [7, 2, 6, 1, 2])
    source = SampleSource(DataLoader(nested, 4)).each_once()
    assert source.read(torch.arange(len(source)))[0].tolist() == [1.0, 2.0, 5.0]
    equal = TensorDataset(torch.tensor([3.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 0]))
    assert first_of_equals(SampleSource(DataLoader(equal, 2))).tolist() == [0, 1, 2]


def rows_of(side):
    inputs, targets = (torch.stack([sample[place] for sample in side.dataset]) for place in (0, 1))
    return {tuple(row) for row in torch.cat([inputs, targets[:, None]], 1).tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("duplicates", [None, "copies"])
def test_a_split_of_a_table_keeps_equal_rows_together(tmp_path, duplicates):
    split = PriorSplit(Data(table()), seed=1, duplicates=duplicates)
    final = certified(tmp_path, split, prior="split", duplicates=duplicates)
    prior, rest = rows_of(split.train_dataloader()), rows_of(split.certification_dataloader())
    assert not prior & rest
    assert abs(len(prior) - len(rest)) <= 1, "half of the different rows"
    pair = final.certificates[0]
    inputs, targets = (torch.tensor([row[part] for row in rest]) for part in (slice(0, -1), -1))
    errors = [rate(tmp_path / "mine" / name, inputs, targets.long()) for name in pair.networks]
    assert (pair.valid, pair.n) == (True, len(rest))
    assert pair.empirical_risk == pytest.approx(sum(errors) / 2)
    assert "Equal samples are on the same side of the split" in pair.statement()


@pytest.mark.slow
def test_a_split_of_natural_rows_is_one_of_single_rows(tmp_path):
    split = PriorSplit(Data(table()), seed=1, duplicates="natural")
    pair = certified(tmp_path, split, prior="split", duplicates="natural").certificates[0]
    assert rows_of(split.train_dataloader()) & rows_of(split.certification_dataloader())
    assert (pair.valid, pair.n, pair.n_prior) == (True, 200, 200)
    assert "the same side of the split" not in pair.statement()
    twice = PriorSplit(Data(ConcatDataset([data := table(100), data])), seed=1, duplicates="natural")
    pair = certified(tmp_path, twice, prior="split", duplicates="natural").certificates[0]
    assert (pair.valid, pair.n, pair.n_prior) == (True, 50, 100)


@pytest.mark.parametrize(("of_split", "of_certificate"), [("natural", None), (None, "natural"), ("copies", "natural")])
def test_split_and_certificate_say_the_same_of_equal_rows(tmp_path, of_split, of_certificate):
    split = PriorSplit(Data(table()), duplicates=of_split)
    with pytest.raises(ConfigurationError, match=f"PriorSplit has duplicates={of_split!r} and the certificate"):
        certified(tmp_path, split, prior="split", duplicates=of_certificate)


@pytest.mark.slow
def test_hold_out_samples_of_a_table_need_the_users_word(tmp_path):
    data, held_out = table(), DataLoader(table(seed=2), 50)
    for duplicates, there in ((None, False), ("natural", True)):
        live = PACBayesBound(strict=True, duplicates=duplicates)
        certified(tmp_path, data, live=live, held_out=held_out, duplicates=duplicates)
        assert ("hold_out" in live.measurements[-1].estimates) == there
    live = PACBayesBound(strict=True, duplicates="natural")
    certified(tmp_path, data, live=live, held_out=DataLoader(Subset(data, range(50)), 50), duplicates="natural")
    assert "50 validation samples are also training samples" in live.measurements[-1].notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(("duplicates", "counted"), [(None, 20), ("copies", 20), ("natural", 1_000)])
def test_equal_validation_samples_count_as_the_user_says(tmp_path, duplicates, counted):
    """20 samples, each 50 times: as copies, or without a word, the hold-out bound is that of 20."""
    torch.manual_seed(0)
    data = torch.randn(220, FEATURES)
    labels = (data[:, 0] > 0).long()
    held_out = TensorDataset(data[200:].repeat(50, 1), labels[200:].repeat(50))
    live = PACBayesBound(duplicates=duplicates, strict=True)
    parts = [HessianSpectrum(k=2, num_samples=64), live]
    host = trainer(tmp_path, callbacks=parts, max_epochs=2)
    host.fit(Table(), loader(TensorDataset(data[:200], labels[:200]), batch_size=50), DataLoader(held_out, 50))
    event = live.latest
    errors = round(event.estimates["hold_out_error"].value * counted)
    right = hold_out_certificate(errors, counted, delta=0.05, evaluation=len(live.measurements), conditions=()).value
    assert event.estimates["hold_out"].value == pytest.approx(right)


class Uneven(Dataset):
    """Sequences of one to six steps; number i is the same as number i + 20 in their content."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index % 20)
        length = 1 + int(torch.randint(0, 6, (1,), generator=rng))
        return torch.randn(length, 3, generator=rng), index % 20 % 3


class Joined:
    """Steps of all samples in one tensor, as graph libraries join their nodes."""

    def __init__(self, samples):
        self.steps = torch.cat([steps for steps, _ in samples])
        self.sample = torch.repeat_interleave(torch.tensor([len(steps) for steps, _ in samples]))
        self.label = torch.tensor([label for _, label in samples])

    def to(self, device):
        self.steps, self.sample, self.label = (t.to(device) for t in (self.steps, self.sample, self.label))
        return self


def labels(samples):
    return torch.tensor([label for _, label in samples])


COLLATED = {
    "padded": lambda samples: (pad_sequence([steps for steps, _ in samples], batch_first=True), labels(samples)),
    "time first": lambda samples: (pad_sequence([steps for steps, _ in samples]), labels(samples)),
    "packed": lambda samples: (pack_sequence([steps for steps, _ in samples], False), labels(samples)),
    "joined": Joined,
}


@pytest.mark.parametrize("kind", COLLATED)
def test_samples_are_told_apart_whatever_makes_a_batch_of_them(kind):
    """A row of such a batch is no sample: its padding, or all of it, comes from the others."""
    source = SampleSource(DataLoader(Uneven(), 8, collate_fn=COLLATED[kind]))
    assert first_of_equals(source).tolist() == list(range(20))
    assert source.each_once() is source
    short = Subset(Uneven(), [i for i in range(30) if len(Uneven()[i][0]) < 4])
    beside = sample_digests(SampleSource(DataLoader(short, 8, collate_fn=COLLATED[kind])))
    whole = sample_digests(source)
    assert whole.copies == 10
    assert 0 < len(beside.distinct) < 20
    assert beside.distinct <= whole.distinct


class LastStep(Classifier):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 5), nn.Linear(5, 3)

    def forward(self, steps):
        return self.head(self.cells(steps)[1][0][-1])


@pytest.mark.slow
def test_packed_sequences_have_a_bound(tmp_path):
    """Reading rows of packed data as samples ended in an IndexError."""
    live = PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=20), live], max_epochs=1)
    data = DataLoader(Subset(Uneven(), range(20)), 4, collate_fn=COLLATED["packed"])
    host.fit(LastStep(), data)
    certificate = live.latest.certificate
    assert certificate.valid
    assert certificate.n == certificate.risk_samples == 20
    assert not any("are equal to others" in text for text in certificate.conditions)
