"""The headline in a Trainer: the function's numbers, a probe of its own size, a sample that dominates, many outputs."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from support.tiny import SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import (
    ConfigurationError,
    JacobianSpectrum,
    SloppyMonitor,
    jacobian_spectrum,
    relative_dimension,
)
from lightning_sloppy.callbacks import jacobian_spectrum as module_of_the_callback
from lightning_sloppy.measures.relative_dimension import directions_holding
from lightning_sloppy.probing.samples import probe_indices

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


@pytest.mark.parametrize("normalize", [True, False])
def test_live_values_are_those_of_the_function(tmp_path, normalize):
    torch.manual_seed(0)
    callback, model = JacobianSpectrum(normalize=normalize, strict=True), Classifier()
    host = trainer(tmp_path, callbacks=[callback], max_epochs=2)
    host.fit(model, loader())
    order = probe_indices(48, 256, 0)
    inputs = blobs().tensors[0][order]
    direct = jacobian_spectrum(model, [inputs], normalize=normalize)
    found = callback.latest.estimates
    torch.testing.assert_close(callback.latest.spectrum.eigenvalues, direct.eigenvalues, rtol=1e-4, atol=1e-7)
    half = jacobian_spectrum(model, [inputs[:24]], normalize=normalize)
    name = "jacobian" if normalize else "jacobian_raw"
    for quantity, right in {
        "effective_dimension": relative_dimension(direct),
        "effective_dimension_fine": relative_dimension(direct, 1e-4),
        "effective_dimension_coarse": relative_dimension(direct, 1e-2),
        "effective_dimension_half_samples": relative_dimension(half),
        "n90": directions_holding(direct, 0.9),
    }.items():
        assert found[quantity].value == pytest.approx(right.value, rel=1e-4), quantity
        assert float(host.callback_metrics[f"sloppy_{name}/{quantity}"]) == pytest.approx(right.value, rel=1e-4)
    assert found["largest_fraction"].value == pytest.approx(direct.largest / direct.trace.value, rel=1e-4)
    assert (found["num_outputs"].value, found["num_samples"].value, found["num_parameters"].value) == (3, 48, 83)


class Wide(Regressor):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(6, outputs)


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "count"), [(1, 256), (5, 256), (10, 128), (20, 64), (100, 64)])
def test_the_probe_has_as_many_samples_as_the_outputs_allow(tmp_path, outputs, count):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(300, 6), torch.randn(300, outputs))
    callback = JacobianSpectrum(strict=True)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Wide(outputs), DataLoader(data, 100))
    assert callback.latest.num_samples == count
    given = JacobianSpectrum(num_samples=30, strict=True)
    trainer(tmp_path, callbacks=[given], max_epochs=1).fit(Wide(outputs), DataLoader(data, 100))
    assert given.latest.num_samples == 30


@pytest.mark.slow
def test_many_outputs_are_seen_through_probe_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(module_of_the_callback, "MOST_ROWS", 60)
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.ROW_LIMIT", 60)
    torch.manual_seed(0)
    model = Classifier()
    model.net = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 3))
    callback = JacobianSpectrum(probes=8, strict=True)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, loader())
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.ROW_LIMIT", 8192)
    exact = relative_dimension(jacobian_spectrum(model, [blobs().tensors[0]])).value
    found = callback.latest.estimates["effective_dimension"]
    assert callback.latest.spectrum.truncated
    assert found.standard_error > 0
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error + 0.02 * exact)
    assert "n90" not in callback.latest.estimates


def test_a_sample_that_dominates_is_named(tmp_path):
    torch.manual_seed(0)
    inputs, targets = (tensor.clone() for tensor in blobs(60).tensors)
    inputs[37] *= 1000
    callback = JacobianSpectrum()
    host = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    with pytest.warns(UserWarning, match="Sample 37 of the training data contributes 100 % of the trace") as caught:
        host.fit(Classifier(lr=0.0), DataLoader(TensorDataset(inputs, targets), 20))
    assert len([w for w in caught if "contributes" in str(w.message)]) == 1
    assert callback.latest.estimates["largest_sample_fraction"].value > 0.99
    assert any("Sample 37" in paragraph for paragraph in callback.paragraphs())


class Manual(LightningModule):
    """No loss that anybody could know, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.net(inputs)
        return {"scores": hidden[:, :3], "rest": hidden[:, 3:]}

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self(batch[0])["scores"].square().mean())
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_it_needs_no_loss_and_picks_outputs(tmp_path):
    scores, both = JacobianSpectrum("scores", strict=True), JacobianSpectrum(strict=True)
    trainer(tmp_path, callbacks=[scores, both], max_epochs=1).fit(Manual(), loader())
    assert (scores.name, both.name) == ("jacobian_scores", "jacobian")
    assert (scores.latest.estimates["num_outputs"].value, both.latest.estimates["num_outputs"].value) == (3, 4)


class Unequal(IterableDataset):
    """Batches of sequences of two lengths, the shorter ones first."""

    def __iter__(self):
        draws = torch.Generator().manual_seed(1)
        for turn in range(6):
            length = (2, 6)[turn % 2]
            yield torch.randn(16, length, 3, generator=draws), torch.randn(16, length, 20, generator=draws)


class Positions(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 20))


@pytest.mark.slow
def test_sequences_of_unequal_length_go_by_the_longest(tmp_path):
    torch.manual_seed(0)
    callback = JacobianSpectrum(strict=True)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Positions(), DataLoader(Unequal(), batch_size=None))
    found = callback.latest.estimates
    assert (found["num_outputs"].value, found["num_samples"].value) == (120, 64)
    assert callback.latest.cost.products > 0  # 7,680 rows
    assert found["effective_dimension"].value > 0
    assert found["effective_dimension"].standard_error > 0


class Stream(IterableDataset):
    def __iter__(self):
        yield from blobs(96)


def test_a_stream_and_the_current_batch(tmp_path):
    fixed = JacobianSpectrum(num_samples=32, strict=True)
    current = JacobianSpectrum(num_samples=16, measure_on="current_batch", name="now", strict=True)
    trainer(tmp_path, callbacks=[fixed, current], max_epochs=1).fit(Classifier(), DataLoader(Stream(), 16))
    assert fixed.latest.num_samples == 32
    assert current.latest.num_samples == 16


def test_a_resumed_run_goes_on_with_the_same_samples(tmp_path):
    torch.manual_seed(0)
    first = trainer(tmp_path, callbacks=[JacobianSpectrum(num_samples=20)], max_epochs=1)
    first.fit(Classifier(), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    again = JacobianSpectrum(num_samples=20, normalize=True)
    trainer(tmp_path, callbacks=[again], max_epochs=2).fit(
        Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY
    )
    assert again.measurements[0].num_samples == 20


def test_it_is_the_first_of_the_monitor_and_of_the_summary(tmp_path, capsys):
    watcher = SloppyMonitor(hessian=None, fisher=None, strict=True)
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(Classifier(), loader())
    assert next(iter(watcher.latest)) == "jacobian"
    (first, *_) = watcher.parts[0].paragraphs()
    value = watcher.latest["jacobian"].estimates["effective_dimension"].value
    assert first.startswith(f"Effective dimension: {value:.4g} of 83 parameters (an eigenvalue that is a thousandth of")


@pytest.mark.parametrize("wrong", [{"probes": 1}, {"steps": 1}, {"num_samples": 1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="pass at least 2 of each"):
        JacobianSpectrum(**wrong)


def test_patterns_that_match_nothing_are_refused_before_training(tmp_path):
    host = trainer(tmp_path, callbacks=[JacobianSpectrum(parameters="nothing.*")])
    with pytest.raises(ConfigurationError, match=r"nothing\.\*"):
        host.fit(Classifier(), loader())
