"""Each reason for which there is no bound, in a run that must be refused, beside the same run that must not be."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.tiny import SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lightning_sloppy
from lightning_sloppy import FisherSpectrum, PACBayesBound, Schedule
from lightning_sloppy.certificate import Reason

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*"),
]

NEVER = Schedule(every_n_epochs=1000)


def fit(tmp_path, model=None, data=None, held_out=None, *, epochs=1, ckpt_path=None, bound=None, **options):
    bound = PACBayesBound() if bound is None else bound
    callbacks = [FisherSpectrum(num_samples=32, schedule=NEVER), bound]
    host = trainer(tmp_path, callbacks=callbacks, max_epochs=epochs, **options)
    given = {} if ckpt_path is None else {"ckpt_path": ckpt_path, **SAFELY}
    host.fit(Classifier() if model is None else model, loader(blobs(96)) if data is None else data, held_out, **given)
    return bound, host


def flags(bound) -> set[str]:
    certificate = bound.measurements[-1].certificate
    assert certificate.valid == (not certificate.flags)
    assert ("pac_bayes" in bound.measurements[-1].estimates) == certificate.valid
    return set(certificate.flags)


class Augmented(Dataset):
    """Whose reads differ, or not."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.samples, self.noise = blobs(96, seed=seed), noise

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        inputs, target = self.samples[index]
        return inputs + self.noise * torch.randn(inputs.shape), target


class Stream(IterableDataset):
    def __iter__(self):
        return iter(blobs(96))


class Coupled(Classifier):
    """Each sample is judged beside the mean of its batch."""

    def forward(self, inputs):
        return self.net(inputs - inputs.mean(0))


class Thawing(Classifier):
    def __init__(self):
        super().__init__()
        self.net[0].bias.requires_grad_(False)

    def on_train_epoch_start(self):
        self.net[0].bias.requires_grad_(True)


NUMBERS = TensorDataset(torch.randn(48, 6), torch.randn(48, 2))

RUNS = {
    "no_sample": lambda path: fit(path, data=DataLoader(Stream(), 16))[0],
    "loss_not_bounded": lambda path: fit(path, Regressor(), loader(NUMBERS))[0],
    "batch_coupled_prediction": lambda path: fit(path, Coupled())[0],
    "parameters_changed": lambda path: fit(path, Thawing())[0],
    "buffers_depend_on_sample": lambda path: fit(path, Classifier(batch_norm=True))[0],
    "low_precision": lambda path: fit(path, precision="bf16-true")[0],
    "augmentation_in_certification": lambda path: fit(path, data=DataLoader(Augmented(0.01), 16))[0],
    "prior_depends_on_sample": lambda path: trained_before(path),
    "other_architecture": lambda path: of_another_architecture(path),
}
"""Of each flag a run that raises it."""


def trained_before(tmp_path):
    model = Classifier()
    fit(tmp_path, model)
    return fit(tmp_path, model)[0]


def of_another_architecture(tmp_path):
    """A checkpoint whose bound began with other weights."""
    _, host = fit(tmp_path)
    host.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    state = content["callbacks"]["PACBayesBound"]
    state["prior_mean"] = torch.zeros(len(state["prior_mean"]) - 1)
    torch.save(content, tmp_path / "other.ckpt")
    return fit(tmp_path, epochs=2, ckpt_path=tmp_path / "other.ckpt")[0]


@pytest.mark.slow
@pytest.mark.parametrize("flag", RUNS)
def test_a_run_that_must_be_refused_is_refused_for_this_reason_alone(tmp_path, flag):
    torch.manual_seed(0)
    # Such a module also couples the losses of a batch, which every instrument says.
    coupled = pytest.warns(UserWarning, match="not the mean over its samples")
    with coupled if flag == "batch_coupled_prediction" else nullcontext():
        assert flags(RUNS[flag](tmp_path)) == {flag}


def test_every_flag_of_the_package_has_a_run_above():
    """But a posterior that is not finite (test_final_certificate.py) and other samples (test_clean_samples.py)."""
    package = Path(lightning_sloppy.__file__).parent
    found = {flag for path in package.rglob("*.py") for flag in re.findall(r'flag="(\w+)"', path.read_text())}
    assert found - {"not_finite", "other_samples"} == set(RUNS)
    assert [flag for flag in sorted(found) if not Reason("A sentence.", flag=flag).short] == [], "without few words"


@pytest.mark.slow
def test_the_same_without_the_reason_are_not_refused(tmp_path):
    assert flags(fit(tmp_path)[0]) == set()
    assert flags(fit(tmp_path, data=DataLoader(Augmented(0.0), 16))[0]) == set()
    assert flags(fit(tmp_path, precision="bf16-mixed")[0]) == set()
    _, host = fit(tmp_path)
    host.save_checkpoint(tmp_path / "run.ckpt")
    assert flags(fit(tmp_path, epochs=2, ckpt_path=tmp_path / "run.ckpt")[0]) == set()


def held_out(tmp_path, data=None, **options):
    """What the last measurement says of the hold-out bound, and whether there is one."""
    data = loader(blobs(60, seed=8), shuffle=False) if data is None else data
    bound, _ = fit(tmp_path, held_out=data, **options)
    last = bound.measurements[-1]
    assert last.certificate.valid, "the bound of the pair does not rest on them"
    return " ".join(last.notes), "hold_out" in last.estimates


@pytest.mark.parametrize("every", [0, 1, 3])
def test_loaders_that_are_made_anew_have_no_hold_out_bound(tmp_path, every):
    said, there = held_out(tmp_path, reload_dataloaders_every_n_epochs=every)
    assert there is (every == 0)
    assert ("the loaders are created again during the fit, so the split may change" in said) is (every > 0)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_validation_samples_that_are_read_at_random_have_no_hold_out_bound(tmp_path, noise):
    said, there = held_out(tmp_path, DataLoader(Augmented(noise, seed=8), 16))
    assert there is (noise == 0)
    assert ("two reads of one validation sample differ" in said) is (noise > 0)


def test_two_validation_loaders_have_no_hold_out_bound(tmp_path):
    class Two(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    two = [loader(blobs(60, seed=seed), shuffle=False) for seed in (8, 9)]
    said, there = held_out(tmp_path, two, model=Two())
    assert not there
    assert "there are 2 validation loaders" in said


def test_the_hold_out_bound_counts_the_errors_of_the_model_itself(tmp_path):
    samples = blobs(60, seed=8)
    model = Classifier()
    bound, _ = fit(tmp_path, model, held_out=loader(samples, shuffle=False), epochs=2)
    wrong = (model.eval()(samples.tensors[0]).argmax(1) != samples.tensors[1]).double().mean()
    assert bound.measurements[-1].estimates["hold_out_error"].value == pytest.approx(float(wrong))


def test_weights_that_are_no_numbers_get_everything_wrong(tmp_path):
    """The live counter, fed with NaN, has no sample right."""
    bound, host = fit(tmp_path, bound=PACBayesBound(strict=True))
    counter = bound._training
    weights = torch.cat([p.detach().flatten() for p in host.lightning_module.net.parameters()])
    right = counter(weights, torch.arange(96))
    assert 0 <= right < 96
    assert counter(weights * torch.nan, torch.arange(96)) == 96
    assert counter(weights * torch.nan, torch.arange(10)) == 10
