import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.demo import DigitsDataModule, MLPClassifier, MLPRegressor
from lightning_sloppy.errors import ConfigurationError


def quiet(tmp_path, **options):
    defaults = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


def test_widths_are_the_widths_of_the_layers():
    shapes = [tuple(parameter.shape) for parameter in MLPClassifier([64, 5, 3]).parameters()]
    assert shapes == [(5, 64), (5,), (3, 5), (3,)]


@pytest.mark.parametrize(("name", "kind"), [("relu", torch.nn.ReLU), ("tanh", torch.nn.Tanh)])
def test_activation_stands_between_the_layers_only(name, kind):
    layers = list(MLPClassifier([4, 3, 2], activation=name).network)
    assert [type(layer) for layer in layers[1:]] == [torch.nn.Linear, kind, torch.nn.Linear]


@pytest.mark.parametrize("model", [MLPClassifier([4, 3, 2]), MLPRegressor([4, 3, 2])])
def test_forward_flattens_and_returns_the_last_layer(model):
    inputs = torch.randn(6, 2, 2)
    torch.testing.assert_close(model(inputs), model(inputs.flatten(1)), rtol=0, atol=0)
    assert model(inputs).shape == (6, 2)


def test_training_step_returns_the_loss_of_the_outputs():
    model = MLPClassifier([4, 3, 2])
    model.log = lambda *_, **__: None
    inputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = torch.nn.functional.cross_entropy(model(inputs), targets)
    torch.testing.assert_close(model.training_step((inputs, targets), 0), expected)
    torch.testing.assert_close(model.loss_fn(model(inputs), targets), expected)


def test_fit_on_digits_learns_and_logs(tmp_path):
    model = MLPClassifier([64, 32, 10], lr=1e-2)
    trainer = quiet(tmp_path, max_epochs=3, logger=CSVLogger(tmp_path), num_sanity_val_steps=1)
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=64))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged.keys() == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert logged["val_accuracy"] > 0.8
    assert logged["val_loss"] < 1.0


def test_regressor_fits_a_line(tmp_path):
    inputs = torch.linspace(-1, 1, 64).unsqueeze(1)
    loader = DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=16)
    model = MLPRegressor([1, 1], optimizer="sgd", lr=0.1)
    trainer = quiet(tmp_path, max_epochs=30, num_sanity_val_steps=0)
    trainer.fit(model, loader, loader)
    assert trainer.callback_metrics["val_loss"] < 1e-4
    assert trainer.callback_metrics["val_absolute_error"] < 1e-2


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [0.4, 0.4]), ("exponential", [0.2, 0.1]), ("cosine", [0.2, 0.0])]
)
def test_schedule_changes_the_learning_rate_after_every_epoch(tmp_path, schedule, rates):
    model = MLPClassifier([64, 10], optimizer="sgd", lr=0.4, lr_schedule=schedule, lr_decay=0.5)
    seen = []
    model.on_train_epoch_start = lambda: seen.append(trainer.optimizers[0].param_groups[0]["lr"])
    trainer = quiet(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(model, datamodule=DigitsDataModule())
    assert [*seen[1:], trainer.optimizers[0].param_groups[0]["lr"]] == pytest.approx(rates, abs=1e-12)


def test_cosine_without_an_end_says_what_is_missing(tmp_path):
    trainer = quiet(tmp_path, max_epochs=-1, max_steps=1)
    with pytest.raises(ConfigurationError, match="max_epochs is -1"):
        trainer.fit(MLPClassifier(lr_schedule="cosine"), datamodule=DigitsDataModule())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_reaches_the_optimiser(name):
    optimizer = MLPClassifier([4, 2], optimizer=name, weight_decay=0.3).configure_optimizers()
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [3]}, r"at least an input and an output width, each at least 1, but are \[3\]"),
        ({"widths": [3, 0, 2]}, "each at least 1"),
        ({"activation": "sine"}, "'sine' is unknown; choose one of relu, tanh"),
        ({"optimizer": "adam"}, "choose adamw or sgd"),
        ({"lr_schedule": "linear"}, "constant, exponential or cosine"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay not negative"),
        ({"lr_decay": 1.5}, r"lr_decay in \(0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MLPClassifier(**arguments)


def test_a_checkpoint_restores_widths_and_weights(tmp_path):
    model = MLPClassifier([64, 7, 10], activation="tanh")
    trainer = quiet(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    restored = MLPClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    inputs = torch.randn(3, 64)
    torch.testing.assert_close(restored(inputs), model(inputs), rtol=0, atol=0)
