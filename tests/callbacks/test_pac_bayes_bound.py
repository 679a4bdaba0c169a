"""A valid bound, or the reason why there is none."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lightning.pytorch import Callback
from support.tiny import CLASSES, FEATURES, SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_sloppy import ConfigurationError, FisherSpectrum, HessianSpectrum, PACBayesBound, Schedule, Status
from lightning_sloppy.bounds import kl_inverse, log_xi

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def fit(tmp_path, model=None, data=None, held_out=None, *, bound=None, epochs=2, **options):
    bound = PACBayesBound(strict=True) if bound is None else bound
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=3, num_samples=64), bound], max_epochs=epochs, **options)
    train = data if isinstance(data, DataLoader) else loader(blobs(200) if data is None else data)
    host.fit(Classifier() if model is None else model, train, held_out)
    return bound


@pytest.mark.slow
def test_the_bound_is_what_its_parts_say_and_lies_above_the_truth(tmp_path):
    torch.manual_seed(0)
    model = Classifier()
    bound = fit(tmp_path, model, blobs(2000), epochs=3)
    certificates = [m.certificate for m in bound.measurements]
    assert [c.evaluation for c in certificates] == [1, 2, 3, 4]
    for t, certificate in enumerate(certificates, start=1):
        assert certificate.valid
        assert certificate.n == certificate.risk_samples == 2000
        delta_t = 0.6 * 0.05 * 6 / (math.pi**2 * t**2)
        assert certificate.delta_pac == pytest.approx(delta_t)
        budget = (certificate.log_ratio + log_xi(2000) - math.log(delta_t)) / 2000
        assert certificate.value == pytest.approx(kl_inverse(certificate.empirical_risk, max(budget, 0.0)), abs=1e-12)
    inputs, targets = blobs(4000, seed=5).tensors
    truth = float((model.eval()(inputs).argmax(1) != targets).double().mean())
    assert truth < certificates[-1].value < 1 - 1 / CLASSES
    assert certificates[-1].kl_displacement > 0
    assert any("independent draws" in condition for condition in certificates[-1].conditions)
    assert "do not depend" in certificates[-1].prior
    spent = [m.estimates["delta_spent"].value for m in bound.measurements]
    assert all(a < b < 0.05 for a, b in itertools.pairwise(spent))


@pytest.mark.slow
def test_without_a_hessian_it_follows_the_fisher_matrix(tmp_path):
    torch.manual_seed(0)
    fisher, bound = FisherSpectrum(num_samples=64, strict=True), PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[bound, fisher], max_epochs=3)
    host.fit(Classifier(), loader(blobs(2000)))
    assert [m.step for m in bound.measurements] == [m.step for m in fisher.measurements]
    last = bound.measurements[-1]
    assert last.certificate.valid
    assert last.certificate.rank == 10
    assert 0 < last.certificate.value < 1 - 1 / CLASSES
    assert last.estimates["posterior_dimension"].value >= 0
    assert 0 <= last.estimates["stiff_directions"].value <= 10


@pytest.mark.slow
def test_beside_a_hessian_the_fisher_matrix_makes_no_vectors(tmp_path):
    fisher, bound = FisherSpectrum(num_samples=64, strict=True), PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), fisher, bound], max_epochs=1)
    host.fit(Classifier(), loader(blobs(200)))
    assert fisher.subscribers(host) == []
    assert bound.measurements[-1].certificate.rank == 2


def test_there_must_be_something_to_follow(tmp_path):
    host = trainer(tmp_path, callbacks=[PACBayesBound()], max_epochs=1)
    with pytest.raises(ConfigurationError, match="no HessianSpectrum or FisherSpectrum"):
        host.fit(Classifier(), loader(blobs(200)))


@pytest.mark.slow
def test_at_the_start_nothing_was_moved(tmp_path):
    first = fit(tmp_path).measurements[0].certificate
    assert first.kl_displacement == 0.0
    assert first.value > 0.5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_certificates_and_fresh_draws_each_time(tmp_path):
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        # Weights that stand still: whatever differs between evaluations comes from the draws.
        runs.append([m.certificate for m in fit(tmp_path, Classifier(lr=0.0)).measurements])
    assert runs[0] == runs[1]
    assert len({certificate.empirical_risk for certificate in runs[0]}) > 1


def rare_class(count=500, features=60):
    """Nothing to learn: the posterior is best near the prior, with a mean that is shrunk in flat directions."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, features, generator=rng)
    return TensorDataset(inputs, (torch.rand(count, generator=rng) < 0.07).long())


class Memorising(Classifier):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(60, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        self.accuracy = MulticlassAccuracy(2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


@pytest.mark.slow
def test_a_choice_of_the_posterior_is_remembered_whole(tmp_path):
    torch.manual_seed(0)
    data = DataLoader(rare_class(), 50, shuffle=True)
    bound = fit(tmp_path, Memorising(), data, epochs=11)
    certificates = [m.certificate for m in bound.measurements]
    assert len(certificates) == 12
    shrunk = ["scaled by tau lambda" in " ".join(certificate.remarks) for certificate in certificates]
    assert shrunk == [False] + 11 * [True]  # at the start there is no distance to shrink
    # An evaluation that takes the choice of the one before as it is stays where that was.
    assert max(c.value for c in certificates) < 1.2 * min(c.value for c in certificates)
    assert max(c.log_ratio for c in certificates) < 10
    kept = bound.state_dict()["choice"]
    assert kept["shrink"]
    resumed = PACBayesBound()
    resumed.load_state_dict(bound.state_dict())
    assert resumed.state_dict()["choice"] == kept


def why_there_is_none(bound):
    """The reasons of the last certificate, after checking that no measurement of the run gave a bound."""
    for measurement in bound.measurements:
        assert measurement.status is Status.UNAVAILABLE
        assert not measurement.certificate.valid
        assert math.isnan(measurement.certificate.value)
        assert "pac_bayes" not in measurement.estimates
    return " ".join(bound.measurements[-1].certificate.reasons)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_batch_statistics_forbid_a_bound_but_not_its_parts(tmp_path):
    bound = fit(tmp_path, Classifier(batch_norm=True))
    assert "batch statistics" in why_there_is_none(bound)
    assert math.isfinite(bound.measurements[-1].certificate.log_ratio)
    assert "gibbs_error" in bound.measurements[-1].estimates


class Augmented(Dataset):
    def __init__(self):
        self.inputs, self.targets = blobs(200).tensors

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index] + 0.01 * torch.randn(FEATURES), self.targets[index]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_samples_that_are_read_at_random_forbid_a_bound(tmp_path):
    assert "Two reads" in why_there_is_none(fit(tmp_path, data=Augmented()))


@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_regression_has_no_error_rate(tmp_path):
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(40, 6, generator=rng), torch.randn(40, 2, generator=rng))
    assert "classification" in why_there_is_none(fit(tmp_path, Regressor(), data))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_a_second_fit_needs_the_state(tmp_path):
    model = Classifier()
    bound = fit(tmp_path, model)
    stranger = fit(tmp_path, model)
    assert "trained before this fit" in why_there_is_none(stranger)
    # The same callback knows the initial weights and goes on counting.
    again = fit(tmp_path, model, bound=bound)
    assert [m.certificate.evaluation for m in again.measurements] == [4, 5, 6]
    assert all(m.certificate.valid for m in again.measurements)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_a_resume_without_the_state_has_no_bound(tmp_path):
    model = Classifier()
    host = trainer(tmp_path, max_epochs=1)
    host.fit(model, loader(blobs(200)))
    host.save_checkpoint(tmp_path / "run.ckpt")
    bound = PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=3, num_samples=64), bound], max_epochs=2)
    host.fit(Classifier(), loader(blobs(200)), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert "trained before this fit" in why_there_is_none(bound)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_a_buffer_that_moves_forbids_the_bound(tmp_path):
    class Counting(Classifier):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

        def training_step(self, batch, batch_idx):
            self.total += batch[0].sum()
            return super().training_step(batch, batch_idx)

    bound = fit(tmp_path, Counting())
    assert bound.measurements[0].certificate.valid
    assert any("total" in reason for reason in bound.measurements[-1].certificate.reasons)


@pytest.mark.slow
def test_the_hold_out_bound_stands_beside_it(tmp_path):
    bound = fit(tmp_path, held_out=loader(blobs(300, seed=8), shuffle=False))
    estimates = bound.measurements[-1].estimates
    assert estimates["hold_out_error"].value < estimates["hold_out"].value < 1
    assert estimates["hold_out_samples"].value == 300


@pytest.mark.slow
def test_shared_samples_forbid_the_hold_out_bound(tmp_path):
    data = blobs(200)
    bound = fit(tmp_path, data=Subset(data, range(150)), held_out=loader(Subset(data, range(100, 200)), shuffle=False))
    assert "hold_out" not in bound.measurements[-1].estimates
    assert "50 validation samples are also training samples" in bound.measurements[-1].notes[0]


@pytest.mark.slow
def test_a_schedule_that_reads_validation_forbids_the_hold_out_bound(tmp_path):
    class Reacting(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    bound = fit(tmp_path, Reacting(), held_out=loader(blobs(50, seed=8), shuffle=False))
    assert bound.measurements[-1].certificate.valid
    assert "reacts to a monitored value" in bound.measurements[-1].notes[0]


@pytest.mark.slow
def test_large_data_are_judged_on_a_paid_subsample(tmp_path):
    bound = fit(tmp_path, data=blobs(600), bound=PACBayesBound(risk_samples=100, strict=True))
    certificate = bound.measurements[-1].certificate
    assert certificate.risk_samples == 100
    assert certificate.n == 600
    assert certificate.risk_upper > certificate.empirical_risk
    assert certificate.delta_risk > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_hold_out_bounds_have_a_count_of_their_own(tmp_path):
    bound = fit(tmp_path, Classifier(batch_norm=True), held_out=loader(blobs(300, seed=8), shuffle=False))
    assert not bound.measurements[-1].certificate.valid
    values = [m.estimates["hold_out"].value for m in bound.measurements if "hold_out" in m.estimates]
    assert len(values) == 3
    assert bound.state_dict()["hold_out_evaluation"] == 3
    spent = [m.estimates["delta_spent"].value for m in bound.measurements]
    assert spent == pytest.approx([0.01 * 6 / math.pi**2 * total for total in (1, 1.25, 1.25 + 1 / 9)])


@pytest.mark.slow
def test_equal_samples_in_different_data_sets_are_found(tmp_path):
    bound = fit(tmp_path, data=blobs(200), held_out=loader(blobs(200), shuffle=False))
    assert "200 validation samples are also training samples" in bound.measurements[-1].notes[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_a_fit_that_was_not_watched_is_noticed_by_its_gradients(tmp_path):
    model = Classifier()
    trainer(tmp_path, max_epochs=1).fit(model, loader(blobs(200)))
    bound = fit(tmp_path, model, held_out=loader(blobs(60, seed=8), shuffle=False))
    assert "trained before this fit" in why_there_is_none(bound)
    assert "trained before on unknown samples" in bound.measurements[-1].notes[0]


@pytest.mark.slow
def test_a_resume_on_another_split_loses_the_hold_out_bound(tmp_path):
    first = PACBayesBound(strict=True)
    held_out = loader(blobs(60, seed=8), shuffle=False)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=3, num_samples=64), first], max_epochs=1)
    host.fit(Classifier(), loader(blobs(200)), held_out)
    host.save_checkpoint(tmp_path / "run.ckpt")
    for data, kept in ((blobs(200), True), (blobs(200, seed=9), False)):
        again = PACBayesBound(strict=True)
        host = trainer(tmp_path, callbacks=[HessianSpectrum(k=3, num_samples=64), again], max_epochs=2)
        host.fit(Classifier(), loader(data), held_out, ckpt_path=tmp_path / "run.ckpt", **SAFELY)
        assert ("hold_out" in again.measurements[-1].estimates) == kept
        assert again.measurements[-1].certificate.valid


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")
def test_batch_norm_that_does_not_train_is_allowed(tmp_path):
    class Frozen(Classifier):
        def __init__(self):
            super().__init__(batch_norm=True)
            self.net[1].eval()

        def on_train_epoch_start(self):
            self.net[1].eval()

    bound = fit(tmp_path, Frozen())
    assert all(m.certificate.valid for m in bound.measurements)


@pytest.mark.slow
def test_data_too_large_to_hold_give_the_same_certificates(tmp_path, monkeypatch):
    from lightning_sloppy.certifying import error_counts

    runs = []
    for held in (error_counts.CACHE_BYTES, 0):
        monkeypatch.setattr(error_counts, "CACHE_BYTES", held)
        torch.manual_seed(3)
        runs.append([m.certificate for m in fit(tmp_path, bound=PACBayesBound(risk_samples=100)).measurements])
    assert all(certificate.valid for certificate in runs[0])
    assert runs[0] == runs[1]


def test_the_last_bound_carries_the_epoch_of_the_measurement_that_it_follows(tmp_path):
    fisher, bound = FisherSpectrum(num_samples=64, schedule=Schedule(every_n_steps=7)), PACBayesBound()
    host = trainer(tmp_path, callbacks=[fisher, bound], max_epochs=2)
    host.fit(Classifier(), loader(blobs(80)))  # 5 steps an epoch: the last measurement comes when training has ended
    assert [(m.step, m.epoch) for m in fisher.measurements] == [(0, 0), (6, 1), (9, 1)]
    assert [(m.step, m.epoch) for m in bound.measurements] == [(0, 0), (6, 1), (9, 1)]


class Stopping(Callback):
    """Ends the training between two steps that the schedule has."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.slow
@pytest.mark.parametrize("stop", [8, None])
def test_the_step_at_which_training_is_stopped_has_no_hold_out_bound_of_its_own(tmp_path, stop):
    bound = PACBayesBound(strict=True)
    hessian = HessianSpectrum(k=3, num_samples=64, schedule=Schedule(every_n_steps=5))
    callbacks = [hessian, bound, *([Stopping(stop)] if stop else [])]
    host = trainer(tmp_path, callbacks=callbacks, max_epochs=1, min_epochs=0, num_sanity_val_steps=1)
    host.fit(Classifier(), loader(blobs(200)), loader(blobs(100, seed=8), shuffle=False))
    steps = [m.step for m in bound.measurements]
    values = [m.estimates["hold_out"].value for m in bound.measurements]
    count = bound.state_dict()["hold_out_evaluation"]
    if stop:
        assert steps == [0, 4, 7]
        assert values[2] == values[1] != values[0]
        assert count == 2
        assert "is that of step 4: the training was stopped" in bound.measurements[-1].notes[0]
        assert bound.measurements[-1].certificate.valid
    else:
        # The end that was planned is a step like any other.
        assert steps == [0, 4, 9, 12]
        assert count == 4
        assert values[3] != values[2]


class Restoring(Callback):
    """Writes the weights of the best validation so far."""

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            with torch.no_grad():
                next(pl_module.parameters()).mul_(0.5)


@pytest.mark.slow
def test_weights_that_a_validation_writes_have_no_hold_out_bound(tmp_path):
    bound = PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=3, num_samples=64), bound, Restoring()], max_epochs=3)
    host.fit(Classifier(), loader(blobs(200)), loader(blobs(100, seed=8), shuffle=False))
    assert ["hold_out" in m.estimates for m in bound.measurements] == [True, True, False, False]
    assert "weights were changed during a validation" in bound.measurements[-1].notes[0]
    assert all(m.certificate.valid for m in bound.measurements)
