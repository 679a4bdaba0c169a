"""``InputSpectrum(against=)``: drift is said, ends the fit or calls back, and nothing else of the training changes."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ranks
from support.tiny import Regressor, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import ConfigurationError, DriftReport, InputSpectrum, SloppyMonitor, inspect

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

N, D = 600, 5
NAMES = tuple("abcde")


def rows(seed: int, shift: float = 0.0) -> np.ndarray:
    """Column b follows a; column e is 0.1 but for three rows."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((N, D))
    found[:, 1] = 0.9 * found[:, 0] + 0.4 * found[:, 1]
    found[:, 2] += shift
    found[:, 4] = 0.1
    found[[10, 200, 400], 4] = 1.0
    return found


class Linear(Regressor):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


@pytest.fixture(scope="module")
def against(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "old.json"
    table = dict(zip(NAMES, rows(0).T, strict=True)) | {"dead": np.full(N, 3.3)}
    inspect(table, intervals=False).save(path)
    return path


def fit(tmp_path: Path, values: np.ndarray, callbacks: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Linear()
    data = TensorDataset(torch.tensor(values, dtype=torch.float32), torch.zeros(len(values), 1))
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(model, DataLoader(data, 60))
    return {name: value.clone() for name, value in model.state_dict().items()}


def gate(against: Path, on_drift: Any = "warn", **more: Any) -> InputSpectrum:
    return InputSpectrum(against=str(against), on_drift=on_drift, feature_names=NAMES, **more)


def test_alike_inputs_are_the_same_although_they_are_rounded_to_float32(tmp_path: Path, against: Path) -> None:
    part = gate(against)
    fit(tmp_path, rows(1), [part])
    assert part.drift is not None
    # The usual 0.1 of column e as well; the dead column of the reference may be left out of a training.
    assert (part.drift.answer, part.drift.responsible) == ("same", ())
    assert part.drift.rows == N
    assert any(text.startswith(f"No drift from {against} to the training inputs") for text in part.paragraphs())


def test_drift_is_warned_about_and_stands_in_the_summary(tmp_path: Path, against: Path) -> None:
    part = gate(against)
    with pytest.warns(UserWarning, match=f"^Drift from {re.escape(str(against))} to the training inputs: c"):
        fit(tmp_path, rows(1, shift=0.8), [part])
    assert part.drift is not None
    assert "c" in part.drift.responsible
    assert not {"a", "b", "d"} & set(part.drift.responsible)
    assert any(text.startswith(f"Drift from {against}") for text in part.paragraphs())
    assert part.latest is not None


def test_error_ends_the_fit_before_its_first_step(tmp_path: Path, against: Path) -> None:
    model = Linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = TensorDataset(torch.tensor(rows(1, 0.8), dtype=torch.float32), torch.zeros(N, 1))
    with pytest.raises(ConfigurationError, match=r"ended before its first step by on_drift='error': .*c"):
        trainer(tmp_path, callbacks=[gate(against, "error")], max_epochs=1).fit(model, DataLoader(data, 60))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_columns_that_the_model_does_not_see_are_told_how_to_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    table = dict(zip(NAMES, rows(0).T, strict=True)) | {"not seen": rows(7)[:, 0]}
    inspect(table, intervals=False).save(path)
    data = TensorDataset(torch.tensor(rows(1), dtype=torch.float32), torch.zeros(N, 1))
    with pytest.raises(ConfigurationError, match=r"make the reference without them: --target 'not seen'\.$"):
        trainer(tmp_path, callbacks=[gate(path, "error")], max_epochs=1).fit(Linear(), DataLoader(data, 60))


def test_a_callable_is_given_the_report_and_may_end_the_fit(tmp_path: Path, against: Path) -> None:
    told: list[DriftReport] = []
    fit(tmp_path, rows(1, 0.8), [gate(against, told.append)])
    assert [report.answer for report in told] == ["drift"]

    def stop(_: DriftReport) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, rows(1, 0.8), [gate(against, stop)])


@pytest.mark.filterwarnings("ignore:Drift from:UserWarning")
def test_weights_are_those_of_a_fit_without_it(tmp_path: Path, against: Path) -> None:
    found = [
        fit(tmp_path, rows(1, 0.8), callbacks)
        for callbacks in ([], [gate(against)], [SloppyMonitor(input=gate(against), hessian=None, fisher=None)])
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name])


def test_inputs_of_other_names_are_not_compared(tmp_path: Path, against: Path) -> None:
    part = InputSpectrum(against=against)
    with pytest.warns(UserWarning, match="have 0 of the 5 columns .* pass feature_names="):
        fit(tmp_path, rows(1), [part])
    assert part.drift is None
    assert part.latest is not None  # the measurement itself went on
    with pytest.raises(ConfigurationError, match=r"on_drift='error'.* have 0 of the 5 columns"):
        fit(tmp_path, rows(1), [InputSpectrum(against=against, on_drift="error")])


def test_inputs_that_cannot_be_measured_do_not_pass_the_gate(tmp_path: Path, against: Path) -> None:
    values = rows(1)
    values[3, 2] = np.inf
    with (
        pytest.raises(ConfigurationError, match="on_drift='error': the inputs could not be measured"),
        pytest.warns(UserWarning, match="measurement failed"),
    ):
        fit(tmp_path, values, [gate(against, "error")])


def outcome(folder: Path, against: Path, on_drift: str, shift: float, **options: Any) -> dict[str, Any]:
    part = gate(against, on_drift)
    data = TensorDataset(torch.tensor(rows(1, shift), dtype=torch.float32), torch.zeros(N, 1))
    error, said = "", []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer(folder, callbacks=[part], max_epochs=1, **options).fit(Linear(), DataLoader(data, 60))
        except ConfigurationError as raised:
            error = str(raised)
        said = [str(each.message) for each in caught if str(each.message).startswith("Drift from")]
    assert part.drift is not None
    numbers = {each.name: [each.value, *each.normal] for each in part.drift.statistics}
    return {
        "answer": part.drift.answer, "responsible": list(part.drift.responsible), "numbers": numbers,
        "error": error, "warned": said, "rows": part.drift.rows,
    }  # fmt: skip


def outcomes(folder: Path, against: Path, **options: Any) -> dict[str, Any]:
    cases = {"error": ("error", 0.8), "warn": ("warn", 0.8), "same": ("error", 0.0)}
    return {name: outcome(folder / name, against, *case, **options) for name, case in cases.items()}


@pytest.mark.distributed
def test_two_processes_have_the_verdict_of_one(tmp_path: Path, against: Path) -> None:
    alone = outcomes(tmp_path / "one", against)
    assert {name: each["answer"] for name, each in alone.items()} == {"error": "drift", "warn": "drift", "same": "same"}
    two = ranks.run(__file__, tmp_path, str(against))
    assert len(two) == 2
    for rank, found in enumerate(two):
        for name, one in alone.items():
            other = found[name]
            for key in ("answer", "responsible", "error", "rows"):
                assert other[key] == one[key], (rank, name, key)
            assert bool(other["error"]) == (name == "error")
            for number, values in one["numbers"].items():
                assert other["numbers"][number] == pytest.approx(values, rel=1e-6, abs=1e-9), (name, number)
    assert two[0]["warn"]["warned"] == alone["warn"]["warned"] != []


def test_mistakes_are_refused_at_once(tmp_path: Path, against: Path) -> None:
    with pytest.raises(ConfigurationError, match="on_drift='stop' is unknown"):
        InputSpectrum(against=against, on_drift="stop")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="InputSpectrum got against= a dict; pass the path of the JSON"):
        InputSpectrum(against={})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="nothing to compare with"):
        InputSpectrum(on_drift="error")
    with pytest.raises(ConfigurationError, match=r"alpha=0.6 is no level"):
        InputSpectrum(against=against, alpha=0.6)
    with pytest.raises(ConfigurationError, match=r"There is no file .*nowhere.json"):
        fit(tmp_path, rows(1), [InputSpectrum(against=tmp_path / "nowhere.json")])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = outcomes(target.parent / target.stem, Path(sys.argv[2]), devices=2, strategy="ddp")
    target.write_text(json.dumps(made))
    ranks.leave()
