"""The command as it is installed: started from a folder, with modules in that folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NET = """
import torch
from lightning.pytorch import LightningModule
from lightning_sloppy.demo import MLPClassifier


class Net(MLPClassifier):
    def __init__(self, width: int = 8):
        if width < 1:
            raise ValueError("width must be positive")
        super().__init__((64, width, 10))


class Faulty(Net):
    def training_step(self, batch, batch_idx):
        return self(batch[0][:, :3]).sum()
"""

SHORT = [
    "--data=DigitsDataModule",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=0",
]


@pytest.fixture
def console(tmp_path):
    """Runs the command in a folder with a module, as the script that an installation makes."""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    script = scripts / "lightning-sloppy"
    script.write_text("import sys\nfrom lightning_sloppy.cli import main\nsys.exit(main())\n")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "net.py").write_text(NET)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)

    run.folder = folder
    return run


@pytest.mark.slow
def test_a_module_in_the_working_folder_is_trained_and_its_checkpoint_measured(console) -> None:
    folder: Path = console.folder
    arguments = ["--model=net.Net", "--model.width=6", *SHORT]
    done = console("fit", *arguments, "--trainer.callbacks=JacobianSpectrum", "--json=fit.json")
    assert done.returncode == 0, done.stderr
    fit = json.loads((folder / "fit.json").read_text())
    assert fit["command"] == "fit"
    assert fit["steps"] == 2
    assert fit["metrics"]["sloppy_jacobian/num_parameters"] == 64 * 6 + 6 + 60 + 10
    assert (folder / fit["checkpoint"]).is_file()

    saved = Path(fit["folder"]) / "config.yaml"
    done = console("spectrum", "--config", saved, "--ckpt_path", fit["checkpoint"], "--json=now.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith("Network: effective dimension ")
    now = json.loads((folder / "now.json").read_text())
    measured = now["spectra"]["jacobian"]["estimates"]["effective_dimension"]["value"]
    assert measured == pytest.approx(fit["metrics"]["sloppy_jacobian/effective_dimension"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--model=net.Net", *SHORT, "--trainer.max_epoch=3"], "Did you mean --trainer.max_epochs?"),
        (["fit", "--model=net.Net", *SHORT, "--model.width=0"], "width must be positive (net.py, line 10)"),
        (["fitt"], "Did you mean fit?"),
    ],
)
def test_a_mistake_is_at_most_five_lines_with_exit_code_2(console, arguments, words) -> None:
    done = console(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    lines = done.stderr.strip().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start <= 5
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_fault_of_the_users_code_keeps_its_traceback_and_a_mistake_has_one_on_request(console) -> None:
    done = console("fit", "--model=net.Faulty", *SHORT)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert 'net.py", line 16, in training_step' in done.stderr
    done = console("fit", "--model=net.Net", *SHORT, "--model.widht=3", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
