"""What each evaluation of the live bound looks at, remembers and pays for: exact counts, and parts made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import Classifier, blobs, loader, trainer

from lightning_sloppy import FisherSpectrum, HessianSpectrum, PACBayesBound, Schedule
from lightning_sloppy.callbacks import pac_bayes_bound
from lightning_sloppy.certifying.error_counts import ErrorCounter
from lightning_sloppy.posteriors.posterior_search import Choice

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

SCHEDULE = Schedule(every_n_steps=1)
"""Evaluation 1 is that of the start; the measurement behind the first batch has the same x-value and is none."""


class Looking:
    """Notes every network that is judged."""

    def __init__(self, monkeypatch):
        self.looks, call = [], ErrorCounter.__call__

        def seen(counter, point, indices):
            errors = call(counter, point, indices)
            self.looks.append((point.detach().clone(), len(indices), errors))
            return errors

        monkeypatch.setattr(ErrorCounter, "__call__", seen)


class Steps(Classifier):
    """Keeps its weights before the training and behind every step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.kept = [self.flat()]

    def flat(self):
        return torch.cat([p.detach().flatten().clone() for p in self.net.parameters()])

    def on_before_zero_grad(self, optimizer):
        self.kept.append(self.flat())


def fit(tmp_path, bound, *, epochs, model=None, count=120):
    fisher = FisherSpectrum(num_samples=40, schedule=SCHEDULE, strict=True)
    model = Steps() if model is None else model
    trainer(tmp_path, callbacks=[fisher, bound], max_epochs=epochs).fit(model, loader(blobs(count), batch_size=count))
    return model


@pytest.mark.slow
def test_a_whole_search_comes_at_every_power_of_two_and_every_second_takes_the_choice_as_it_is(tmp_path, monkeypatch):
    looking, bound = Looking(monkeypatch), PACBayesBound(strict=True)
    counts, pilots = [], []
    take = PACBayesBound.take

    def counted(self, *given):
        before = len(looking.looks)
        found = take(self, *given)
        counts.append(len(looking.looks) - before)
        pilots.append(max([size for _, size, _ in looking.looks[before:-2]], default=0))
        return found

    monkeypatch.setattr(PACBayesBound, "take", counted)
    fit(tmp_path, bound, epochs=10)
    looks = dict(enumerate(counts, start=1))
    assert [event.certificate.evaluation for event in bound.measurements] == list(range(1, 11))
    for t in (3, 5, 7, 9):
        assert looks[t] == 2, "the pair alone"
    # Eight networks share the examples of a whole search, four those of one that goes on.
    whole, going_on = math.ceil(120 / 8), math.ceil(120 / 4)
    assert [pilots[t - 1] for t in (2, 4, 8)] == [whole] * 3
    assert [pilots[t - 1] for t in (6, 10)] == [going_on] * 2
    for t in (2, 4, 8):
        assert looks[t] > 8
        assert (looks[t] - 2) % 8 == 0
    for t in (6, 10):
        assert (looks[t] - 2) % 4 == 0


@pytest.mark.slow
def test_a_choice_that_is_taken_as_it_is_is_that_of_the_evaluation_before_in_every_field(tmp_path):
    """All fields away from their defaults, put there between two evaluations."""
    given = Choice(epsilon_index=37, tau_index=5, scale_index=1, shrink=True)

    class Given(PACBayesBound):
        def on_measurement(self, *arguments):
            if self.run_state.evaluation in (2, 6):
                self._choice = given
            super().on_measurement(*arguments)

    bound = Given(strict=True)
    fit(tmp_path, bound, epochs=7)
    for t in (3, 7):
        certificate = bound.measurements[t - 1].certificate
        assert certificate.epsilon == pytest.approx(given.epsilon)
        assert certificate.tau == pytest.approx(given.tau(120))
        assert certificate.mean_scale == given.mean_scale == 0.35
        assert any("scaled by tau lambda" in remark for remark in certificate.remarks)
    assert bound._choice == given
    state = bound.state_dict()
    again = PACBayesBound()
    again.load_state_dict(state)
    assert again._choice == given
    assert (again.run_state.evaluation, again.run_state.value) == (7, bound.run_state.value)
    assert torch.equal(again.run_state.prior_mean, bound.run_state.prior_mean)


def test_the_parts_of_every_bound_by_hand(tmp_path, monkeypatch):
    """The judged pair tells its mean, and that what moving away from the start costs."""
    looking, bound, model = Looking(monkeypatch), PACBayesBound(strict=True), Steps(lr=0.2)
    pairs = []
    take = PACBayesBound.take

    def noting(self, *given):
        found = take(self, *given)
        pairs.append(looking.looks[-2:])
        return found

    monkeypatch.setattr(PACBayesBound, "take", noting)
    fit(tmp_path, bound, epochs=4, model=model)
    start = model.kept[0].double()
    for event, ((first, seen, errors), (second, also_seen, more)) in zip(bound.measurements, pairs, strict=True):
        certificate, estimates = event.certificate, event.estimates
        mean = (first.double() + second.double()) / 2
        moved = 0.5 * certificate.epsilon * float((mean - start).square().sum())
        assert certificate.kl_displacement == pytest.approx(moved, rel=1e-3, abs=1e-6)
        assert (seen, also_seen) == (120, 120)
        rate = (errors + more) / 240
        t = certificate.evaluation
        spent = 0.05 * 0.8 * 6 / math.pi**2 * sum(1 / s**2 for s in range(1, t + 1))
        for name, right in {
            "gibbs_error": rate,
            "risk_upper": rate,
            "pac_bayes": certificate.value,
            "log_ratio": certificate.log_ratio,
            "kl_displacement": certificate.kl_displacement,
            "kl_covariance": certificate.kl_covariance,
            "epsilon": certificate.epsilon,
            "tau": certificate.tau,
            "mean_scale": certificate.mean_scale,
            "posterior_dimension": certificate.effective_dimension,
            "stiff_directions": certificate.stiff_directions,
            "evaluation": t,
            "delta_spent": spent,
        }.items():
            assert estimates[name].value == pytest.approx(right, rel=1e-9), name
        held_out = {"hold_out", "hold_out_error", "hold_out_samples"}
        assert set(estimates) == {quantity.name for quantity in bound.quantities} - held_out
    last = bound.measurements[-1].estimates
    distinct = [last[name].value for name in ("kl_displacement", "kl_covariance", "log_ratio", "tau", "epsilon")]
    assert len({round(value, 6) for value in distinct}) == len(distinct)
    assert last["kl_displacement"].value > 0
    assert last["posterior_dimension"].value != last["stiff_directions"].value


@pytest.mark.slow
def test_a_failed_precondition_spends_no_delta(tmp_path):
    class Counting(Steps):
        """A buffer depends on the data from the third step on."""

        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

        def training_step(self, batch, batch_idx):
            if self.global_step >= 2:
                self.total += batch[0].sum()
            return super().training_step(batch, batch_idx)

    bound = PACBayesBound()
    with pytest.warns(UserWarning, match="No PAC-Bayes bound from step 2 on: Buffers or frozen parameters changed"):
        fit(tmp_path, bound, epochs=5, model=Counting())
    assert [event.certificate.valid for event in bound.measurements] == [True] * 2 + [False] * 3
    assert bound.run_state.evaluation == 2
    assert "delta_spent" not in bound.measurements[-1].estimates


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FisherSpectrum, HessianSpectrum])
def test_a_bound_rests_on_the_measurement_that_it_follows(tmp_path, monkeypatch, kind):
    """On its eigenpairs and its trace, around the weights there, beside the weights at the start."""
    evidence, measured, certify = [], [], pac_bayes_bound.certify

    def noting(given, **options):
        evidence.append((given, model.flat()))
        return certify(given, **options)

    class Listening(PACBayesBound):
        def on_measurement(self, host, module, measurement):
            measured.append(measurement.spectrum)
            super().on_measurement(host, module, measurement)

    monkeypatch.setattr(pac_bayes_bound, "certify", noting)
    model = Steps(lr=0.2)
    callbacks = [kind(num_samples=40, strict=True), Listening(risk_samples=77, strict=True)]
    trainer(tmp_path, callbacks=callbacks, max_epochs=3).fit(model, loader(blobs(120), batch_size=60))
    assert len(evidence) == len(measured) == 4
    for (given, weights), spectrum in zip(evidence, measured, strict=True):
        assert given.trace == spectrum.trace.value > 0
        assert torch.equal(given.eigenvectors, spectrum.eigenvectors)
        assert torch.equal(given.eigenvalues, spectrum.eigenvalues[: given.eigenvectors.shape[1]])
        assert torch.equal(given.prior_mean, model.kept[0])
        assert torch.equal(given.weights, weights)
        assert (given.n, given.risk_samples) == (120, 77)
