"""The end of a fit: learnt, certified, saved; or the reason why not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.utils.checkpoint
from support.alike import differences
from support.certified import QUICK, Data, certifying_trainer, fit, flags, true_error
from support.tiny import CLASSES, SAFELY, Classifier, Manual, Regressor, blobs, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    Certificate,
    ConfigurationError,
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    LearningPlan,
    PACBayesBound,
    PriorSplit,
)
from lightning_sloppy.certifying import certified_networks
from lightning_sloppy.posteriors.pair_certificate import weights_hash

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.mark.slow
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
    assert not differences(Certificate.load(tmp_path / "mine" / "certificate.json"), pair)
    assert not differences(Certificate.load(tmp_path / "mine" / "certified_1.json"), single)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_beside_the_live_bound_it_is_the_next_evaluation(tmp_path):
    live = PACBayesBound(strict=True)
    final = fit(tmp_path, before=[HessianSpectrum(k=2, num_samples=64), live], epochs=2)
    assert final.certificates[0].evaluation == len(live.measurements) + 1 == 4
    with pytest.raises(ConfigurationError, match="use the same value in both"):
        fit(tmp_path, before=[HessianSpectrum(), PACBayesBound(delta=0.1)], epochs=1, delta=0.05)


@pytest.mark.slow
def test_the_delta_of_the_live_bound_is_taken_unless_another_is_given(tmp_path):
    final = fit(tmp_path, before=[FisherSpectrum(num_samples=64), PACBayesBound(delta=0.1)], epochs=1)
    assert final.delta == final.certificates[0].delta == 0.1
    trainer(tmp_path, callbacks=[final], max_epochs=1).fit(Classifier(), loader(blobs(600)))
    assert final.certificates[0].delta == 0.05, "a fit without the live bound"
    assert FinalCertificate().delta == 0.05


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_the_callbacks_does_not_matter(tmp_path, first):
    live, hessian = PACBayesBound(strict=True), HessianSpectrum(k=2, num_samples=64)
    final = FinalCertificate(learning=QUICK, strict=True)
    callbacks = [final, live, hessian] if first else [hessian, live, final]
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Classifier(), loader(blobs(200)))
    assert final.certificates[0].evaluation == 3


@pytest.mark.slow
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
    with pytest.raises(ConfigurationError, match="needs a PriorSplit"):
        fit(tmp_path, prior="split")


@pytest.mark.slow
def test_batch_norm_is_covered_by_a_split_prior_alone(tmp_path):
    model = Classifier(batch_norm=True)
    assert fit(tmp_path, data=PriorSplit(Data(blobs(400))), model=model, prior="split").certificates[0].valid
    with pytest.warns(UserWarning, match="batch statistics"):
        final = fit(tmp_path, model=Classifier(batch_norm=True))
    assert flags(final) == ("buffers_depend_on_sample",)
    assert math.isnan(final.measurements[-1].certificate.value)
    assert final.certificates is None


@pytest.mark.slow
def test_copies_lie_on_one_side_of_the_split_and_count_once(tmp_path):
    inputs, targets = blobs(200).tensors
    twice = TensorDataset(torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    split = PriorSplit(Data(twice))
    pair = fit(tmp_path, data=split, prior="split").certificates[0]
    assert (pair.valid, pair.n, pair.n_prior) == (True, 100, 200)
    assert "Equal samples are on the same side of the split" in pair.statement()
    sides = [{index % 200 for index in side.dataset.indices} for side in (split.train_dataloader(),)]
    assert len(sides[0]) == 100
    assert (
        "Equal samples"
        not in fit(tmp_path, data=PriorSplit(Data(blobs(200))), prior="split").certificates[0].statement()
    )


def test_samples_on_both_sides_of_the_split_forbid_it(tmp_path, monkeypatch):
    """Where the split has not looked for equal ones, the certificate does."""
    monkeypatch.setattr("lightning_sloppy.certifying.prior_split.PriorSplit._groups", lambda _, source, places: places)
    inputs, targets = blobs(200).tensors
    twice = TensorDataset(torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    with pytest.warns(UserWarning, match="also training samples"):
        final = fit(tmp_path, data=PriorSplit(Data(twice)), prior="split")
    assert "prior_depends_on_sample" in flags(final)


def test_weights_that_trained_on_another_split_forbid_it(tmp_path):
    model = Classifier()
    samples = blobs(400)
    fit(tmp_path, data=PriorSplit(Data(samples), seed=1), model=model, prior="split")
    with pytest.warns(UserWarning, match="trained before this fit, or on other samples"):
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
    with pytest.warns(UserWarning, match="on other samples"):
        other = fit(tmp_path, data=PriorSplit(Data(blobs(400)), seed=2), epochs=2, ckpt_path=path, prior="split")
    assert flags(other) == ("prior_depends_on_sample",)


def test_regression_has_no_certificate(tmp_path):
    inputs, _ = blobs(200).tensors
    with pytest.warns(UserWarning, match="is for classification, with scores"):
        final = fit(tmp_path, data=TensorDataset(inputs, inputs[:, :2]), model=Regressor())
    assert final.certificates is None
    assert flags(final) == ("loss_not_bounded",)


def test_a_failure_ends_nothing(tmp_path):
    (tmp_path / "taken").write_text("no folder")
    final = FinalCertificate(learning=QUICK, folder=str(tmp_path / "taken"))
    host = trainer(tmp_path, callbacks=[final], max_epochs=1)
    with pytest.warns(UserWarning, match="The certificate measurement failed; training continues. .*taken"):
        host.fit(Classifier(), loader(blobs(200)))
    assert final.certificates is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "delta must lie strictly between 0 and 1, found 0"),
        ({"delta": 1.0}, "delta must lie strictly between 0 and 1, found 1"),
        ({"prior": "trained"}, "prior='trained' is no known prior; pass one of initialization, pretrained, curvature"),
        ({"duplicates": "none"}, "duplicates='none' is no known statement; pass 'natural'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        FinalCertificate(**options)


def test_the_same_callback_on_another_model_knows_nothing_of_its_training(tmp_path):
    samples, final = blobs(400), FinalCertificate(learning=QUICK, prior="split", strict=True)
    trainer(tmp_path, callbacks=[final], max_epochs=1).fit(Classifier(), datamodule=PriorSplit(Data(samples)))
    model = Classifier()
    trainer(tmp_path, max_epochs=1).fit(model, loader(samples))
    with pytest.warns(UserWarning, match="trained before this fit"):
        trainer(tmp_path, callbacks=[final], max_epochs=1).fit(model, datamodule=PriorSplit(Data(samples)))
    assert flags(final) == ("prior_depends_on_sample",)


def test_the_same_indices_of_reordered_samples_are_another_split(tmp_path):
    samples = blobs(400)
    first = FinalCertificate(learning=QUICK, prior="split", strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=1)
    host.fit(Classifier(), datamodule=PriorSplit(Data(samples)))
    host.save_checkpoint(tmp_path / "last.ckpt")
    turned = TensorDataset(*(tensor.flip(0) for tensor in samples.tensors))
    with pytest.warns(UserWarning, match="or on other samples"):
        other = fit(tmp_path, data=PriorSplit(Data(turned)), epochs=2, ckpt_path=tmp_path / "last.ckpt", prior="split")
    assert flags(other) == ("prior_depends_on_sample",)


def test_a_data_module_of_an_earlier_fit_does_not_vouch_for_this_one(tmp_path):
    samples, final = blobs(400), FinalCertificate(learning=QUICK, prior="split")
    host = trainer(tmp_path, callbacks=[final], max_epochs=1)
    host.fit(Classifier(), datamodule=PriorSplit(Data(samples)))
    host.fit_loop.max_epochs = 2
    with (
        pytest.warns(UserWarning, match="prior depends on them"),
        pytest.warns(UserWarning, match="or on other samples"),
    ):
        host.fit(Classifier(), loader(samples))
    assert "prior_depends_on_sample" in flags(final)


def test_validation_samples_that_certify_forbid_it(tmp_path):
    class Leaking(Data):
        def val_dataloader(self):
            return DataLoader(self.samples, batch_size=50)

    with pytest.warns(UserWarning, match="are validation samples"):
        final = fit(tmp_path, data=PriorSplit(Leaking(blobs(400))), prior="split")
    assert flags(final) == ("prior_depends_on_sample",)


class Keeping(Classifier):
    """A buffer, or a frozen layer, that learns from the batches."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.teacher = torch.nn.Linear(1, 1).requires_grad_(False)
        self.frozen = frozen

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            (self.teacher.weight if self.frozen else self.mean).add_(batch[0].mean())


@pytest.mark.parametrize("frozen", [True, False])
def test_what_learns_outside_the_weights_forbids_it_also_after_a_resume(tmp_path, frozen):
    final = FinalCertificate(learning=QUICK)
    host = trainer(tmp_path, callbacks=[final], max_epochs=1)
    with pytest.warns(UserWarning, match="Buffers or frozen parameters changed"):
        host.fit(Keeping(frozen=frozen), loader(blobs(200)))
    assert flags(final) == ("buffers_depend_on_sample",)
    host.save_checkpoint(tmp_path / "last.ckpt")
    model = Keeping(frozen=frozen)
    model.on_train_batch_end = lambda *_: None
    with pytest.warns(UserWarning, match="Buffers or frozen parameters changed"):
        fit(tmp_path, data=blobs(200), model=model, epochs=2, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.slow
def test_delta_goes_on_where_either_callback_left_it(tmp_path):
    live, final = PACBayesBound(strict=True), FinalCertificate(learning=QUICK, strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live, final], max_epochs=2)
    host.fit(Classifier(), loader(blobs(200)))
    host.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        alone = fit(tmp_path, data=blobs(200), epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert alone.certificates[0].evaluation == 5
    assert final.certificates[0].evaluation == live.run_state.evaluation == 4


@pytest.mark.slow
def test_other_posteriors_are_judged_by_other_draws(tmp_path):
    hashes = set()
    for epochs in (1, 2):
        torch.manual_seed(0)
        plan = LearningPlan(seconds=60, epochs=epochs, batch_size=50, mean_rate=0.0, spread_rate=1e-6)
        folder = tmp_path / str(epochs)
        pair = fit(tmp_path, learning=plan, folder=str(folder)).certificates[0]
        first = torch.load(folder / pair.networks[0], weights_only=True)["state_dict"]
        second = torch.load(folder / pair.networks[1], weights_only=True)["state_dict"]
        hashes.add(round(float((first["net.0.weight"] - second["net.0.weight"]).abs().sum()), 3))
    assert len(hashes) == 2


class Averaging(Classifier):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["net.0.weight"] = checkpoint["state_dict"]["net.0.weight"] * 0.5


def test_a_file_that_would_hold_other_weights_is_not_written(tmp_path):
    folder = tmp_path / "mine"
    with pytest.warns(UserWarning, match="net.0.weight would differ from the evaluated network"):
        final = fit(tmp_path, model=Averaging(), folder=str(folder), strict=False)
    assert final.certificates is None
    assert not list(folder.glob("*"))


@pytest.mark.slow
def test_files_of_an_earlier_run_do_not_stay_beside_a_refusal(tmp_path):
    folder = tmp_path / "mine"
    fit(tmp_path, folder=str(folder))
    assert len(list(folder.glob("*"))) == 4
    with pytest.warns(UserWarning, match="batch statistics"):
        fit(tmp_path, model=Classifier(batch_norm=True), folder=str(folder))
    assert not list(folder.glob("*"))


def test_a_dry_run_learns_nothing(tmp_path):
    final = FinalCertificate(learning=LearningPlan(seconds=1000), folder=str(tmp_path / "mine"))
    trainer(tmp_path, callbacks=[final], fast_dev_run=True).fit(Classifier(), loader(blobs(200)))
    assert final.measurements == []
    assert not (tmp_path / "mine").exists()


class Checkpointed(Classifier):
    def forward(self, inputs):
        return torch.utils.checkpoint.checkpoint(self.net, inputs, use_reentrant=False)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight.T

    @staticmethod
    def backward(ctx, upstream):
        inputs, weight = ctx.saved_tensors
        return upstream @ weight, upstream.T @ inputs


class OwnFunction(Classifier):
    def forward(self, inputs):
        return Doubling.apply(torch.relu(Doubling.apply(inputs, self.net[0].weight)), self.net[4].weight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Classifier, Checkpointed, OwnFunction])
def test_forwards_with_ways_of_their_own_are_learnt_too(tmp_path, kind):
    torch.manual_seed(0)
    final = fit(tmp_path, data=blobs(2000), model=kind(), epochs=5)
    assert final.learnt.method == ("noise of each example" if kind is Classifier else "one draw for each batch")
    assert final.certificates[0].valid
    assert final.certificates[0].value < 1 - 1 / CLASSES


def test_a_loss_can_be_given(tmp_path):
    model = Manual()
    del model.loss_fn
    final = fit(tmp_path, model=model, loss_fn=torch.nn.functional.cross_entropy)
    assert final.certificates[0].valid


@pytest.mark.slow
def test_a_run_is_certified_from_its_file_alone(tmp_path):
    first = FinalCertificate(learning=QUICK, strict=True)
    host = trainer(tmp_path, callbacks=[first], max_epochs=1)
    model = Classifier()
    host.fit(model, loader(blobs(200)))
    host.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    options = {"ckpt_path": str(tmp_path / "last.ckpt"), "learning": QUICK}

    again = certifying_trainer(tmp_path).certify(Classifier(), Data(blobs(200)), **options)
    assert again.certificates[0].evaluation == 2
    assert again.certificates[0].prior_hash == first.certificates[0].prior_hash
    # Without the state of a run the fresh module is the prior, and a trained one is refused.
    bare = trainer(tmp_path, max_epochs=1)
    bare.fit(Classifier(), loader(blobs(200)))
    bare.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert certifying_trainer(tmp_path).certify(Classifier(), Data(blobs(200)), **options).certificates[0].valid
    with pytest.raises(ConfigurationError, match="is already trained; pass a newly constructed one"):
        certifying_trainer(tmp_path).certify(model, Data(blobs(200)), **options)
    with pytest.raises(ConfigurationError, match="weights of another model than the configured Regressor"):
        certifying_trainer(tmp_path).certify(Regressor(), Data(blobs(200)), **options)
    with pytest.raises(ConfigurationError, match=r"There is no checkpoint none\.ckpt"):
        certifying_trainer(tmp_path).certify(Classifier(), Data(blobs(200)), ckpt_path="none.ckpt")
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        certifying_trainer(tmp_path).certify(Classifier(), Data(blobs(200)), ckpt_path=str(tmp_path / "junk.ckpt"))
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(ConfigurationError, match="is not a checkpoint of Lightning"):
        certifying_trainer(tmp_path).certify(Classifier(), Data(blobs(200)), ckpt_path=str(tmp_path / "list.ckpt"))


@pytest.mark.slow
def test_every_number_beside_a_certificate(tmp_path):
    torch.manual_seed(0)
    live = PACBayesBound(strict=True)
    final = fit(tmp_path, before=[FisherSpectrum(num_samples=64), live], epochs=2)
    pair, single = final.certificates
    counts = blobs(600).tensors[1].bincount()
    assert pair.guess_error == pytest.approx(1 - float(counts.max()) / 600)
    assert 0 < pair.guess_error != pytest.approx(0.5)
    assert pair.live_value == live.run_state.value == live.measurements[-1].certificate.value
    assert pair.value != single.value
    assert live.run_state.evaluation == pair.evaluation == single.evaluation == len(live.measurements) + 1
    event = final.measurements[-1]
    right = {
        "pair": pair.value,
        "single": single.value,
        "gibbs_error": pair.empirical_risk,
        "log_ratio": pair.log_ratio,
        "kl_displacement": pair.kl_displacement,
        "kl_covariance": pair.kl_covariance,
    }
    assert {name: estimate.value for name, estimate in event.estimates.items()} == right
    assert len(set(right.values())) == len(right)
    assert {quantity.name for quantity in final.quantities} == set(right)
    start = final._run_state.prior_mean.double()
    networks = [
        torch.cat([p.detach().flatten() for p in Classifier.load_from_checkpoint(path, **SAFELY).net.parameters()])
        for path in (tmp_path / "certificate" / name for name in pair.networks)
    ]
    mean = (networks[0].double() + networks[1].double()) / 2
    assert pair.kl_displacement == pytest.approx(pair.epsilon / 2 * float((mean - start).square().sum()), rel=1e-3)


def test_the_posterior_is_learnt_for_the_probability_that_is_certified(tmp_path, monkeypatch):
    seen, learn = [], certified_networks.learn_posterior

    def noting(*given, **options):
        seen.append((options["delta"], options["n"], len(options["examples"])))
        return learn(*given, **options)

    monkeypatch.setattr(certified_networks, "learn_posterior", noting)
    pair, single = fit(tmp_path, data=blobs(200), epochs=1).certificates
    right = 0.6 * 0.05 * 6 / math.pi**2 / 2
    assert pair.delta_pac == single.delta_pac == pytest.approx(right)
    assert seen
    assert all(each == (pytest.approx(right), 200, 200) for each in seen)


@pytest.mark.parametrize("held", [2**20, 0])
def test_what_is_learnt_from_is_the_mean_loss_over_all_batches(tmp_path, monkeypatch, held):
    """Loss, mistakes and slope of some samples by hand, where they are read in several batches too."""
    monkeypatch.setattr("lightning_sloppy.certifying.error_counts.CACHE_BYTES", held)
    model, live = Classifier(), PACBayesBound(strict=True)
    trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=16), live], max_epochs=1).fit(model, loader(blobs(70)))
    inputs, targets = (tensor[:50] for tensor in blobs(70).tensors)
    model.eval()
    outputs = model(inputs)
    value = torch.nn.functional.cross_entropy(outputs, targets)
    right = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.net.parameters()))])
    weights = torch.cat([p.detach().flatten() for p in model.net.parameters()])
    loss, wrong, slope = live._training.surrogate(weights, torch.arange(50))
    assert loss == pytest.approx(float(value.detach()), rel=1e-5)
    assert wrong == int((outputs.argmax(1) != targets).sum())
    torch.testing.assert_close(slope, right, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_file_is_certified_behind_all_that_any_of_its_callbacks_has_spent(tmp_path):
    live, first = PACBayesBound(strict=True), FinalCertificate(learning=QUICK, strict=True)
    host = trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=16), live, first], max_epochs=1)
    host.fit(Classifier(), loader(blobs(200)))
    host.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    states = {key: state for key, state in content["callbacks"].items() if "evaluation" in state}
    assert len(states) == 2
    for spent in ((7, 4), (4, 7)):
        for state, number in zip(states.values(), spent, strict=True):
            state["evaluation"] = number
        torch.save(content, tmp_path / "other.ckpt")
        again = certifying_trainer(tmp_path).certify(
            Classifier(), Data(blobs(200)), ckpt_path=str(tmp_path / "other.ckpt"), learning=QUICK
        )
        assert again.certificates[0].evaluation == 8


def test_certificates_of_an_earlier_fit_are_forgotten_when_the_next_one_begins(tmp_path):
    final = fit(tmp_path, data=blobs(100), epochs=1)
    assert final.certificates is not None
    assert final.learnt is not None
    dry = trainer(tmp_path, callbacks=[final], fast_dev_run=2)
    dry.fit(Classifier(), loader(blobs(100)))
    assert final.certificates is None
    assert final.learnt is None
