"""What is measured on: fixed samples, the first batches of a stream, or the current batch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from support.tiny import Classifier, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    Status,
    fisher_spectrum,
)
from lightning_sloppy.probing.streamed_batches import StreamedBatches

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*", "ignore:.*has `__len__` defined.*")


class Stream(IterableDataset):
    """Draws from a stream of its own, which anybody who iterated it would move on."""

    def __init__(self, count: int = 48) -> None:
        self.data, self.begun = blobs(count), 0

    def __iter__(self):
        self.begun += 1
        yield from self.data


class Counted(Stream):
    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.slow
def test_a_stream_is_measured_on_its_first_batches(tmp_path):
    stream = Counted()
    fisher, hessian = FisherSpectrum(num_samples=20, strict=True), HessianSpectrum(k=2, num_samples=16, strict=True)
    model = Classifier()
    trainer(tmp_path, callbacks=[fisher, hessian], max_epochs=3).fit(model, DataLoader(stream, 16))
    assert stream.begun == 3
    assert [m.step for m in hessian.measurements] == [0, 2, 5, 8]
    assert [m.step for m in fisher.measurements] == [1, 2, 5, 8]
    assert [m.num_samples for m in hessian.measurements] == [16] * 4
    assert [m.num_samples for m in fisher.measurements] == [32] * 4
    inputs, targets = (torch.stack(part) for part in zip(*stream.data, strict=True))
    mine = fisher_spectrum(model, [(inputs[:32], targets[:32])], nn.CrossEntropyLoss())
    torch.testing.assert_close(fisher.latest.spectrum.eigenvalues, mine.eigenvalues)
    assert fisher.latest.estimates["effective_dimension"].value > 0


@pytest.mark.slow
def test_a_stream_without_a_length_has_a_dimension_but_none_at_the_prior(tmp_path):
    hessian = HessianSpectrum(k=2, num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Classifier(), DataLoader(Stream(), 16))
    assert hessian.latest.estimates["effective_dimension"].value > 0
    assert "effective_dimension_at_prior" not in hessian.latest.estimates


def test_a_stream_shorter_than_the_probe_is_measured_after_an_epoch(tmp_path):
    fisher = FisherSpectrum(num_samples=1000, strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(Classifier(), DataLoader(Counted(), 16))
    assert [(m.step, m.num_samples) for m in fisher.measurements] == [(2, 48), (5, 48)]


def test_a_stream_that_ends_too_soon_is_measured_at_the_end(tmp_path):
    fisher = FisherSpectrum(num_samples=1000, strict=True)
    host = trainer(tmp_path, callbacks=[fisher], max_epochs=-1, max_steps=2)
    host.fit(Classifier(), DataLoader(Counted(), 16))
    assert [(m.step, m.num_samples) for m in fisher.measurements] == [(1, 32)]


@pytest.mark.slow
def test_a_stream_without_length_has_spectra_and_no_scale(tmp_path):
    fisher = FisherSpectrum(num_samples=16, strict=True)
    bound = PACBayesBound(strict=True)
    callbacks = [fisher, HessianSpectrum(k=2, num_samples=16, strict=True), bound]
    with pytest.warns(UserWarning, match="cannot be read by index"):
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(Classifier(), DataLoader(Stream(), 16))
    assert fisher.latest.spectrum.largest > 0
    assert "effective_dimension_at_prior" not in fisher.latest.estimates
    assert fisher.latest.estimates["effective_dimension"].value > 0, "it needs no scale"
    assert any("give the data set a __len__" in note for note in fisher.latest.notes)
    assert not bound.latest
    assert {m.status for m in bound.measurements} == {Status.UNAVAILABLE}


def test_the_current_batch(tmp_path):
    seen = []

    class Spoiling(Classifier):
        """Changes its batch in place."""

        def training_step(self, batch, batch_idx):
            seen.append(batch[0].clone())
            loss = super().training_step(batch, batch_idx)
            batch[0].data.zero_()
            return loss

    class Watching(FisherSpectrum):
        def measure(self, host, module, probe):
            used.append(probe.batches[0][0].clone())
            return super().measure(host, module, probe)

    used: list[torch.Tensor] = []
    fisher = Watching(
        schedule=Schedule(every_n_steps=2), measure_on="current_batch", loss_fn=nn.CrossEntropyLoss(), strict=True
    )
    data = DataLoader([tuple(t.clone() for t in pair) for pair in blobs(64)], 16)
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(Spoiling(), data)
    assert [(m.step, m.num_samples) for m in fisher.measurements] == [(0, 16), (1, 16), (3, 16)]
    assert all(torch.equal(used[i], seen[j]) for i, j in ((0, 0), (1, 1), (2, 3)))


def test_an_unknown_probe_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="fixed_samples, current_batch"):
        FisherSpectrum(measure_on="random")


class Two(LightningModule):
    """Several loaders at once: a labelled batch and another one, or a dict of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch):
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        return sum(nn.functional.cross_entropy(self.net(x), y) for x, y in parts)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("named", [False, True])
def test_several_loaders_are_measured_through_training_step(tmp_path, named):
    loaders = [loader(shuffle=False), loader(blobs(seed=1), batch_size=8, shuffle=False)]
    model = Two()
    hessian = HessianSpectrum(k=3, num_samples=16, strict=True)
    host = trainer(tmp_path, callbacks=[hessian], max_epochs=1)
    with pytest.warns(UserWarning, match="the Hessian is that of training_step"):
        host.fit(model, dict(zip("ab", loaders, strict=True)) if named else loaders)
    batches = [next(iter(one)) for one in loaders]

    def loss(weight, bias):
        return sum(nn.functional.cross_entropy(x @ weight.T + bias, y) for x, y in batches)

    blocks = torch.autograd.functional.hessian(loss, (model.net.weight.detach(), model.net.bias.detach()))
    rows = [torch.cat([block.reshape(size, -1) for block in row], 1) for row, size in zip(blocks, (18, 3), strict=True)]
    largest = torch.linalg.eigvalsh(torch.cat(rows).double())[-1]
    assert hessian.latest.spectrum.largest == pytest.approx(float(largest), rel=1e-4)


def test_batches_that_are_dicts_need_nothing(tmp_path):
    class Dicts(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    data = [{"x": x, "y": y} for x, y in blobs()]
    hessian = HessianSpectrum(k=2, num_samples=16, strict=True)
    with pytest.warns(UserWarning, match="the Hessian is that of training_step"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Dicts(), DataLoader(data, 16))
    assert hessian.latest.spectrum.largest > 0


@pytest.mark.slow
def test_the_monitor_watches_a_stream_and_training_is_the_same(tmp_path):
    def run(*callbacks):
        torch.manual_seed(0)
        model, stream = Classifier(dropout=0.3), Counted()
        trainer(tmp_path, callbacks=list(callbacks), max_epochs=3).fit(model, DataLoader(stream, 16))
        return model, stream

    plain, before = run()
    with pytest.warns(UserWarning, match="by index"):
        watched, after = run(
            SloppyMonitor(measure_on="current_batch", input=None), EffectiveDimensionEarlyStopping(patience=50)
        )
    assert before.begun == after.begun
    for mine, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_of_a_stream_no_more_batches_are_kept_than_are_wanted():
    kept = StreamedBatches()
    for number in range(5):
        kept.see((torch.full((8, 6), float(number)), torch.zeros(8)), number, 16)
    assert kept.num_samples == 16
    assert [float(inputs[0, 0]) for inputs, _ in kept.first(16)] == [0.0, 1.0]
    assert [len(inputs) for inputs, _ in kept.first(9)] == [8, 8]
    assert float(kept.latest()[0][0][0, 0]) == 4.0
    kept.see((torch.zeros(8, 6), torch.zeros(8)), 4, 16)
    assert float(kept.latest()[0][0][0, 0]) == 4.0, "seen already"
