"""``lightning-sloppy compress``, and what can be done with the checkpoint that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from support.small_cli import complaint, exit_code

from lightning_sloppy import ConfigurationError, FisherSpectrum, LowRank, PACBayesBound, compress, restructured
from lightning_sloppy.callbacks import CompressingTrainer
from lightning_sloppy.callbacks.monitored import chosen_metric, direction_of
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier

DIGITS = [
    "--model=MLPClassifier",
    "--model.widths=[64,48,32,10]",
    "--data=DigitsDataModule",
    "--data.batch_size=64",
    "--trainer.log_every_n_steps=5",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
CONFIG = Path(__file__).parents[2] / "configs" / "fine_tune.yaml"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    code = exit_code(["fit", *DIGITS, "--trainer.max_epochs=4", f"--trainer.default_root_dir={folder}"])
    assert code == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    return checkpoint


@pytest.fixture(autouse=True)
def _alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sloppy"])


def loaded(path: Path | str) -> MLPClassifier:
    state = torch.load(path, weights_only=True)
    module = MLPClassifier([64, 48, 32, 10])
    restructured(module, state["callbacks"]["LowRank"]["structure"])
    module.load_state_dict(state["state_dict"])
    return module


def quiet_trainer(callbacks: list) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


def accuracy(module: MLPClassifier) -> float:
    data = DigitsDataModule()
    data.setup("validate")
    inputs, targets = data.val_set.tensors
    with torch.no_grad():
        return float((module(inputs).argmax(1) == targets).double().mean())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the resumed run, which has a folder of its own
def test_the_smallest_size_within_a_drop_is_written_and_goes_on_in_every_verb(fitted, tmp_path, capsys) -> None:
    before = fitted.read_bytes()
    code = exit_code(
        ["compress", *DIGITS, "--ckpt_path", fitted, "--max_drop=.02", "--out=small.ckpt", "--json=found.json"]
    )
    page = capsys.readouterr()
    assert code == 0
    assert fitted.read_bytes() == before
    found = json.loads((tmp_path / "found.json").read_text())
    small = loaded("small.ckpt")
    assert found["size_after"] == sum(p.numel() for p in small.parameters()) < found["size_before"] == 5018
    metric = found["metric"]
    assert metric["name"] == "val_accuracy"
    assert metric["before"] - 0.02 - 1e-6 <= metric["after"] == pytest.approx(accuracy(small), abs=1e-6)
    assert page.out.lstrip().startswith(f"Size: {100 * found['fraction']:.3g} %")
    assert f"val_accuracy {metric['before']:.4g} -> " in page.out
    assert "No test samples" in page.out
    assert "% of the size: val_accuracy" in page.err  # progress

    assert exit_code(["validate", *DIGITS, "--ckpt_path=small.ckpt", "--trainer.logger=false", "--json=v.json"]) == 0
    assert json.loads((tmp_path / "v.json").read_text())["metrics"]["val_accuracy"] == pytest.approx(metric["after"])

    quick = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--trainer.callbacks=LowRank"]
    start = "--trainer.callbacks.checkpoint=small.ckpt"
    assert exit_code(["fit", f"--config={CONFIG}", *quick, start]) == 0
    (tuned,) = (tmp_path / "runs").rglob("*.ckpt")
    assert loaded(tuned).state_dict().keys() == small.state_dict().keys()
    pairs = zip(loaded(tuned).parameters(), small.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)  # all parts are trained
    more = [
        *quick[:1],
        "--trainer.max_epochs=2",
        "--trainer.callbacks=LowRank",
        f"--ckpt_path={tuned}",
        "--json=m.json",
    ]
    assert exit_code(["fit", f"--config={CONFIG}", *more]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["epochs"] == 2

    learning = ["--learning.epochs=2", "--learning.seconds=20", "--folder=certificate", "--json=c.json"]
    assert exit_code(["certify", *DIGITS, "--ckpt_path=small.ckpt", "--trainer.logger=false", *learning]) == 0
    pair = json.loads((tmp_path / "c.json").read_text())["pair"]
    # 48 x 64, 32 x 48 and 10 x 32: the ranks at which two layers are smaller, or one layer
    (first, *_) = sorted((tmp_path / "certificate").glob("*.ckpt"))
    assert exit_code(["validate", *DIGITS, "--ckpt_path", first, "--trainer.logger=false"]) == 0
    assert pair["evaluation"] == (27 + 1) * (19 + 1) * (7 + 1) + 1
    lines = complaint(capsys, "compress", *DIGITS, "--ckpt_path=small.ckpt", "--size=.5", "--out=again.ckpt")
    assert "is compressed already" in lines[0]
    lines = complaint(capsys, "fit", *DIGITS, "--ckpt_path=small.ckpt", "--trainer.max_epochs=9")
    assert "no state of an optimiser" in lines[0]


def test_a_compressed_start_forbids_bounds(tmp_path) -> None:
    """Its weights depend on the training samples."""
    done = compress(MLPClassifier([64, 20, 10]), [torch.rand(100, 64)], size=0.8)
    state = {"state_dict": done.module.state_dict(), "callbacks": {"LowRank": {"structure": dict(done.structure)}}}
    torch.save(state, tmp_path / "small.ckpt")
    callbacks = [LowRank("small.ckpt"), FisherSpectrum(num_samples=16), PACBayesBound()]
    trainer = quiet_trainer(callbacks)
    module = MLPClassifier([64, 20, 10])
    with pytest.warns(UserWarning, match="The weights were trained before this fit"):
        trainer.fit(module, DigitsDataModule())
    assert isinstance(module.network[1], torch.nn.Sequential)
    trained = [parameter.clone() for parameter in module.parameters()]
    callbacks[0].setup(trainer, module, "fit")  # a second fit goes on with the trained weights
    assert all(torch.equal(a, b) for a, b in zip(trained, module.parameters(), strict=True))
    other = MLPClassifier([64, 20, 10])
    callbacks[0].setup(trainer, other, "fit")  # another module starts from the checkpoint
    assert torch.equal(other.network[1][1].weight, done.module.network[1][1].weight)


@pytest.mark.slow
def test_of_a_loss_smaller_is_better(fitted) -> None:
    trainer = CompressingTrainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    module, data = MLPClassifier([64, 48, 32, 10]), DigitsDataModule()
    found = trainer.compress(module, data, str(fitted), max_drop=0.1, monitor="val_loss", out="small.ckpt")
    assert found.monitored.direction == "min"
    before, after = -found.compressed.metric_before, -found.compressed.metric_after
    assert before < after <= before + 0.1
    assert found.compressed.table.fraction < 1
    worse = [-point.metric for point in found.compressed.curve if point.size < found.compressed.table.size_after]
    assert all(loss > before + 0.1 for loss in worse)


@pytest.mark.slow
def test_mistakes_are_told_before_the_work(fitted, tmp_path, capsys) -> None:
    given = ["compress", *DIGITS, "--ckpt_path", fitted]
    for more, said in [
        ([], "exactly one of keep, size and max_drop"),
        (["--max_drop=.1", "--monitor=val_f1"], "does not log 'val_f1', but val_accuracy, val_loss"),
        (["--max_drop=.1", "--trainer.limit_val_batches=0"], "the validation logs nothing"),
    ]:
        assert said in complaint(capsys, *given, *more)[0]
    module, data = MLPClassifier([64, 48, 32, 10]), DigitsDataModule()
    for options, said in [
        ({"size": 0.5, "keep": 0.9}, "keep=0.9 and size=0.5"),
        ({"size": 0.5, "out": "nowhere/small.ckpt"}, "cannot be written"),
        ({"size": 0.5, "out": str(fitted)}, "would overwrite the checkpoint"),
        ({"size": 0.5, "num_samples": 0}, "num_samples=0"),
        ({"size": 0.5, "ckpt_path": None}, "No checkpoint is named"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            CompressingTrainer(logger=False, accelerator="cpu").compress(
                module, data, **{"ckpt_path": str(fitted), **options}
            )
    assert not list(tmp_path.glob("*.ckpt"))


class Watching:
    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.mode = monitor, mode


def test_the_metric_is_the_one_asked_for_or_monitored_or_the_only_score() -> None:
    logged = ["val_loss", "val_accuracy", "val_score"]
    assert chosen_metric(logged, None, None, []).name == "val_accuracy"
    assert chosen_metric(logged, "val_loss", None, []).direction == "min"
    assert chosen_metric(logged, "val_score", "min", []).direction == "min"
    watched = chosen_metric(logged, None, None, [Watching("val_score", "min"), Watching("train_loss", "min")])
    assert (watched.name, watched.direction, watched.score(2.0)) == ("val_score", "min", -2.0)
    for names, monitor, said in [
        (logged, "val_score", "larger or smaller values of 'val_score'"),
        (["val_loss"], None, "logs val_loss; pass --monitor"),
        (["a_acc", "b_acc"], None, "pass --monitor"),
        ([], None, "logs nothing"),
        (logged, "acc", "does not log 'acc'"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            chosen_metric(names, monitor, None, [])
    assert [direction_of(name) for name in ("valAUROC", "val/mse", "accuracy_loss", "valid", "top1_acc")] == [
        "max", "min", None, None, "max",
    ]  # fmt: skip


def test_low_rank_without_a_compressed_checkpoint_says_what_to_do(tmp_path) -> None:
    trainer = quiet_trainer([LowRank()])
    with pytest.raises(ConfigurationError, match="LowRank needs a compressed checkpoint"):
        trainer.fit(MLPClassifier([64, 8, 10]), DigitsDataModule())


class WithMistake(MLPClassifier):
    """A network whose test has a mistake, which the user is to be told in its own words."""

    def test_step(self, batch: object, batch_idx: int) -> None:
        raise ConfigurationError("The scores of the test need a file of names.")


class WithTest(DigitsDataModule):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.test_set = self.val_set


class Judged(MLPClassifier):
    test_step = MLPClassifier.validation_step


@pytest.mark.slow
def test_a_mistake_in_the_test_is_told_before_the_work(fitted, monkeypatch) -> None:
    """It is no missing test part, which a data module of this package says by its cause."""
    worked = []
    trainer = CompressingTrainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    with monkeypatch.context() as patched:
        patched.setattr("lightning_sloppy.callbacks.compressing_trainer.compress", lambda *_, **__: worked.append(1))
        with pytest.raises(ConfigurationError, match="need a file of names"):
            trainer.compress(WithMistake([64, 48, 32, 10]), WithTest(), str(fitted), size=0.5, out="small.ckpt")
    assert not worked
    for data, names in [(DigitsDataModule(), set()), (WithTest(), {"val_accuracy", "val_loss"})]:
        found = trainer.compress(Judged([64, 48, 32, 10]), data, str(fitted), size=0.5, out="small.ckpt")
        assert set(found.tested) == names
