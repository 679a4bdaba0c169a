"""Errors of validation samples in a fit: right numbers, an untouched training, pictures, and why there is none."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sklearn.metrics import balanced_accuracy_score
from support import ranks
from support.norms import events
from support.tiny import CLASSES, FEATURES, SAFELY, Classifier, Regressor, blobs, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_sloppy import ConfigurationError, SloppyMonitor, SpectralErrors, ValidationErrors

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*", "ignore:.*has `__len__` defined.*")


NO_LOADER = ()


def fit(
    tmp_path: Path,
    callback: Any,
    module: Any = None,
    train: Any = None,
    val: Any = None,
    epochs: int = 2,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    train = DataLoader(blobs(200), 50) if train is None else train
    val = DataLoader(blobs(120, seed=1), 32) if val is None else val
    host = trainer(tmp_path, callbacks=[callback], max_epochs=epochs, **options)
    host.fit(module or Classifier(lr=0.01), train, None if val == NO_LOADER else val)
    return host


def test_the_numbers_are_those_of_the_metric_on_the_trained_network(tmp_path):
    callback, module = ValidationErrors(strict=True), Classifier(batch_norm=True, dropout=0.5)
    host = fit(tmp_path, callback, module)
    assert [m.step for m in callback.measurements] == [0, 3, 7]
    inputs, labels = blobs(120, seed=1).tensors
    with torch.no_grad():
        scores = module.eval()(inputs)
    wrong = scores.argmax(1) != labels
    report = callback.latest_report
    assert report.overall.value == float(wrong.double().mean())
    assert report.balanced.value == pytest.approx(1 - balanced_accuracy_score(labels, scores.argmax(1)))
    assert float(host.callback_metrics["sloppy_validation/error"]) == pytest.approx(report.overall.value)
    metric = SpectralErrors(callback._metric.bins, num_classes=CLASSES)
    metric.update(scores, labels, inputs)
    for name, value in metric.report().numbers().items():
        assert callback.latest.estimates[name].value == pytest.approx(value, nan_ok=True), name
    # The bins are those of the 200 training samples.
    alone = SpectralErrors.from_inputs(blobs(200).tensors[0], num_classes=CLASSES).bins.directions
    assert callback._metric.bins.directions.num_columns == alone.num_columns == FEATURES
    np.testing.assert_allclose(callback._metric.bins.directions.mean, blobs(200).tensors[0].mean(0), atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"workers": 1}], ids=["plain", "workers"])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_weights_streams_and_metrics_of_the_module_are_those_of_a_fit_without_it(tmp_path, options):
    workers = options.get("workers", 0)
    found = []
    for number, callbacks in enumerate(([], [ValidationErrors(strict=True)])):
        seed_everything(3, verbose=False)
        module = Classifier(batch_norm=True, dropout=0.3)
        many = {"num_workers": workers, "persistent_workers": workers > 0}
        many["multiprocessing_context"] = "fork" if workers else None
        host = trainer(tmp_path / str(number), callbacks=callbacks, max_epochs=2)
        host.fit(module, DataLoader(blobs(80), 16, shuffle=True, **many), DataLoader(blobs(60, seed=1), 16, **many))
        logged = {name: float(each) for name, each in host.callback_metrics.items() if "sloppy" not in name}
        found.append((module.state_dict(), torch.get_rng_state(), logged, module.seen))
    (plain, stream, logged, seen), (measured, other, also, same) = found
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    assert torch.equal(stream, other)
    assert logged == also
    assert seen == same


def test_a_regression_is_measured_in_units_of_the_variance_of_the_training_targets(tmp_path):
    def samples(count: int, seed: int) -> TensorDataset:
        inputs = blobs(count, seed).tensors[0]
        return TensorDataset(inputs, torch.stack([inputs[:, 0], 30 * inputs[:, 1] + inputs[:, 0]], dim=1))

    train, val = samples(200, 0), samples(90, 1)
    callback, module = ValidationErrors(strict=True), Validated()
    fit(tmp_path, callback, module, DataLoader(train, 50), DataLoader(val, 32))
    with torch.no_grad():
        found = module.eval()(val.tensors[0]) - val.tensors[1]
    loss = (found.double() / train.tensors[1].double().std(0, correction=0)).square().mean()
    report = callback.latest_report
    assert (report.kind, report.classes) == ("loss", ())
    assert report.overall.value == pytest.approx(float(loss), rel=1e-5)
    centred = train.tensors[1].double() - train.tensors[1].double().mean(0)
    scaled = centred / centred.std(0, correction=0)
    values, vectors = torch.linalg.eigh(scaled.T @ scaled / 200)
    whitened = ((found.double() / centred.std(0, correction=0)) @ vectors).square().mean(0) / values
    assert [rate.value for rate in report.whitened] == pytest.approx(whitened.flip(0).tolist(), rel=1e-5)
    said = " ".join(callback.paragraphs())
    assert "1 is predicting their mean. Along the first of their 2 principal directions" in said
    assert "error" not in callback.latest.estimates


def test_loggers_get_curves_and_the_picture_and_the_summary_says_it_in_words(tmp_path, caplog):
    logger = TensorBoardLogger(tmp_path)
    monitor = SloppyMonitor(jacobian=None, hessian=None, fisher=None, input=None, extra=[ValidationErrors()])
    rows, labels = blobs(200).tensors
    rows[labels == 2, 4] *= 6  # a column that shows where the third class lies
    with caplog.at_level(logging.INFO):
        fit(tmp_path, monitor, train=DataLoader(TensorDataset(rows, labels), 50), logger=logger)
    read = events(logger.log_dir)
    tags = set(read.Tags()["scalars"])
    assert {f"sloppy_validation/{name}" for name in ("error", "tail_difference", "worst_bin")} <= tags
    assert [each.step for each in read.Images("sloppy_validation/picture")] == [0, 3, 7]
    assert (Path(logger.log_dir) / "sloppy_errors.png").stat().st_size > 10_000
    said = " ".join(" ".join(record.getMessage() for record in caplog.records).split())
    assert "Errors of validation samples Step 7, in the 2nd epoch. The error is 0." in said
    assert "because the worst of 10 bins was picked (Bonferroni)" in said
    assert monitor.parts[-1].errors_picture().axes[0].get_title(loc="left") == "By share of energy in the tail"
    silent = TensorBoardLogger(tmp_path / "silent")
    fit(tmp_path, SloppyMonitor(picture=False, extra=[ValidationErrors()], hessian=None), logger=silent)
    assert not (Path(silent.log_dir) / "sloppy_errors.png").exists()


class Rows(Dataset[Any]):
    """Samples of any form."""

    def __init__(self, count: int, seed: int, form: Any) -> None:
        self.data, self.form = blobs(count, seed), form

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.form(*self.data[index])


class OfDicts(Classifier):
    """Takes a dict with inputs and labels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_fn(self(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss_fn(self(batch["x"]), batch["y"]))


def dicts(count: int, seed: int) -> Rows:
    return Rows(count, seed, lambda x, y: {"x": x, "y": y})


def wrong_of_dicts(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.argmax(1) != targets["y"]


def test_batches_may_be_dicts_with_a_rule_of_the_user(tmp_path):
    callback, module = ValidationErrors(strict=True, predict=wrong_of_dicts), OfDicts()
    fit(tmp_path, callback, module, DataLoader(dicts(200, 0), 50), DataLoader(dicts(90, 1), 32))
    inputs, labels = blobs(90, seed=1).tensors
    wrong = module.eval()(inputs).argmax(1) != labels
    assert callback.latest_report.overall.value == float(wrong.double().mean())
    assert callback.latest_report.classes == ()
    assert "balanced_error" not in callback.latest.estimates


class RegressionOfDicts(OfDicts):
    """Predicts its third input."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch["x"])[:, :1], batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@pytest.mark.filterwarnings("ignore:On one batch no loss was found:UserWarning")
def test_a_regression_on_dicts_is_told_what_its_data_set_must_return(tmp_path):
    callback = ValidationErrors()
    loaders = [DataLoader(Rows(n, seed, lambda x, y: {"x": x, "y": x[2:3]}), 50) for n, seed in ((200, 0), (100, 1))]
    host = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    with pytest.warns(UserWarning, match=r"for a regression, let the data set return pairs \(inputs, targets\)"):
        host.fit(RegressionOfDicts(), *loaders)
    assert callback.latest_report is None
    assert host.global_step == 4


def test_a_rule_that_gives_labels_finds_the_classes_of_the_targets(tmp_path):
    callback, module = ValidationErrors(strict=True, predict=lambda outputs: outputs.argmax(1)), Classifier()
    fit(tmp_path, callback, module)
    assert len(callback.latest_report.classes) == CLASSES


def test_images_and_one_logit(tmp_path):
    class OneLogit(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 1))
            self.loss_fn = nn.BCEWithLogitsLoss()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss_fn(self(batch[0]), batch[1])

    def form(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(1, 2, 3), (y[None] > 0).float()

    callback, module = ValidationErrors(strict=True, bins=3), OneLogit()
    val = Rows(90, 1, form)
    fit(tmp_path, callback, module, DataLoader(Rows(200, 0, form), 50), DataLoader(val, 32))
    assert callback.name == "validation_3"
    assert callback.feature_names[:2] == ("0,0,0", "0,0,1")
    inputs, labels = (torch.stack(each) for each in zip(*(val[index] for index in range(90)), strict=True))
    wrong = (module.eval()(inputs) > 0) != (labels > 0.5)
    assert callback.latest_report.overall.value == float(wrong.double().mean())
    assert len(callback.latest_report.classes) == 2


def test_fewer_samples_on_request_and_the_same_at_every_measurement(tmp_path):
    seen = []

    class Watched(Dataset[Any]):
        def __len__(self) -> int:
            return 120

        def __getitem__(self, index: int) -> Any:
            seen.append(index)
            return blobs(120, seed=1)[index]

    callback = ValidationErrors(num_samples=40, max_samples=100, strict=True, schedule=None)
    fit(tmp_path, callback, Classifier(lr=0.0), val=DataLoader(Watched(), 32), limit_val_batches=0)
    assert callback.latest.num_samples == 40
    assert len({m.estimates["error"].value for m in callback.measurements}) == 1
    assert callback._metric.bins.directions.num_rows < 100


def test_predictions_that_are_not_finite_are_mistakes(tmp_path):
    class Broken(Classifier):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.where(inputs[:, :1] > 50, torch.nan, super().forward(inputs))

    inputs, labels = blobs(120, seed=1).tensors
    inputs[:30, 0] = 60.0
    callback, module = ValidationErrors(strict=True), Broken()
    fit(tmp_path, callback, module, val=DataLoader(TensorDataset(inputs, labels), 32))
    wrong = module.eval()(inputs[30:]).argmax(1) != labels[30:]
    assert callback.latest_report.overall.value == (30 + int(wrong.sum())) / 120
    assert callback.latest_report.of("distance").bins[-1].count >= 30
    assert "of the samples are in that highest bin, where 20 % were expected" in callback.paragraphs()[1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from blobs(100)


class Tokens(Classifier):
    """Looks up its inputs in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(4 * FEATURES, CLASSES))


class OfTwo(Classifier):
    """Validates on several loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing to log."""


class Validated(Regressor):
    """Logs a loss of its own."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))


class OnlyStep(Classifier):
    """A loss that nobody can name: outputs and targets have other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss_fn = nn.Linear(FEATURES, 4), None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])[:, :CLASSES].logsumexp(1).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to log."""


def with_nan(count: int, seed: int) -> TensorDataset:
    inputs, labels = blobs(count, seed).tensors
    inputs[::7, 2] = torch.nan
    return TensorDataset(inputs, labels)


def ids(count: int, seed: int) -> TensorDataset:
    rng = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randint(7, (count, FEATURES), generator=rng), blobs(count, seed).tensors[1])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"val": NO_LOADER}, "the fit has no validation loader; pass one to trainer.fit"),
        (
            {"val": [DataLoader(blobs(60, 1), 32), DataLoader(blobs(60, 2), 32)], "module": OfTwo},
            "the fit has 2 validation loaders",
        ),
        ({"val": DataLoader(Stream(), 32)}, "The validation samples cannot be used: Samples can be read by index"),
        ({"train": DataLoader(Stream(), 32)}, "is iterable"),
        ({"train": DataLoader(with_nan(200, 0), 50)}, "NaN or infinite"),
        ({"train": DataLoader(blobs(30), 10)}, "5 bins need at least 50 training rows"),
        ({"train": DataLoader(ids(200, 0), 50), "val": DataLoader(ids(60, 1), 30), "module": Tokens}, "token ids"),
        ({"module": OnlyStep}, "loss"),
        (
            {"module": OfDicts, "train": DataLoader(dicts(200, 0), 50), "val": DataLoader(dicts(60, 1), 30)},
            "but they are a dict; pass predict=",
        ),
        ({"predict": lambda outputs: outputs}, r"predict\(outputs\) must give a label"),
        ({"feature_names": ["a", "b"]}, "feature_names has 2 names, but the inputs have 6"),
    ],
    ids=["none", "two", "stream", "train stream", "nan", "few", "tokens", "loss", "dicts", "predict", "names"],
)
@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_what_cannot_be_measured_is_said_once_and_the_training_goes_on(tmp_path, parts, said):
    parts = dict(parts)
    module = parts.pop("module", Classifier)()
    loaders = {name: parts.pop(name) for name in ("train", "val") if name in parts}
    if said.startswith("NaN"):
        module.net[0] = nn.Sequential(NoMissing(), module.net[0])
    callback = ValidationErrors(**parts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        host = fit(tmp_path, callback, module, **loaders)
    assert host.current_epoch == 2
    ours = [str(each.message) for each in caught if "measurement failed" in str(each.message)]
    assert len(ours) == 1
    assert callback.latest is callback.latest_report is None
    assert re.search(said, ours[0]), ours[0]
    assert callback.paragraphs()[0].startswith("Missing")


class NoMissing(nn.Module):
    """Fills in zeros."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.nan_to_num()


def test_wrong_arguments_are_refused_at_once():
    for options, said in (
        ({"bins": 1}, "bins=1; pass at least 2"),
        ({"num_samples": 0}, "num_samples=0; pass at least 1"),
        ({"max_samples": 1}, "max_samples=1; pass at least 2"),
        ({"loss_fn": 3}, "The loss must be a function"),
        ({"feature_names": "a"}, "is no list of names"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            ValidationErrors(**options)
    with pytest.raises(ConfigurationError, match="no picture before the first measurement"):
        ValidationErrors().errors_picture()


def test_a_resumed_run_goes_on_and_notices_other_inputs(tmp_path):
    first = ValidationErrors(strict=True)
    host = fit(tmp_path, first, epochs=1)
    host.save_checkpoint(tmp_path / "run.ckpt")
    for scale, warned in ((1.0, 0), (None, 1)):
        again = ValidationErrors(strict=True)
        rows, labels = blobs(200).tensors
        if scale is None:
            rows = torch.cat([rows[:, :1]] * FEATURES, dim=1) + 0.3 * rows
        host = trainer(tmp_path, callbacks=[again], max_epochs=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            host.fit(
                Classifier(lr=0.01), DataLoader(TensorDataset(rows, labels), 50), DataLoader(blobs(120, seed=1), 32),
                ckpt_path=tmp_path / "run.ckpt", **SAFELY,
            )  # fmt: skip
        assert [m.step for m in again.measurements] == [4, 7]
        assert sum("The bins of validation differ" in str(each.message) for each in caught) == warned
        assert math.isfinite(again.latest.estimates["error"].value)


def found_by(folder: Path, **options: Any) -> dict[str, Any]:
    """The numbers of a fit with constant weights; the validation samples do not divide by two."""
    callback = ValidationErrors(strict=True, num_samples=77)
    torch.manual_seed(0)
    host = trainer(folder, callbacks=[callback], max_epochs=1, logger=CSVLogger(folder), **options)
    host.fit(Classifier(lr=0.0), DataLoader(blobs(201), 50), DataLoader(blobs(121, seed=1), 32))
    # The metric in the hands of a user, who gives each process its own samples.
    metric = SpectralErrors.from_inputs(blobs(201).tensors[0], num_classes=CLASSES)
    (inputs, labels), rank, world = blobs(121, seed=1).tensors, host.global_rank, host.world_size
    metric.update(labels[rank::world] * 0, labels[rank::world], inputs[rank::world])
    return {
        "metric": {name: float(value) for name, value in metric.compute().items()},
        "samples": metric.report().overall.count,
        "numbers": {name: each.value for name, each in callback.latest.estimates.items()},
        "edges": callback._metric.bins.edges.tolist(),
        "columns": [each.column for each in callback.latest_report.worst.columns],
        "said": callback.paragraphs(),
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_measure_what_one_does(tmp_path):
    alone = found_by(tmp_path / "one")
    for rank in ranks.run(__file__, tmp_path):
        assert rank["metric"] == pytest.approx(alone["metric"], rel=1e-9, nan_ok=True)
        assert rank["samples"] == alone["samples"] == 121
        assert rank["numbers"] == pytest.approx(alone["numbers"], rel=1e-9, nan_ok=True)
        np.testing.assert_allclose(rank["edges"], alone["edges"], rtol=1e-9)
        assert (rank["columns"], rank["said"][1:]) == (alone["columns"], alone["said"][1:])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = found_by(target.parent / f"of_{os.environ['RANK']}", devices=2, strategy="ddp")
    target.write_text(json.dumps(made))
    ranks.leave()
