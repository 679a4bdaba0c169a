"""``lightning-sloppy spectrum``: what a fit would have measured at these weights, without a step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_cli import TINY, complaint, exit_code

from lightning_sloppy.demo import DigitsDataModule

DOCS = Path(__file__).parents[2] / "docs" / "command_line.md"

MODULES = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, IterableDataset
from lightning_sloppy.demo import MLPClassifier


class Penalised(MLPClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.1 * sum(p.square().sum() for p in self.parameters())


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(64):
            yield torch.randn(64), 1


class Streamed(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=16)


class Wide(MLPClassifier):
    def __init__(self, widths=(64, 9, 10)):
        super().__init__((64, 9, 10))


class WithoutStep(MLPClassifier):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("no step is expected here")
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a run with a monitor, its result as JSON, and its checkpoint."""
    folder = tmp_path_factory.mktemp("fitted")
    arguments = ["fit", *TINY, "--trainer.callbacks=SloppyMonitor", f"--trainer.default_root_dir={folder}"]
    assert exit_code([*arguments, "--json", folder / "fit.json"]) == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    return folder, json.loads((folder / "fit.json").read_text()), checkpoint


@pytest.fixture(autouse=True)
def _alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spectrum_modules.py").write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sloppy"])
    yield
    sys.modules.pop("spectrum_modules", None)


def measured(tmp_path, *arguments) -> dict:
    assert exit_code(["spectrum", *TINY, *arguments, "--json=found.json"]) == 0
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.slow
def test_the_numbers_are_those_that_the_fit_measured_at_its_end(fitted, tmp_path, capsys) -> None:
    _, fit, checkpoint = fitted
    before = checkpoint.read_bytes()
    found = measured(tmp_path, "--trainer.callbacks=SloppyMonitor", f"--ckpt_path={checkpoint}")
    compared = 0
    for group, spectrum in found["spectra"].items():
        for name, estimate in spectrum["estimates"].items():
            logged = fit["metrics"].get(f"sloppy_{group}/{name}")
            if logged is not None:
                assert estimate["value"] == pytest.approx(logged, rel=1e-4, abs=1e-6), (group, name)
                compared += 1
    assert compared > 40
    assert {"jacobian", "hessian", "fisher", "input"} == set(found["spectra"])
    assert "effective_dimension_at_prior" in found["spectra"]["hessian"]["estimates"]  # the scale is in the checkpoint
    assert found["loss"]["checked"] is True
    assert checkpoint.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"found.json", "spectrum_modules.py"}

    documented = DOCS.read_text()
    entry = found["spectra"]["hessian"]
    keys = {*fit, *found, *found["loss"], *entry, *entry["estimates"]["trace"], *entry["eigenvalues"]["hessian"]}
    assert not {key for key in keys if f"`{key}`" not in documented}

    page = capsys.readouterr().out
    dimension = found["spectra"]["jacobian"]["estimates"]["effective_dimension"]["value"]
    assert page.lstrip().startswith(f"Network: effective dimension {dimension:.4g} of 610 parameters")
    assert "Data: effective dimension" in page
    for words in ("Hessian", "Fisher matrix", "1,438 training samples", "it is the loss that training_step returns",
                  "Left out:", "Overhead"):  # fmt: skip
        assert words in " ".join(page.split())


@pytest.mark.slow
def test_inputs_and_fisher_matrix_agree_with_dense_references(fitted, tmp_path) -> None:
    _, _, checkpoint = fitted
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    settings = ["--trainer.callbacks+=InputSpectrum", "--trainer.callbacks+=FisherSpectrum"]
    found = measured(tmp_path, *settings, "--trainer.callbacks.num_samples=1438", f"--ckpt_path={checkpoint}")
    data = DigitsDataModule()
    data.prepare_data()
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    inputs = torch.stack([dataset[index][0].flatten() for index in range(len(dataset))]).double()
    labels = torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])
    varying = inputs[:, inputs.std(0) > 0]
    expected = np.sort(np.linalg.eigvalsh(np.corrcoef(varying.numpy(), rowvar=False)))[::-1]
    seen = found["spectra"]["input"]["eigenvalues"]["correlation"]["values"]
    assert seen == pytest.approx(expected, abs=1e-6)

    # Every sample's gradient by the chain rule of a perceptron with one hidden layer, in float64.
    one, bias, two, last = (state[f"network.{name}"].double() for name in ("1.weight", "1.bias", "3.weight", "3.bias"))
    hidden = (inputs @ one.T + bias).relu()
    error = (hidden @ two.T + last).softmax(1) - torch.nn.functional.one_hot(labels, 10)
    back = (error @ two) * (hidden > 0)
    parts = (back[:, :, None] * inputs[:, None, :], back, error[:, :, None] * hidden[:, None, :], error)
    gradients = torch.cat([part.flatten(1) for part in parts], 1)
    expected = torch.linalg.eigvalsh(gradients.T @ gradients / len(gradients)).flip(0)
    seen = found["spectra"]["fisher"]["eigenvalues"]["fisher_empirical"]["values"]
    assert seen[:50] == pytest.approx(expected[:50].tolist(), rel=1e-3)
    assert set(found["spectra"]) == {"input", "fisher"}


@pytest.mark.slow
def test_without_callbacks_a_monitor_measures_and_the_unknown_scale_is_left_out(tmp_path, capsys) -> None:
    assert exit_code(["fit", *TINY, "--trainer.logger=false", "--trainer.default_root_dir=plain"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    found = measured(tmp_path, f"--ckpt_path={checkpoint}")
    assert set(found["spectra"]) == {"jacobian", "input", "hessian", "fisher"}
    for name in ("effective_dimension_at_prior", "z", "eigenvalue_count", "sharpness", "displacement_fraction"):
        assert name not in found["spectra"]["hessian"]["estimates"]
    assert any("scale of the prior" in sentence for sentence in found["left_out"])
    assert "PAC-Bayes" in " ".join(found["left_out"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:On one batch the module's loss_fn gives")
def test_a_step_that_minimises_more_than_the_loss_is_noticed(fitted, tmp_path, capsys) -> None:
    _, _, checkpoint = fitted
    arguments = ["--model=spectrum_modules.Penalised", "--trainer.callbacks=HessianSpectrum"]
    found = measured(tmp_path, *arguments, f"--ckpt_path={checkpoint}")
    assert "training_step" in found["loss"]["source"]
    plain = measured(tmp_path, "--trainer.callbacks=HessianSpectrum", f"--ckpt_path={checkpoint}")
    penalty = found["loss"]["value"] - plain["loss"]["value"]
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    size = sum(float(value.double().square().sum()) for name, value in weights.items() if name.startswith("network"))
    assert penalty == pytest.approx(0.1 * size, rel=1e-3)
    largest = [each["spectra"]["hessian"]["estimates"]["largest"]["value"] for each in (found, plain)]
    assert largest[0] - largest[1] == pytest.approx(0.2, rel=1e-2)  # the penalty adds 0.2 to every eigenvalue


@pytest.mark.slow
def test_weights_that_are_not_finite_are_a_failure_with_its_reason(fitted, tmp_path, capsys) -> None:
    _, _, checkpoint = fitted
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["network.1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.ckpt")
    arguments = ["--trainer.callbacks=FisherSpectrum", "--ckpt_path=nan.ckpt", "--json=found.json"]
    with pytest.warns(UserWarning, match="."):
        assert exit_code(["spectrum", *TINY, *arguments]) == 1
    assert "missing" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["spectra"]["fisher"]["status"] in ("NON_FINITE", "FAILED")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ckpt_path=nowhere.ckpt"], "There is no checkpoint nowhere.ckpt"),
        ([], "pass --ckpt_path"),
        (["--ckpt_path=spectrum_modules.py"], "checkpoint cannot be read"),
        (["--ckpt_path={checkpoint}", "--model=spectrum_modules.Wide"], "another model than the configured Wide"),
        (["--ckpt_path={checkpoint}", "--data=spectrum_modules.Streamed"], "iterable data set"),
        (["--ckpt_path={checkpoint}", "--trainer.callbacks=HessianSpectrum", "--trainer.callbacks.k=0"], "k >= 1"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_few_lines(fitted, capsys, arguments, words) -> None:
    given = [argument.format(checkpoint=fitted[2]) for argument in arguments]
    assert words in " ".join(complaint(capsys, "spectrum", *TINY, *given))


def test_no_step_is_taken_and_no_file_is_written(fitted, tmp_path) -> None:
    _, _, checkpoint = fitted
    found = measured(tmp_path, "--trainer.callbacks=JacobianSpectrum", f"--ckpt_path={checkpoint}",
                     "--model=spectrum_modules.WithoutStep")  # fmt: skip
    assert set(found["spectra"]) == {"jacobian"}
    assert found["loss"]["source"] == ""  # the Jacobian needs none
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"found.json", "spectrum_modules.py"}


def test_hyperparameters_of_the_checkpoint_are_used_and_named(fitted, tmp_path, caplog) -> None:
    _, _, checkpoint = fitted
    found = measured(tmp_path, "--trainer.callbacks=InputSpectrum", "--model.widths=[64,9,10]",
                     f"--ckpt_path={checkpoint}")  # fmt: skip
    assert found["num_parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert "widths = [64, 8, 10] instead of [64, 9, 10]" in caplog.text
