"""docs/write_an_instrument.md works as it stands: its examples are files outside the package."""

from __future__ import annotations

import csv
import importlib
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.tiny import Classifier, blobs, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lightning_sloppy
from lightning_sloppy.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "write_an_instrument.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: ([\w.]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


@pytest.fixture
def noise_scale(tmp_path, monkeypatch):
    """The example as a module in a folder of its own."""
    (tmp_path / "noise_scale.py").write_text(EXAMPLES["noise_scale.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield importlib.import_module("noise_scale")
    del sys.modules["noise_scale"]


def by_hand(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """tr(Sigma) / |G|^2 and |g| from the gradient of each sample, in float64."""
    module = module.double().eval()
    rows = []
    for x, y in zip(inputs.double(), targets, strict=True):
        loss = nn.functional.cross_entropy(module(x[None]), y[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    gradients, n = torch.stack(rows), len(rows)
    variance = float(gradients.var(dim=0, correction=1).sum())
    mean = gradients.mean(0)
    return variance / (float(mean @ mean) - variance / n), float(mean.norm())


def test_the_noise_scale_is_right_and_appears_everywhere(tmp_path, noise_scale, caplog):
    seed_everything(0, verbose=False)
    instrument = noise_scale.GradientNoiseScale(num_samples=64, strict=True)
    board, table = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    module, data = Classifier(), blobs(64)
    with caplog.at_level(logging.INFO):
        host = trainer(tmp_path, callbacks=[instrument], logger=[board, table], max_epochs=2)
        host.fit(module, loader(data))
    scale, norm = by_hand(module, *data.tensors)
    found = instrument.latest.estimates
    assert found["noise_scale"].value == pytest.approx(scale, rel=1e-3)
    assert found["gradient_norm"].value == pytest.approx(norm, rel=1e-3)
    tag = "sloppy_gradient_noise_scale/noise_scale"
    read = EventAccumulator(board.log_dir, size_guidance={"scalars": 0}).Reload()
    assert read.Scalars(tag)[-1].value == pytest.approx(scale, rel=1e-3)
    assert read.Scalars("sloppy_cost/seconds_gradient_noise_scale")
    assert float(host.callback_metrics[tag]) == pytest.approx(scale, rel=1e-3)
    with open(table.experiment.metrics_file_path) as file:
        values = [float(row[tag]) for row in csv.DictReader(file) if row[tag]]
    assert values[-1] == pytest.approx(scale, rel=1e-3)
    said = " ".join(" ".join(record.getMessage() for record in caplog.records).split())
    assert re.search(
        r"Gradient noise scale Step \d+, in the 2nd epoch. N = 64 probe samples. Noise scale [\d.]+ samples.", said
    )


def test_the_noise_scale_needs_25_lines():
    code = [line for line in EXAMPLES["noise_scale.py"].splitlines() if line.strip() and '"""' not in line]
    assert len(code) <= 25


@pytest.mark.slow
@pytest.mark.parametrize("example", ["use", "monitor", "arguments"])
def test_the_other_examples_run_as_they_stand(tmp_path, noise_scale, example, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(lightning_sloppy, name) for name in dir(lightning_sloppy)}
    names |= {"torch": torch, "Trainer": Trainer, "GradientNoiseScale": noise_scale.GradientNoiseScale}
    exec(EXAMPLES[example], names)
    callback = names.get("monitor") or names.get("Sparsity")
    callbacks = names["trainer"].callbacks if example == "use" else [callback() if example == "arguments" else callback]
    ours = [each for each in callbacks if isinstance(each, lightning_sloppy.callbacks.base.SloppyCallback)]
    host = trainer(tmp_path, callbacks=ours, max_epochs=2)
    host.fit(Classifier(), loader())
    group = "sparsity/near_zero" if example == "arguments" else "gradient_noise_scale/gradient_norm"
    assert float(host.callback_metrics[f"sloppy_{group}"]) >= 0


@pytest.mark.slow
def test_the_configuration_works_from_the_command_line_in_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "noise_scale.py").write_text(EXAMPLES["noise_scale.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "noise_scale", raising=False)
    monkeypatch.setattr(sys, "argv", ["lightning-sloppy"])
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    config = yaml.safe_load(shown)
    config["trainer"] |= {"max_steps": 1, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=run.yaml"])
    del sys.modules["noise_scale"]
    (run,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert "sloppy_gradient_noise_scale/noise_scale" in tags
    assert "sloppy_hessian/largest" in tags


def test_the_attributes_and_members_that_the_page_names_exist():
    for name in ("quantities", "default_name", "title", "costs", "cost_advice"):
        assert f"`{name}`" in PAGE
        assert hasattr(lightning_sloppy.Instrument, name)
    for name in ("cost_in_gradients", "differences", "paragraphs", "settings", "measurement"):
        assert name in PAGE
        assert callable(getattr(lightning_sloppy.Instrument, name))
    members = re.findall(
        r"^\| `(\w+)(?:\([a-z]*\))?` \|", PAGE[PAGE.index("Member of `probe`") :].split("\n\n")[0], re.MULTILINE
    )
    assert len(members) == 9
    for name in members:
        assert hasattr(lightning_sloppy.Probe, name) or name in lightning_sloppy.Probe.__annotations__, name
