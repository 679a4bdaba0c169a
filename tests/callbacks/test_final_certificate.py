"""The end of a fit: learnt, certified, saved; or the reason why not."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import LightningDataModule
from tiny import CLASSES, SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    Certificate,
    ConfigurationError,
    FinalCertificate,
    HessianSpectrum,
    LearningPlan,
    PACBayesBound,
    PriorSplit,
)
from lightning_sloppy.bounds.certify import weights_hash

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

QUICK = LearningPlan(seconds=60, epochs=4, batch_size=50)


class Data(LightningDataModule):
    def __init__(self, samples: TensorDataset) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> DataLoader:
        return loader(self.samples)


def fit(tmp_path, *, data=None, model=None, before=(), epochs=3, ckpt_path=None, **options) -> FinalCertificate:
    final = FinalCertificate(**{"learning": QUICK, "strict": True, **options})
    host = trainer(tmp_path, callbacks=[*before, final], max_epochs=epochs)
    given = {} if ckpt_path is None else {"ckpt_path": ckpt_path, **SAFELY}
    data = blobs(600) if data is None else data
    if isinstance(data, LightningDataModule):
        host.fit(model or Classifier(), datamodule=data, **given)
    else:
        host.fit(model or Classifier(), loader(data), **given)
    return final


def true_error(path, model=None) -> float:
    inputs, targets = blobs(4000, seed=5).tensors
    model = Classifier.load_from_checkpoint(path, **SAFELY) if model is None else model
    return float((model.eval()(inputs).argmax(1) != targets).double().mean())


def test_networks_and_certificates_are_files_and_hold(tmp_path):
    torch.manual_seed(0)
    final = fit(tmp_path, folder=str(tmp_path / "mine"))
    pair, single = final.certificates
    assert pair.valid
    assert single.valid
    assert pair.n == single.n == 600
    errors = [true_error(tmp_path / "mine" / name) for name in pair.networks]
    assert sum(errors) / 2 < pair.value < 1 - 1 / CLASSES
    assert errors[0] < single.value
    assert repr(Certificate.load(tmp_path / "mine" / "certificate.json")) == repr(pair)
    assert repr(Certificate.load(tmp_path / "mine" / "certified_1.json")) == repr(single)
    assert single.networks == ("certified_1.ckpt",)
    assert pair.posterior == "diagonal"
    assert len(pair.sample_hash) > 10
    assert final.learnt.steps == 4 * 600 // 50


def test_what_was_judged_is_what_was_saved(tmp_path):
    torch.manual_seed(0)
    final = fit(tmp_path, folder=str(tmp_path / "mine"))
    inputs, targets = blobs(600).tensors
    rates = []
    for name in final.certificates[0].networks:
        network = Classifier.load_from_checkpoint(tmp_path / "mine" / name, **SAFELY).eval()
        rates.append(float((network(inputs).argmax(1) != targets).double().mean()))
    assert final.certificates[0].empirical_risk == pytest.approx(sum(rates) / 2)
    assert final.certificates[1].empirical_risk == pytest.approx(rates[0])


def test_the_trained_model_stays_what_it_is(tmp_path):
    weights = []
    for callback in (True, False):
        torch.manual_seed(0)
        model = Classifier()
        if callback:
            fit(tmp_path, model=model)
        else:
            trainer(tmp_path, max_epochs=3).fit(model, loader(blobs(600)))
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_numbers_are_logged_and_said(tmp_path, capsys):
    final = fit(tmp_path)
    measurement = final.measurements[-1]
    assert measurement.estimates["pair"].value == final.certificates[0].value
    assert measurement.estimates["single"].value == final.certificates[1].value
    assert measurement.certificate is final.certificates[0]


def test_beside_the_live_bound_it_is_the_next_evaluation(tmp_path):
    live = PACBayesBound(strict=True)
    final = fit(tmp_path, before=[HessianSpectrum(k=2, num_samples=64), live], epochs=2)
    assert final.certificates[0].evaluation == len(live.measurements) + 1 == 4
    with pytest.raises(ConfigurationError, match="give both the same"):
        fit(tmp_path, before=[HessianSpectrum(), PACBayesBound(delta=0.1)], epochs=1)


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_the_callbacks_does_not_matter(tmp_path, first):
    live, hessian = PACBayesBound(strict=True), HessianSpectrum(k=2, num_samples=64)
    final = FinalCertificate(learning=QUICK, strict=True)
    callbacks = [final, live, hessian] if first else [hessian, live, final]
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Classifier(), loader(blobs(200)))
    assert final.certificates[0].evaluation == 3


def test_a_split_prior_certifies_on_what_training_never_saw(tmp_path):
    torch.manual_seed(0)
    model = Classifier()
    split = PriorSplit(Data(blobs(2000)), 0.5)
    final = fit(tmp_path, data=split, model=model, prior="split", epochs=5)
    pair = final.certificates[0]
    assert pair.valid
    assert (pair.n, pair.n_prior) == (1000, 1000)
    assert pair.prior_hash == weights_hash(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert pair.log_ratio < 60
    assert true_error(None, model) < pair.value < true_error(None, model) + 0.15
    whole = fit(tmp_path, data=blobs(1000), epochs=5)
    assert pair.value < whole.certificates[0].value


def test_a_split_prior_needs_a_split(tmp_path):
    with pytest.raises(ConfigurationError, match="is no PriorSplit"):
        fit(tmp_path, prior="split")


def test_batch_norm_is_covered_by_a_split_prior_alone(tmp_path):
    model = Classifier(batch_norm=True)
    assert fit(tmp_path, data=PriorSplit(Data(blobs(400))), model=model, prior="split").certificates[0].valid
    with pytest.warns(UserWarning, match="Batch statistics"):
        final = fit(tmp_path, model=Classifier(batch_norm=True))
    assert final.certificates[0].flags == ("buffers_depend_on_sample",)
    assert math.isnan(final.certificates[0].value)


def flags(final: FinalCertificate) -> tuple[str, ...]:
    return final.measurements[-1].certificate.flags


def test_samples_on_both_sides_of_the_split_forbid_it(tmp_path):
    inputs, targets = blobs(200).tensors
    twice = TensorDataset(torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    with pytest.warns(UserWarning, match="training samples as well"), pytest.warns(UserWarning, match="exact copies"):
        final = fit(tmp_path, data=PriorSplit(Data(twice)), prior="split")
    assert "prior_depends_on_sample" in flags(final)


def test_weights_that_trained_on_another_split_forbid_it(tmp_path):
    model = Classifier()
    samples = blobs(400)
    fit(tmp_path, data=PriorSplit(Data(samples), seed=1), model=model, prior="split")
    with pytest.warns(UserWarning, match="trained before this fit, or on another split"):
        final = fit(tmp_path, data=PriorSplit(Data(samples), seed=2), model=model, prior="split")
    assert flags(final) == ("prior_depends_on_sample",)


def test_a_second_fit_and_a_resume(tmp_path):
    model = Classifier()
    first = FinalCertificate(learning=QUICK, strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=1)
    host.fit(model, loader(blobs(200)))
    path = tmp_path / "last.ckpt"
    host.save_checkpoint(path)
    resumed = fit(tmp_path, data=blobs(200), model=Classifier(), epochs=2, ckpt_path=path)
    assert resumed.certificates[0].valid
    assert resumed.certificates[0].prior_hash == first.certificates[0].prior_hash
    assert resumed.certificates[0].evaluation == 2
    with pytest.warns(UserWarning, match="trained before this fit"):
        again = fit(tmp_path, data=blobs(200), model=model)
    assert flags(again) == ("prior_depends_on_sample",)


def test_a_split_goes_on_after_a_resume(tmp_path):
    split = PriorSplit(Data(blobs(400)), seed=1)
    first = FinalCertificate(learning=QUICK, prior="split", strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=1)
    host.fit(Classifier(), datamodule=split)
    path = tmp_path / "last.ckpt"
    host.save_checkpoint(path)
    resumed = fit(tmp_path, data=split, epochs=2, ckpt_path=path, prior="split")
    assert resumed.certificates[0].valid
    with pytest.warns(UserWarning, match="on another split"):
        other = fit(tmp_path, data=PriorSplit(Data(blobs(400)), seed=2), epochs=2, ckpt_path=path, prior="split")
    assert flags(other) == ("prior_depends_on_sample",)


def test_regression_has_no_certificate(tmp_path):
    inputs, _ = blobs(200).tensors
    with pytest.warns(UserWarning, match="needs a classification loss"):
        final = fit(tmp_path, data=TensorDataset(inputs, inputs[:, :2]), model=Regressor())
    assert final.certificates is None
    assert flags(final) == ("loss_not_bounded",)


def test_a_failure_ends_nothing(tmp_path):
    def refuse(*_, **__):
        raise OSError("No space left on device")

    final = FinalCertificate(learning=QUICK)
    host = trainer(tmp_path, callbacks=[final], max_epochs=1)
    host.save_checkpoint = refuse
    with pytest.warns(UserWarning, match="The certificate measurement failed; training goes on. No space left"):
        host.fit(Classifier(), loader(blobs(200)))
    assert final.certificates is None


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"delta": 1.0}, {"prior": "pretrained"}])
def test_bad_arguments(options):
    with pytest.raises(ConfigurationError, match="pass"):
        FinalCertificate(**options)
