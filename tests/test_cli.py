import importlib.util
import runpy
import sys

import pytest
import yaml

from lightning_sloppy.cli import main
from lightning_sloppy.errors import MissingExtraError

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


def test_help_names_the_command_and_its_verbs(capsys):
    text = printed(capsys, "--help")
    assert "usage: lightning-sloppy" in text
    for verb in ("fit", "validate", "test", "predict"):
        assert verb in text


def test_help_of_fit_lists_model_data_and_trainer(capsys):
    text = printed(capsys, "fit", "--help")
    assert "usage: lightning-sloppy [options] fit" in text
    for option in ("--model ", "--data ", "--trainer.callbacks ", "--seed_everything "):
        assert option in text


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
    with pytest.raises(SystemExit) as exit_info:
        main([*STEP, "--model.lr=fast"])
    assert exit_info.value.code == 2
    assert "lr" in capsys.readouterr().err


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
    assert "usage: lightning-sloppy" in capsys.readouterr().out


def test_missing_jsonargparse_names_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jsonargparse" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-sloppy\[cli\]'"):
        main(["--help"])


@pytest.mark.parametrize(
    ("option", "words"), [("hessian.k=0", "pass k >= 1"), ("bound.delta=3", "between 0 and 1"), ("seed=x", None)]
)
def test_a_wrong_option_of_a_callback_is_one_sentence(tmp_path, monkeypatch, capsys, option, words):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--model=MLPClassifier", "--data=DigitsDataModule", "--trainer.max_epochs=1"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--trainer.callbacks=SloppyMonitor", f"--trainer.callbacks.{option}"])
    if words is None:  # not a number: the parser's own business
        assert stopped.value.code == 2
    else:
        assert str(stopped.value).startswith("error: ")
        assert words in str(stopped.value)
        assert "\n" not in str(stopped.value)


def test_an_error_of_ours_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "fit",
                "--model",
                "MLPClassifier",
                "--data",
                "IDXDataModule",
                "--data.folder",
                "nowhere",
                "--trainer.max_epochs",
                "1",
            ]
        )
    assert str(stopped.value).startswith("error: ")
    assert "nowhere" in str(stopped.value)


def test_a_certificate_that_is_refused_is_an_error(tmp_path, monkeypatch):
    from lightning_sloppy.callbacks.final_certificate import FinalCertificate

    kept = ["--trainer.enable_checkpointing=true", "--trainer.logger=false"]
    main([*STEP[:4], *kept, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"])
    (path,) = tmp_path.rglob("*.ckpt")
    monkeypatch.setattr(FinalCertificate, "after_training", lambda *_: None)
    with pytest.raises(SystemExit, match="error: There is no certificate"):
        main(["certify", *STEP[1:5], "--trainer.max_epochs=1", "--trainer.logger=false", f"--ckpt_path={path}"])


def test_clean_samples_are_the_name_of_a_method(capsys):
    found = yaml.safe_load(printed(capsys, "certify", "--print_config", "--clean=clean_dataloader"))
    assert found["clean"] == "clean_dataloader"
    monitor = ["--trainer.callbacks+=SloppyMonitor", "--trainer.callbacks.clean=clean_dataloader"]
    found = yaml.safe_load(printed(capsys, "fit", "--print_config", *monitor))
    assert found["trainer"]["callbacks"][0]["init_args"]["clean"] == "clean_dataloader"
