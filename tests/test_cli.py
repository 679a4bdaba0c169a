import importlib.util
import json
import runpy
import sys

import pytest
import yaml
from support.small_cli import complaint

import lightning_sloppy
from lightning_sloppy.cli import main

STEP = [
    "fit",
    "--model=MLPClassifier",
    "--data=DigitsDataModule",
    "--trainer.max_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def _alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-sloppy"])


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_command_alone_says_what_it_does(capsys, arguments):
    text = printed(capsys, *arguments)
    for verb in ("fit", "certify", "spectrum", "inspect", "validate", "test", "predict"):
        assert verb in text


def test_the_version_is_that_of_the_package_and_of_torch(capsys):
    assert printed(capsys, "--version").startswith(f"lightning-sloppy {lightning_sloppy.__version__} (Python 3.")


def test_help_of_fit_begins_with_the_callbacks(capsys):
    text = printed(capsys, "fit", "--help")
    assert text.startswith("usage: lightning-sloppy fit")
    assert text.index("SloppyMonitor") < text.index("--model")


def test_all_options_are_shown_on_request(capsys):
    text = printed(capsys, "fit", "--help", "all")
    for option in ("--model ", "--data ", "--trainer.callbacks ", "--seed_everything "):
        assert option in text
    trainer = printed(capsys, "fit", "--help", "trainer")
    assert "--trainer.max_epochs" in trainer
    assert "--seed_everything" not in trainer
    assert "--model" not in trainer


@pytest.mark.parametrize(
    ("name", "option"),
    [("HessianSpectrum", "callbacks.k K"), ("lightning_sloppy.SloppyMonitor", "callbacks.bound"),
     ("MLPClassifier", "--model.lr LR"), ("DigitsDataModule", "--data.batch_size"), ("CSVLogger", "save_dir")],
)  # fmt: skip
def test_help_about_a_class_by_its_name(capsys, name, option):
    assert option in printed(capsys, "fit", "--help", name)


def test_help_about_an_unknown_class_names_the_nearest(capsys):
    assert complaint(capsys, "fit", "--help", "HesianSpectrum")[1] == "Did you mean HessianSpectrum?"


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--model.help", "MLPClassifier", ["--model.lr LR", "Initial learning rate"]),
        ("--data.help", "IDXDataModule", ["--data.binary {true,false}", "lower half"]),
        ("--trainer.callbacks.help", "HessianSpectrum", ["callbacks.k K", "type: int"]),
        ("--trainer.callbacks.help", "SloppyMonitor", ["callbacks.bound", "type: float"]),
    ],
)
def test_help_of_a_class_explains_and_types_its_arguments(capsys, option, name, expected):
    text = printed(capsys, "fit", f"{option}={name}")
    for words in expected:
        assert words in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "SloppyMonitor",
        "InputSpectrum",
        "HessianSpectrum",
        "FisherSpectrum",
        "PACBayesBound",
        "EffectiveDimensionEarlyStopping",
        "lightning_sloppy.SloppyMonitor",
    ],
)
def test_callbacks_are_found_by_their_bare_and_by_their_public_name(capsys, name):
    text = printed(capsys, *STEP, f"--trainer.callbacks+={name}", "--print_config")
    (callback,) = yaml.safe_load(text)["trainer"]["callbacks"]
    assert callback["class_path"].startswith("lightning_sloppy.")
    assert callback["class_path"].endswith(name.split(".")[-1])


def test_a_run_without_a_seed_in_its_configuration_is_seeded(capsys):
    assert yaml.safe_load(printed(capsys, *STEP, "--print_config"))["seed_everything"] == 0


def test_a_value_of_the_wrong_type_is_refused(capsys):
    assert complaint(capsys, *STEP, "--model.lr=fast")[0] == "error: --model.lr takes a number, but got fast."


def test_event_files_and_configuration_land_in_the_working_folder(tmp_path):
    main(STEP)
    run = tmp_path / "lightning_logs" / "version_0"
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "config.yaml").is_file()


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_does_not_collide(tmp_path):
    logger = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.version=again"]
    main([*STEP, *logger])
    main([*STEP, *logger, "--model.lr=0.5"])
    saved = yaml.safe_load((tmp_path / "runs/lightning_logs/again/config.yaml").read_text())
    assert saved["model"]["init_args"]["lr"] == 0.5


def test_without_a_logger_the_users_own_config_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer:\n  logger: false\n")
    main([STEP[0], "--config=config.yaml", *STEP[1:]])
    assert (tmp_path / "config.yaml").read_text() == "trainer:\n  logger: false\n"


def test_module_and_command_are_the_same(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning_sloppy", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("lightning_sloppy", run_name="__main__")
    assert exit_info.value.code == 0
    assert "lightning-sloppy fit" in capsys.readouterr().out


def test_missing_jsonargparse_names_the_extra(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jsonargparse" else found(name, *rest)
    )
    assert "lightning-sloppy fit" in printed(capsys, "--help")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model=MLPClassifier"])
    assert stopped.value.code == 1
    assert "pip install 'lightning-sloppy[cli]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"), [("hessian.k=0", "pass k >= 1"), ("bound.delta=3", "between 0 and 1"), ("seed=x", None)]
)
def test_a_wrong_option_of_a_callback_is_one_sentence(tmp_path, monkeypatch, capsys, option, words):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--model=MLPClassifier", "--data=DigitsDataModule", "--trainer.max_epochs=1"]
    said = complaint(capsys, *arguments, "--trainer.callbacks=SloppyMonitor", f"--trainer.callbacks.{option}")
    assert (words or "--trainer.callbacks.seed takes a whole number, but got x") in said[0]
    assert len(said) == 2


def test_an_error_of_ours_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--data=IDXDataModule", "--data.folder=nowhere"]
    said = complaint(capsys, "fit", "--model=MLPClassifier", *data, "--trainer.max_epochs=1")
    assert "nowhere" in said[0]
    assert len(said) == 2


def test_a_certificate_that_is_refused_is_an_error(tmp_path, monkeypatch, capsys):
    from lightning_sloppy.callbacks.final_certificate import FinalCertificate

    kept = ["--trainer.enable_checkpointing=true", "--trainer.logger=false"]
    main([*STEP[:4], *kept, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"])
    (path,) = tmp_path.rglob("*.ckpt")
    monkeypatch.setattr(FinalCertificate, "after_training", lambda *_: None)
    certify = ["certify", *STEP[1:5], "--trainer.max_epochs=1", "--trainer.logger=false", f"--ckpt_path={path}"]
    with pytest.raises(SystemExit) as stopped:
        main([*certify, "--json=none.json"])
    assert stopped.value.code == 1
    assert "error: There is no certificate" in capsys.readouterr().err
    assert json.loads((tmp_path / "none.json").read_text())["pair"] is None


def test_clean_samples_are_the_name_of_a_method(capsys):
    found = yaml.safe_load(printed(capsys, "certify", "--print_config", "--clean=clean_dataloader"))
    assert found["clean"] == "clean_dataloader"
    monitor = ["--trainer.callbacks+=SloppyMonitor", "--trainer.callbacks.clean=clean_dataloader"]
    found = yaml.safe_load(printed(capsys, "fit", "--print_config", *monitor))
    assert found["trainer"]["callbacks"][0]["init_args"]["clean"] == "clean_dataloader"
