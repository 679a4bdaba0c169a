"""Every configuration in configs/ is what it says: it parses, prints, fits, and the early stop fires."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sloppy import Certificate, compress
from lightning_sloppy.cli import main
from lightning_sloppy.demo import MLPClassifier

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
ONE_STEP = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-sloppy"])


def write_images(folder: Path, *, packed: bool) -> None:
    """Four IDX files with 144 and 12 images of 28 x 28 pixels, random, with all ten labels."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in {"train": 144, "t10k": 12}.items():
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values in {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}.items():
            content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def write_compressed(path: Path) -> None:
    """A compressed checkpoint of the network of the digits, with random weights."""
    done = compress(MLPClassifier([64, 48, 32, 10]), [torch.rand(50, 64)], size=0.5)
    callbacks = {"LowRank": {"structure": dict(done.structure)}}
    torch.save({"state_dict": done.module.state_dict(), "callbacks": callbacks}, path)


def curves(folder: Path) -> EventAccumulator:
    (run,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    return EventAccumulator(str(run)).Reload()


def named(name: str) -> str:
    (path,) = [path for path in CONFIGS if path.stem == name]
    return str(path)


def test_the_promised_configurations_are_there():
    promised = {"digits", "early_stopping", "fine_tune", "minimal", "mnist_certified", "mnist_fc", "mnist_split"}
    promised |= {"validation_errors"}
    assert promised <= {path.stem for path in CONFIGS}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_printed_configuration_is_complete_and_prints_the_same_again(config, tmp_path, capsys):
    texts = []
    for source in (config, tmp_path / "printed.yaml"):
        with pytest.raises(SystemExit):
            main(["fit", f"--config={source}", "--print_config"])
        texts.append(capsys.readouterr().out)
        (tmp_path / "printed.yaml").write_text(texts[-1])
    assert texts[0] == texts[1]
    assert isinstance(yaml.safe_load(texts[0])["seed_everything"], int)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if not path.stem.startswith("mnist")], ids=lambda path: path.stem
)
def test_fits_for_a_step(config, tmp_path):
    if config.stem == "fine_tune":
        write_compressed(tmp_path / "small.ckpt")
    main(["fit", f"--config={config}", *ONE_STEP])
    tags = curves(tmp_path).Tags()["scalars"]
    assert any(tag.startswith("sloppy_jacobian/") for tag in tags)
    assert any(tag.startswith("sloppy_validation/") for tag in tags) == (config.stem == "validation_errors")


@pytest.mark.slow
def test_mnist_fits_for_a_step_on_the_default_folder(tmp_path):
    write_images(tmp_path / "data/MNIST/raw", packed=True)
    main(["fit", f"--config={named('mnist_fc')}", *ONE_STEP])
    tags = curves(tmp_path).Tags()["scalars"]
    for group in ("hessian", "fisher", "bound"):
        assert any(tag.startswith(f"sloppy_{group}/") for tag in tags)


@pytest.mark.slow
def test_a_bound_is_watched_and_certified_at_the_end(tmp_path):
    write_images(tmp_path / "data/MNIST/raw", packed=True)
    quick = ["--model.widths=[784,20,2]", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    learning = "--trainer.callbacks.learning={seconds: 60, epochs: 2}"
    main(["fit", f"--config={named('mnist_certified')}", "--trainer.enable_progress_bar=false", *quick, learning])
    events = curves(tmp_path)
    assert len(events.Scalars("sloppy_bound/pac_bayes")) == 3
    assert len(events.Scalars("sloppy_final/guaranteed_error")) == 1  # the certificate, as a metric of the run
    (path,) = (tmp_path / "runs").rglob("certificate.json")
    certificate = Certificate.load(path)
    assert certificate.valid
    assert certificate.evaluation == 4


@pytest.mark.slow
def test_mnist_is_certified_and_its_checkpoint_again(tmp_path, capsys):
    write_images(tmp_path / "data/MNIST/raw", packed=True)
    quick = ["--model.widths=[784,20,10]", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    config = f"--config={named('mnist_split')}"
    learning = "--trainer.callbacks.learning={seconds: 60, epochs: 2}"
    main(["fit", config, *quick, "--trainer.max_epochs=2", learning])
    (folder,) = (tmp_path / "runs").rglob("certificate")
    first = Certificate.load(folder / "certificate.json")
    assert first.valid
    assert (first.n, first.n_prior) == (66, 66)
    (checkpoint,) = (tmp_path / "runs").rglob("epoch*.ckpt")
    again = [f"--ckpt_path={checkpoint}", "--prior=split", "--learning.epochs=2", "--folder=again"]
    (saved,) = (tmp_path / "runs").rglob("config.yaml")
    main(["certify", f"--config={saved}", "--trainer.logger=false", *again])
    second = Certificate.load(tmp_path / "again" / "certificate.json")
    assert second.valid
    assert second.prior_hash == first.prior_hash
    assert second.evaluation == first.evaluation == 1


@pytest.mark.slow
def test_mnist_fits_for_a_step_on_two_classes_of_another_folder(tmp_path):
    write_images(tmp_path / "elsewhere", packed=False)
    other = ["--data.folder=elsewhere", "--data.binary=true", "--model.widths=[784,20,2]"]
    main(["fit", f"--config={named('mnist_fc')}", *other, *ONE_STEP])
    assert "sloppy_bound/pac_bayes" in curves(tmp_path).Tags()["scalars"]


@pytest.mark.slow
def test_early_stopping_fires_when_the_validation_loss_no_longer_improves(tmp_path):
    main(["fit", f"--config={named('early_stopping')}", "--trainer.enable_progress_bar=false"])
    events = curves(tmp_path)
    epochs = [int(event.value) for event in events.Scalars("epoch")]
    losses = [event.value for event in events.Scalars("val_loss")]
    dimension = [event.value for event in events.Scalars("sloppy_jacobian/effective_dimension")][-6:]
    assert max(epochs) < 59
    waited = len(losses) - 1 - int(np.argmin(losses))
    settled = (max(dimension) - min(dimension)) / np.mean(dimension) <= 0.05
    assert waited == (10 if not settled else waited)
    assert 5 <= waited <= 10
