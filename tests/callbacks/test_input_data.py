"""The data side in a Trainer: missing values, intervals, names of columns, kinds of numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule
from support.tiny import Classifier, Regressor, blobs, trainer
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_sloppy import ConfigurationError, InputSpectrum, SloppyMonitor, spectrum_intervals
from lightning_sloppy.inputs.spectrum import input_spectrum
from lightning_sloppy.probing.samples import probe_indices
from lightning_sloppy.records import Status

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

N, D = 200, 12
NAMES = tuple(f"sensor {index}" for index in range(D))


class Filled(Regressor):
    """Puts zeros where values are missing."""

    def __init__(self, features: int = D) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(torch.nan_to_num(inputs.float()))


def rows(rate: float = 0.0, seed: int = 0) -> Tensor:
    """Sensor 1 copies sensor 0, sensor 5 nearly copies sensor 4 upside down, sensor 7 is dead, sensor 9 hardly read."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((N, D)) @ (np.eye(D) + 0.3 * rng.standard_normal((D, D)))
    found[:, 1] = 2 * found[:, 0] + 1
    found[:, 5] = -found[:, 4] + 0.1 * rng.standard_normal(N)
    found[:, 7] = 3.5
    found[rng.random(found.shape) < rate] = np.nan
    if rate:
        found[7:, 9] = np.nan
    return torch.tensor(found)


def measured(tmp_path: Any, inputs: Any, model: Any = None, data: Any = None, **options: Any) -> InputSpectrum:
    part = InputSpectrum(strict=True, **options)
    host = trainer(tmp_path, callbacks=[part], max_epochs=1, limit_train_batches=1)
    if data is None:
        data = TensorDataset(inputs, torch.zeros(len(inputs), 1))
    host.fit(model or Filled(), data if isinstance(data, LightningDataModule) else DataLoader(data, 50))
    return part


@pytest.mark.parametrize("kind", ["correlation", "covariance", "second_moment"])
@pytest.mark.parametrize("missing", ["pairwise", "em"])
def test_missing_values_give_what_the_function_gives(tmp_path: Any, kind: Any, missing: Any) -> None:
    inputs = rows(0.1)
    event = measured(tmp_path, inputs, kind=kind, missing=missing).latest
    right = input_spectrum(inputs.numpy(), kind, missing=missing)
    torch.testing.assert_close(event.spectrum.eigenvalues, right.eigenvalues, rtol=0, atol=1e-9)
    assert event.estimates["missing_rate"].value == pytest.approx(
        float(torch.isnan(inputs[:, [i for i in range(D) if i != 9]]).double().mean())
    )
    assert event.estimates["set_aside_columns"].value == 1
    assert event.estimates["negative_eigenvalues"].value == right.detail["negative_eigenvalues"]
    note = next(note for note in event.notes if "missing" in note)
    assert f"missing {'completely ' if missing == 'pairwise' else ''}at random, which no data can show" in note
    assert "Set aside because they are hardly observed: 9." in note
    assert ("participation_ratio_low" in event.estimates) == (missing == "pairwise")


def test_missing_values_are_refused_where_that_is_asked_for(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="numbers are NaN"):
        measured(tmp_path, rows(0.1), missing="error")
    with pytest.raises(ConfigurationError, match="missing='drop' is unknown"):
        InputSpectrum(missing="drop")  # type: ignore[arg-type]


def test_training_is_the_same_with_missing_values_and_the_monitor(tmp_path: Any) -> None:
    data = TensorDataset(rows(0.1).float(), torch.ones(N, 1))
    weights = []
    for callbacks in ([], [SloppyMonitor(input=InputSpectrum(missing="pairwise"), hessian=None, fisher=None)]):
        torch.manual_seed(0)
        model = Filled()
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, DataLoader(data, 50))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_ends_of_intervals_are_those_of_blocks_of_the_samples(tmp_path: Any) -> None:
    """Blocks of the samples in the order in which they are drawn: 32 of 200."""
    inputs = rows()
    part = measured(tmp_path, inputs)
    order = inputs[probe_indices(N, 50_000, 0)]
    cuts = [block * N // 32 for block in range(33)]
    blocks = [order[start:end] for start, end in itertools.pairwise(cuts)]
    signs = torch.tensor(
        [[1 if bin(row & column).count("1") % 2 == 0 else -1 for column in range(32)] for row in range(32)]
    )
    halves = part.latest.spectrum.halves
    assert halves.shape == (31, 2, D - 1)
    for index in (0, 17, 30):
        some = torch.cat([block for block, sign in zip(blocks, signs[index + 1], strict=True) if sign > 0])
        right = input_spectrum(some).eigenvalues
        torch.testing.assert_close(halves[index, 0], right, rtol=0, atol=1e-9)
    for name, interval in spectrum_intervals(part.latest.spectrum).items():
        assert part.latest.estimates[f"{name}_low"].value == interval.low
        assert part.latest.estimates[f"{name}_high"].value == interval.high
    assert "at 95 %" in " ".join(part.paragraphs())
    assert "over halves of the samples" in " ".join(part.paragraphs())
    without = measured(tmp_path, inputs, intervals=False)
    assert without.latest.spectrum.halves is None
    assert not [name for name in without.latest.estimates if name.endswith(("_low", "_high"))]
    torch.testing.assert_close(
        without.latest.spectrum.eigenvalues, part.latest.spectrum.eigenvalues, rtol=0, atol=1e-12
    )


class Told(TensorDataset):
    """Tells the names of its columns in one way or another."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(rows(), torch.zeros(N, 1))
        for name, value in attributes.items():
            setattr(self, name, value)


class Property(TensorDataset):
    def __init__(self) -> None:
        super().__init__(rows(), torch.zeros(N, 1))

    @property
    def feature_names(self) -> list[str]:
        return list(NAMES)

    @property
    def columns(self) -> list[str]:
        raise RuntimeError("not read yet")


class Module(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.feature_names = NAMES

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(rows(), torch.zeros(N, 1)), 50)


class Frame(Dataset):
    """Reads rows of a frame, as tabular data sets do."""

    def __init__(self) -> None:
        self.table = pd.DataFrame(rows().numpy(), columns=NAMES)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.table.iloc[index].to_numpy(copy=True), np.zeros(1, dtype=np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Told(feature_names=list(NAMES)),
        lambda: Told(feature_cols=NAMES),
        lambda: Told(columns=pd.Index(NAMES)),
        lambda: Told(feature_names_in_=np.array(NAMES)),
        lambda: Told(column_names=[*NAMES, "target"], features=list(NAMES)),
        lambda: Subset(Told(feature_names=NAMES), range(N)),
        lambda: ConcatDataset([Told(feature_names=NAMES)]),
        Property,
        Module,
        Frame,
    ],
)
def test_columns_are_named_where_the_data_set_tells_names(tmp_path: Any, make: Any) -> None:
    notes = measured(tmp_path, None, data=make()).latest.notes
    assert "Constant columns, which are not among the features: sensor 7." in notes
    assert any("sensor 0, sensor 1 (|r| with sensor 0 at least 1.00)" in note for note in notes)


def test_names_are_those_given_and_else_positions(tmp_path: Any) -> None:
    mine = [f"mine {index}" for index in range(D)]
    part = measured(tmp_path, None, data=Told(feature_names=NAMES), feature_names=mine)
    assert "Constant columns, which are not among the features: mine 7." in part.latest.notes
    images = rows().reshape(N, 1, 3, 4)
    assert "Constant columns, which are not among the features: 0,1,3." in measured(tmp_path, images).latest.notes
    few = measured(tmp_path, None, data=Told(feature_names=NAMES[:3]))
    assert "Constant columns, which are not among the features: 7." in few.latest.notes


@pytest.mark.parametrize(
    ("names", "words"),
    [("abc", "is no list of names"), (["a", "b", "a"], "holds 'a' twice"), ([], "is empty")],
)
def test_names_are_checked_at_once(names: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        InputSpectrum(feature_names=names)


def test_a_wrong_number_of_names_is_said_before_the_data_are_read(tmp_path: Any) -> None:
    class Counted(TensorDataset):
        read = 0

        def __getitem__(self, index: Any) -> Any:
            Counted.read += 1
            return super().__getitem__(index)

    data = Counted(torch.randn(5_000, D), torch.zeros(5_000, 1))
    part = InputSpectrum(feature_names=["a", "b"])
    host = trainer(tmp_path, callbacks=[part], max_epochs=1, limit_train_batches=1)
    with pytest.warns(UserWarning, match="feature_names has 2 names, but the inputs have 12 columns; pass one name"):
        host.fit(Filled(), DataLoader(data, 50))
    assert part.measurements[0].status is Status.FAILED
    assert Counted.read <= 1_024 + 50


def test_groups_and_what_they_do_to_decades(tmp_path: Any) -> None:
    inputs = rows()
    part = measured(tmp_path, inputs, feature_names=NAMES)
    event = part.latest
    kept = np.delete(inputs.numpy(), [1, 5, 7], axis=1)
    values = np.linalg.eigvalsh(np.corrcoef(kept.T))
    assert event.estimates["repeated_columns"].value == 2
    assert event.estimates["deduplicated_decades"].value == pytest.approx(np.log10(values[-1] / values[0]))
    assert event.estimates["deduplicated_participation_ratio"].value == pytest.approx(
        values.sum() ** 2 / np.square(values).sum()
    )
    r = np.corrcoef(inputs.numpy()[:, [4, 5]].T)[0, 1]
    said = " ".join(part.paragraphs())
    assert f"sensor 4, sensor 5 (|r| with sensor 4 at least {abs(r):.2f})" in said
    assert "2 could be left out: sensor 1, sensor 5." in said
    assert "Repeated columns make decades say little: " in said
    # With holes the groups are the same.
    holes = measured(tmp_path, rows(0.05), feature_names=NAMES)
    assert holes.latest.estimates["repeated_columns"].value == 2
    assert holes.latest.estimates["deduplicated_decades"].value < holes.latest.estimates["decades"].value + 1
    plain = measured(tmp_path, torch.randn(N, D))
    assert plain.latest.estimates["repeated_columns"].value == 0
    assert "deduplicated_decades" not in plain.latest.estimates
    assert not plain.latest.notes


class Table(Regressor):
    """Chooses what belongs to each integer, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 1))
        self.bag = nn.EmbeddingBag(9, 12)
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        places = inputs + 0 if self.how == "moved" else inputs.long() if self.how in ("cast", "long") else inputs
        chosen = {
            "bag": lambda: self.bag(places),
            "indexed": lambda: self.table[places],
            "one hot": lambda: nn.functional.one_hot(places, 9).float() @ self.table,
            "gathered": lambda: self.table[:, 0].expand(len(places), 9).gather(1, places).repeat_interleave(4, 1),
        }.get(self.how, lambda: self.net[0](places))()
        return self.net[2](chosen.flatten(1))


@pytest.mark.parametrize("how", ["embedded", "moved", "cast", "bag", "indexed", "one hot", "gathered"])
def test_token_ids_are_no_measurements(tmp_path: Any, how: str) -> None:
    with pytest.raises(ConfigurationError, match="token ids or flags, whose moments mean nothing"):
        measured(tmp_path, torch.randint(9, (40, 3)), Table(how))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_small_integers_that_a_module_makes_places_of_are_no_measurements(tmp_path: Any, dtype: Any) -> None:
    with pytest.raises(ConfigurationError, match="token ids or flags, whose moments mean nothing"):
        measured(tmp_path, torch.randint(9, (40, 3)).to(dtype), Table("long"))


class Cast(Regressor):
    """Makes its inputs floating-point numbers in the step, and has an embedding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 1))
        self.place = nn.Embedding(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.net[0](inputs) + self.place(torch.ones(len(inputs), dtype=torch.int64))
        return self.net[2](hidden)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0].float()), batch[1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool])
@pytest.mark.parametrize("model", [Filled, Cast])
def test_integers_that_a_module_takes_as_numbers_are_measured(tmp_path: Any, dtype: Any, model: Any) -> None:
    counts = (20 * rows()).round().clamp(-100, 100)
    inputs = (counts > 0) if dtype is torch.bool else counts.to(dtype)
    event = measured(tmp_path, inputs, model()).latest
    right = input_spectrum(inputs.double())
    torch.testing.assert_close(event.spectrum.eigenvalues, right.eigenvalues, rtol=0, atol=1e-10)


def test_large_integers_keep_their_digits(tmp_path: Any) -> None:
    """float32 has 24 bits: the last digits of these would go."""
    inputs = torch.randint(0, 50, (N, D), generator=torch.Generator().manual_seed(0)) + 2**40
    event = measured(tmp_path, inputs, kind="covariance").latest
    right = np.linalg.eigvalsh(np.cov((inputs - 2**40).double().numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(event.spectrum.eigenvalues.numpy(), right, rtol=1e-9)


def test_integers_of_which_nothing_is_known_are_refused_in_one_sentence(tmp_path: Any) -> None:
    class Odd(Filled):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("call predict")

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch[0].float()).mean()

    with pytest.raises(
        ConfigurationError, match=r"int64 may be token ids or measurements, and Odd.forward runs neither"
    ):
        measured(tmp_path, torch.randint(9, (40, D)), Odd())
    images = torch.randint(9, (40, D), dtype=torch.uint8)
    assert measured(tmp_path, images, Odd()).latest.num_samples == 40


class Rows(Dataset):
    """Arrays of any kind of number, as numpy makes them."""

    def __init__(self, dtype: Any) -> None:
        self.values = (rows().numpy() * 10).astype(dtype)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.values[index], np.zeros(1, dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int16", "uint8"])
def test_data_sets_of_arrays(tmp_path: Any, dtype: Any) -> None:
    data = Rows(dtype)
    event = measured(tmp_path, None, data=data).latest
    right = input_spectrum(data.values.astype("float64"))
    torch.testing.assert_close(event.spectrum.eigenvalues, right.eigenvalues, rtol=0, atol=1e-10)


def test_of_a_dict_the_input_is_what_forward_takes(tmp_path):
    """The label has a name that no rule knows, and is a tensor as well."""

    class Windows(Classifier):
        def forward(self, window):
            return self.net(window)

        def training_step(self, batch, batch_idx):
            return self.loss_fn(self(batch["window"]), batch["late"])

    inputs, targets = blobs(40).tensors
    watcher = InputSpectrum(strict=True)
    data = DataLoader([{"late": late, "window": row} for row, late in zip(inputs, targets, strict=True)], 8)
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(Windows(), data)
    expected = np.linalg.eigvalsh(np.corrcoef(inputs.double().numpy(), rowvar=False))[::-1]
    np.testing.assert_allclose(watcher.latest.spectrum.eigenvalues, expected, rtol=1e-10)
