"""Mistakes against the real parser: the releases differ in their words, the lines of this package do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.small_cli import TINY, complaint, exit_code

NET = """
from lightning.pytorch import LightningModule


class Net(LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()


class Needy(LightningModule):
    def __init__(self, depth: int):
        super().__init__()
"""

DIGITS = (Path(__file__).parents[2] / "configs" / "digits.yaml").read_text()


@pytest.fixture(autouse=True)
def _alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sloppy"])
    (tmp_path / "digits.yaml").write_text(DIGITS)
    (tmp_path / "net_in_folder.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("net_in_folder", None)


@pytest.mark.parametrize(
    "option", ["--trainer.max_epoch", "--trainer.max_epoch=3", "--max_epochs", "--trainr.max_epochs"]
)
def test_an_abbreviated_or_misspelt_option_is_refused(capsys, option) -> None:
    said = complaint(capsys, "fit", "--config=digits.yaml", option, "3")
    assert said[1] == "Did you mean --trainer.max_epochs?"


@pytest.mark.parametrize(
    ("old", "new", "cause", "suggestion"),
    [
        ("max_epochs", "max_epoch", "There is no key max_epoch under trainer in run.yaml.", "max_epochs"),
        ("trainer:", "trainr:", "There is no key trainr in run.yaml.", "trainer"),
        ("seed_everything", "seed_everythin", "There is no key seed_everythin in run.yaml.", "seed_everything"),
        ("widths", "widht", "MLPClassifier has no argument widht (--model.widht).", "widths"),
        ("val_fraction", "val_fractoin", "DigitsDataModule has no argument val_fractoin (--data.val_fractoin).",
         "val_fraction"),
        ("save_dir", "savedir", "TensorBoardLogger has no argument savedir (--trainer.logger.savedir).", "save_dir"),
        ("MLPClassifier", "MLPClasifier", "There is no class MLPClasifier for --model.", "MLPClassifier"),
        ("SloppyMonitor", "SlopyMonitor", "There is no class SlopyMonitor for --trainer.callbacks.", "SloppyMonitor"),
        ("class_path: MLP", "class_pth: MLP", "--model needs a LightningModule", "class_path"),
        ("max_epochs: 15", "max_epochs: many", "takes a whole number or null, but got many.", None),
        ("lr: 2.0e-3", "lr: fast", "--model.lr takes a number, but got fast.", None),
        ("accelerator: cpu", "accelerator: cpuu", "invalid accelerator name", None),
        ("model:", "model: [", "run.yaml is not valid YAML", None),
    ],
)  # fmt: skip
def test_a_mistake_in_a_configuration(tmp_path, capsys, old, new, cause, suggestion) -> None:
    assert old in DIGITS
    (tmp_path / "run.yaml").write_text(DIGITS.replace(old, new))
    said = complaint(capsys, "fit", "--config=run.yaml")
    assert cause in said[0]
    assert (f"Did you mean {suggestion}?" in said) == (suggestion is not None)


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"hello there\n", "run.yaml holds no options"), (b"- 1\n- 2\n", "run.yaml holds no options"), (b"", "no options"),
     (bytes(range(256)), "no text in UTF-8")],
)  # fmt: skip
def test_a_file_that_is_no_configuration(tmp_path, capsys, content, cause) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert cause in complaint(capsys, "fit", "--config=run.yaml")[0]


@pytest.mark.parametrize(
    ("arguments", "cause", "suggestion"),
    [
        (["fit"], "An option is missing: --model.", None),
        (["fit", "digits.yaml"], "digits.yaml stands without an option.", "--config digits.yaml"),
        (["fit", "--config=digit.yaml"], "There is no file digit.yaml.", "digits.yaml"),
        (["fit", "--config=."], "is a folder, but a file is needed.", None),
        (["fit", "--config=digits.yaml", "--trainer.max_epochs"], "--trainer.max_epochs needs a value.", None),
        (["fit", "--model.width=3"], "no model is named", None),
        (["fit", "--config=digits.yaml", "--trainer.callbacks=SloppyMonitor", "--trainer.callbacks.hessian.kk=2"],
         "HessianSpectrum has no argument kk (--trainer.callbacks.hessian.kk).", "k"),
        (["certify", "--config=digits.yaml"], "No checkpoint is named; pass --ckpt_path", None),
        (["certify", "--config=digits.yaml", "--ckpt_path=digits.yaml"], "The checkpoint cannot be read", None),
        (["certify", "--config=digits.yaml", "--learning.second=3"], "There is no option", "--learning.seconds"),
        (["fit", "--config=digits.yaml", "--ckpt_path=none.ckpt"], "There is no checkpoint none.ckpt", None),
        (["fit", "--model=net_in_folder.Nett"], "The module net_in_folder has no Nett", "net_in_folder.Net"),
        (["fit", "--model=net_in_foldr.Net"], "There is no module net_in_foldr", "net_in_folder.Net"),
        (["fit", "--model=net_in_folder.Net", "--model.widht=3"], "Net has no argument widht", "width"),
        (["fit", "--model=net_in_folder.Needy"], "Needy needs depth; give --model.depth VALUE.", None),
        (["fit", "--config=digits.yaml", "--trainer.callbacks=SloppyMonitor",
          "--trainer.callbacks.hessian=HesianSpectrum"], "There is no class HesianSpectrum", "HessianSpectrum"),
        (["fit", "--config=digits.yaml", "--trainer.callbacks=SloppyMonitor", "--trainer.callbacks.loss_fn",
          "torch.nn.functional.cross_entrop"], "has no cross_entrop", "torch.nn.functional.cross_entropy"),
        (["inspect", "nowhere.csv"], "There is no file nowhere.csv", None),
        (["--config=digits.yaml"], "The first argument is a verb", None),
        (["certfy"], "There is no verb certfy.", "certify"),
        (["fit", "--json"], "--json needs the name of a file", None),
        (["fit", "--json=no/where.json"], "cannot be written", None),
        (["predict", "--json=numbers.json"], "no numbers for --json", None),
        (["inspect", "--tresh=3", "x.csv"], "There is no option --tresh.", "--threshold"),
        (["inspect", "--data=DigitsDatModule"], "There is no class DigitsDatModule for --data.", "DigitsDataModule"),
        (["inspect", "--data=DigitsDataModule", "--data.batchsize=3"], "DigitsDataModule has no argument batchsize",
         "batch_size"),
    ],
)  # fmt: skip
def test_a_mistake_among_the_arguments(capsys, arguments, cause, suggestion) -> None:
    said = complaint(capsys, *arguments)
    assert cause in said[0]
    assert (f"Did you mean {suggestion}?" in said) == (suggestion is not None)


def test_with_debug_the_error_itself_is_raised() -> None:
    with pytest.raises(Exception, match="widht"):
        exit_code(["fit", "--config=digits.yaml", "--model.widht=3", "--debug"])
    with pytest.raises(ValueError, match="accelerator"):
        exit_code(["--debug", "fit", "--config=digits.yaml", "--trainer.accelerator=cpuu"])


def test_a_configuration_above_the_verb_still_works(tmp_path, capsys) -> None:
    (tmp_path / "all.yaml").write_text("fit:\n  seed_everything: 7\n")
    assert exit_code(["--config=all.yaml", "fit", *TINY, "--print_config"]) == 0
    assert "seed_everything: 7" in capsys.readouterr().out


@pytest.mark.slow
def test_validate_writes_its_metrics_as_json(tmp_path) -> None:
    options = [option for option in TINY if "limit_val" not in option]
    assert exit_code(["validate", *options, "--trainer.logger=false", "--json=numbers.json"]) == 0
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["command"] == "validate"
    assert set(found["metrics"]) >= {"val_loss"}
    assert found["folder"] is None
