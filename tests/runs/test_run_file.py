"""The file of a run: what was measured is read again, whatever ended the fit."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support import instruments, killed, ranks
from support.alike import differences
from support.certified import QUICK
from support.instruments import DECLARED
from support.tiny import SAFELY, Classifier, blobs, loader, trainer

import lightning_sloppy
from lightning_sloppy import (
    Certificate,
    ConfigurationError,
    Cost,
    Density,
    EffectiveDimensionEarlyStopping,
    Estimate,
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    JacobianSpectrum,
    Measurement,
    Schedule,
    SloppyMonitor,
    Spectrum,
    Status,
    ValidationErrors,
    hessian_spectrum,
    load_run,
)
from lightning_sloppy.certificate import Reason
from lightning_sloppy.errors import Note
from lightning_sloppy.quantities import Declaration, Quantity
from lightning_sloppy.records import SloppinessVerdict
from lightning_sloppy.runs import run_file
from lightning_sloppy.runs.json_values import from_json, to_json
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from lightning_sloppy.runs.run_writer import RunWriter

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def events(folder: Path) -> list[dict]:
    """As a reader that knows nothing of the package: strict JSON, line by line."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = (folder / run_file.FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def watcher(**options) -> SloppyMonitor:
    parts = {"hessian": HessianSpectrum(k=2, num_samples=24), "fisher": FisherSpectrum(num_samples=24)}
    return SloppyMonitor(**{**parts, "strict": True, **options})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One fit with every instrument of the package, and several of their options."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fitted")
    everything = SloppyMonitor(
        jacobian=JacobianSpectrum(num_samples=40),
        hessian=HessianSpectrum(k=3, num_samples=40, probes=3, steps=12),
        fisher=FisherSpectrum(num_samples=40),
        certificate=FinalCertificate(learning=QUICK),
        early_stopping=EffectiveDimensionEarlyStopping(patience=50),
        extra=[
            FisherSpectrum(kind="exact", num_samples=24),
            HessianSpectrum(name="head", parameters="net.4.*", k=2),
            ValidationErrors(),
        ],
        strict=True,
    )
    host = trainer(folder, callbacks=[everything], max_epochs=2, logger=CSVLogger(folder, name="", version="run"))
    host.fit(Classifier(), loader(blobs(600)), loader(blobs(60, seed=1), shuffle=False))
    return host, everything


@pytest.mark.slow
def test_every_record_of_every_instrument_is_read_as_it_was(fitted):
    host, everything = fitted
    run, read = everything.record(), load_run(host.log_dir)
    of_the_package = {DECLARED[name].name for name in DECLARED}
    assert len(of_the_package) == len(instruments.of_the_package()) == 7
    assert set(run.instruments) == of_the_package | {"fisher_exact", "head"}
    assert all(
        len(each.measurements) >= 3 or name in {"input", "certificate"} for name, each in run.instruments.items()
    )
    measurements = [m for each in run.instruments.values() for m in each.measurements]
    assert any(m.spectrum is not None and m.spectrum.density is not None for m in measurements)
    assert any(m.spectrum is not None and m.spectrum.half_eigenvalues is not None for m in measurements)
    assert any(m.companions for m in measurements)
    assert any(m.verdicts for m in measurements)
    assert any(m.certificate is not None and m.certificate.valid for m in measurements)
    assert not differences(run, read)
    assert read.facts.end == "ended"
    assert read.facts.epochs == 2
    assert read.instruments["hessian"].paragraphs == run.instruments["hessian"].paragraphs != ()
    assert Path(read.facts.folder) == Path(host.log_dir)


@pytest.mark.slow
def test_a_line_is_strict_json_with_the_documented_keys(fitted):
    host, _ = fitted
    found = events(Path(host.log_dir))
    assert [event["event"] for event in found] == ["head", *["measurement"] * (len(found) - 2), "end"]
    assert found[0]["format"] == 1
    assert found[0]["begins_at"] == 0
    first = found[1]
    assert {"step", "epoch", "group", "spectrum", "estimates", "status", "cost", "certificate", "facts"} <= set(first)
    assert "eigenvectors" not in first["spectrum"]
    steps = [event["facts"].get("steps") for event in found[1:-1]]
    # What has not changed is not repeated.
    assert steps.count(None) > len(steps) / 2
    assert "software" not in found[-1]["facts"]


@pytest.mark.slow
def test_a_file_that_is_cut_anywhere_gives_everything_before_the_cut(fitted, tmp_path):
    host, _ = fitted
    whole, content = load_run(host.log_dir), (Path(host.log_dir) / run_file.FILE).read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == 10]
    rng = np.random.default_rng(0)
    inside = [int(rng.integers(ends[0], len(content))) for _ in range(40)]
    for cut in [ends[0], ends[3] - 1, ends[3], ends[3] + 1, *inside, len(content) - 1]:
        (tmp_path / run_file.FILE).write_bytes(content[:cut])
        complete = sum(end - 1 <= cut for end in ends) - 1  # without its newline a line is complete, too
        read = load_run(tmp_path)
        assert sum(len(each.measurements) for each in read.instruments.values()) == min(complete, len(ends) - 2)
        for name, each in read.instruments.items():
            assert not differences(
                list(each.measurements), whole.instruments[name].measurements[: len(each.measurements)]
            )
        assert read.facts.end == ("ended" if complete == len(ends) - 1 else "")


def test_training_is_bitwise_what_it_is_without_the_file(tmp_path):
    def weights(logger):
        torch.manual_seed(3)
        model = Classifier(dropout=0.3)
        trainer(tmp_path, callbacks=[watcher(bound=None, hessian=None)], logger=logger).fit(model, loader())
        return model.state_dict(), torch.get_rng_state()

    without, stream = weights(False)
    logged, other = weights(CSVLogger(tmp_path, name="a", version=0))
    assert (tmp_path / "a" / "version_0" / run_file.FILE).is_file()
    assert all(torch.equal(value, logged[name]) for name, value in without.items())
    assert torch.equal(stream, other)


@pytest.mark.parametrize("options", [{"logger": False}, {"logger": True, "fast_dev_run": 2}], ids=["none", "fast"])
def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    part = FisherSpectrum(num_samples=16, strict=True)
    host = trainer(tmp_path, callbacks=[part], **options)
    host.fit(Classifier(), loader())
    assert part.measurements
    assert not list(tmp_path.rglob("*"))


def test_an_address_of_a_store_is_no_folder_of_this_machine(tmp_path, monkeypatch):
    class Remote(CSVLogger):
        @property
        def log_dir(self):
            return "store://bucket/run"

        @property
        def experiment(self):
            return None

        def log_metrics(self, metrics, step=None):
            pass

        def save(self):
            pass

    monkeypatch.chdir(tmp_path)
    part = FisherSpectrum(num_samples=16, strict=True)
    host = trainer(
        tmp_path, callbacks=[part], logger=[Remote(tmp_path / "remote"), CSVLogger(tmp_path, version="here")]
    )
    host.fit(Classifier(), loader())
    assert Path(part.facts.folder) == tmp_path / "lightning_logs" / "here"
    assert part.facts.loggers[0] == ("Remote", "store://bucket/run")
    assert not (tmp_path / "store:").exists()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty.*")
def test_a_killed_run_is_read_and_joined_with_the_one_that_resumes_it(tmp_path):
    ranks.run(killed.__file__, tmp_path, "10", "logged", count=1, ends_with=-signal.SIGKILL)
    cut = load_run(tmp_path)
    assert cut.facts.end == ""
    assert (cut.facts.epochs, cut.facts.steps) == (1, 8)  # within the last batch of the second epoch
    assert cut.facts.measuring_seconds > 0
    assert not any(each.paragraphs for each in cut.instruments.values())
    assert [m.step for m in cut.instruments["fisher"].measurements] == [0, 1, 3, 5, 7]
    with (Path(cut.facts.folder) / run_file.FILE).open("ab") as file:
        file.write(b'{"event":"measurement","step":9,"group":"fis')  # as if it had been killed while it wrote
    _, whole = killed.fit(tmp_path / "whole")
    host, resumed = killed.fit(tmp_path, checkpoint=tmp_path / "last.ckpt", logged=True)
    read = load_run(host.log_dir)
    assert read.facts.resumed_at == (8,)  # Lightning counts the batch of the checkpoint when the next one starts
    assert read.facts.end == "ended"
    assert read.facts.started == cut.facts.started
    assert read.facts.earlier_seconds == 0 < resumed.record().facts.earlier_seconds
    spent = sum(m.cost.seconds for each in read.instruments.values() for m in each.measurements)
    assert spent < read.facts.measuring_seconds
    assert read.facts.measuring_seconds == resumed.record().facts.measuring_seconds > cut.facts.measuring_seconds
    for name, each in read.instruments.items():
        expected = [*cut.instruments[name].measurements, *resumed.record().instruments[name].measurements]
        assert not differences(list(each.measurements), expected)
        alone = {m.step: m.estimates for m in whole.measurements[name]}
        for m in each.measurements:
            if m.step in alone and name != "input":
                assert {n: e for n, e in m.estimates.items() if n != "overlap"} == {
                    n: e for n, e in alone[m.step].items() if n != "overlap"
                }
    assert [m.step for m in read.instruments["fisher"].measurements] == [0, 1, 3, 5, 7, 8, 9, 11, 13, 15]


@pytest.mark.slow
def test_steps_behind_the_checkpoint_of_a_resumed_run_are_left_out(tmp_path):
    def run(epochs, checkpoint=None):
        torch.manual_seed(0)
        part = FisherSpectrum(schedule=Schedule(every_n_steps=2), num_samples=16, strict=True)
        logger = TensorBoardLogger(tmp_path, name="", version="run")
        host = trainer(tmp_path, callbacks=[part], max_epochs=epochs, logger=logger)
        host.fit(Classifier(), loader(blobs(64)), ckpt_path=checkpoint, **(SAFELY if checkpoint else {}))
        return host, part

    host, first = run(2)
    host.save_checkpoint(tmp_path / "run.ckpt")
    _, abandoned = run(4, tmp_path / "run.ckpt")
    host, second = run(3, tmp_path / "run.ckpt")
    read = load_run(host.log_dir)
    assert read.facts.resumed_at == (8,)
    expected = [*first.measurements, *second.measurements]
    assert [m.step for m in expected] == [0, 1, 3, 5, 7, 8, 9, 11]
    assert not differences(list(read.instruments["fisher"].measurements), expected)
    assert len(events(Path(host.log_dir))) == 3 * 2 + len(expected) + len(abandoned.measurements)
    # A fit that starts again replaces all of it.
    host, new = run(1)
    read = load_run(host.log_dir)
    assert not differences(list(read.instruments["fisher"].measurements), new.measurements)
    assert read.facts.resumed_at == ()


def test_a_second_fit_of_one_trainer_is_a_part_of_its_own(tmp_path):
    part = FisherSpectrum(num_samples=16, strict=True)
    host = trainer(tmp_path, callbacks=[part], max_epochs=1, logger=CSVLogger(tmp_path))
    module = Classifier()
    host.fit(module, loader())
    first = list(part.measurements)
    host.fit_loop.max_epochs = 2
    host.fit(module, loader())
    read = load_run(tmp_path)
    assert [event["begins_at"] for event in events(Path(host.log_dir)) if event["event"] == "head"] == [0, 3]
    assert not differences(list(read.instruments["fisher"].measurements), [*first, *part.measurements])


def test_an_error_in_writing_warns_once_and_what_is_missing_follows(tmp_path, monkeypatch):
    original, calls = run_file.append, []

    def full(path, event):
        calls.append(event["event"])
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        original(path, event)

    monkeypatch.setattr(run_file, "append", full)
    part = FisherSpectrum(num_samples=16, strict=True)
    host = trainer(tmp_path, callbacks=[part], max_epochs=4, logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match=r"The file of the run could not be written in .*No space left") as said:
        host.fit(Classifier(), loader())
    assert len([w for w in said if "could not be written" in str(w.message)]) == 1
    assert host.current_epoch == 4
    assert not differences(part.record(), load_run(tmp_path))


@pytest.mark.filterwarnings("ignore:The fisher measurement failed.*")
def test_failed_measurements_are_in_the_file(tmp_path):
    class Broken(FisherSpectrum):
        def measure(self, trainer, pl_module, probe):
            raise RuntimeError("broken on purpose")

    part = Broken(num_samples=16, name="fisher")
    host = trainer(tmp_path, callbacks=[part], max_epochs=1, logger=CSVLogger(tmp_path))
    host.fit(Classifier(), loader())
    read = load_run(tmp_path).instruments["fisher"]
    assert [m.status for m in read.measurements] == [Status.FAILED, Status.FAILED]
    assert "broken on purpose" in read.measurements[0].notes[0]


# The values.


def tensors():
    """Of every type and shape that records hold, empty ones among them."""
    shapes = st.sampled_from([(0,), (1,), (3,), (2, 3), (0, 4), (2, 0), (1, 1)])
    kinds = st.sampled_from([torch.float64, torch.float32, torch.bool, torch.int64])

    def made(shape, kind, numbers):
        flat = torch.tensor((numbers * 6)[: math.prod(shape)], dtype=torch.float64)
        finite = torch.nan_to_num(flat, nan=0.0, posinf=1.0, neginf=-1.0).clamp(-1e6, 1e6)
        return (flat if kind.is_floating_point else finite).to(kind).reshape(shape)

    return st.builds(made, shapes, kinds, st.lists(st.floats(), min_size=1, max_size=4))


ESTIMATES = st.builds(Estimate, st.floats(), st.floats(), st.floats(), st.sampled_from(Status), st.booleans())
TEXTS = st.text().filter(lambda text: text not in {"NaN", "Infinity", "-Infinity"})
NOTES = st.builds(lambda words, cause, short: Note(words, cause=cause, short=short), st.text(), st.text(), st.text())
REASONS = st.builds(
    lambda words, flag, cause: Reason(words, flag=flag, cause=cause), st.text(), st.text(min_size=1), st.text()
)
SPECTRA = st.builds(
    Spectrum,
    eigenvalues=tensors(),
    dim=st.integers(),
    num_samples=st.integers(),
    matrix=st.text(),
    floor=st.floats(),
    status=st.sampled_from(Status),
    residuals=tensors(),
    largest=st.floats(),
    smallest=st.floats(),
    density=st.none()
    | st.builds(
        Density,
        diagonals=st.lists(tensors(), max_size=2).map(tuple),
        offdiagonals=st.lists(tensors(), max_size=2).map(tuple),
        nodes=tensors(),
        weights=tensors(),
        positive_semidefinite=st.booleans(),
        masses=tensors(),
    ),
    trace=st.none() | ESTIMATES,
    half_eigenvalues=st.none() | tensors(),
    converged=st.none() | tensors(),
    detail=st.dictionaries(st.text(), TEXTS | st.integers() | st.floats(), max_size=3),
)
MEASUREMENTS = st.builds(
    Measurement,
    step=st.integers(),
    epoch=st.integers(),
    group=st.text(),
    spectrum=st.none() | SPECTRA,
    estimates=st.dictionaries(st.text(), ESTIMATES, max_size=3),
    cost=st.builds(Cost, st.integers(), st.floats(), st.floats(), st.none() | st.integers(), st.text()),
    status=st.sampled_from(Status),
    notes=st.lists(st.text() | NOTES, max_size=2).map(tuple),
    certificate=st.none()
    | st.builds(
        Certificate,
        st.text(),
        st.text(),
        st.floats(),
        st.booleans(),
        st.integers(),
        st.floats(),
        reasons=st.lists(REASONS | st.text(), max_size=2).map(tuple),
        seed=st.none() | st.integers(),
        epsilon=st.floats(),
    ),
    companions=st.dictionaries(st.text(), SPECTRA, max_size=2),
    verdicts=st.dictionaries(
        st.text(),
        st.builds(SloppinessVerdict, st.just("yes"), st.text(), st.text(), *[st.floats() for _ in range(4)]),
        max_size=1,
    ),
)


def test_the_blocks_of_layers_are_read_as_they_were():
    found = hessian_spectrum(Classifier(), [blobs(32).tensors], torch.nn.functional.cross_entropy, k=2, by_layer=True)
    assert len(found.layers) == 2
    assert found.eigenvectors is None
    assert not differences(found, from_json(Spectrum, json.loads(json.dumps(to_json(found), allow_nan=False))))


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # making a measurement smaller takes minutes
)
@given(MEASUREMENTS)
def test_any_measurement_is_read_as_it_was(measurement):
    text = json.dumps(to_json(measurement), allow_nan=False)
    assert not differences(measurement, from_json(Measurement, json.loads(text)))


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324], dtype=torch.float64),
        torch.tensor([[1.0, math.nan], [2.0, 3.0]], dtype=torch.float64),
        torch.tensor([1.5, math.nan], dtype=torch.float32),
        torch.tensor([True, False]),
        torch.tensor([3, 2**60]),
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(0, dtype=torch.bool),
        torch.zeros(0, 4, dtype=torch.float64),
        torch.zeros(2, 0, dtype=torch.float64),
    ],
    ids=lambda values: f"{values.dtype}-{tuple(values.shape)}",
)
def test_a_tensor_keeps_its_values_type_and_shape(values):
    density = Density((values,), (), values, values, True, values)
    read = from_json(Density, json.loads(json.dumps(to_json(density), allow_nan=False)))
    assert not differences(density, read)
    if values.dtype == torch.float64:
        assert torch.equal(torch.signbit(read.nodes), torch.signbit(values))


def test_numbers_of_other_libraries_become_plain_ones():
    estimate = Estimate(np.float32(0.5), torch.tensor(2.0), np.float64("inf"))  # type: ignore[arg-type]
    assert from_json(Estimate, to_json(estimate)) == Estimate(0.5, 2.0, math.inf)
    assert to_json({"count": np.int64(3), "folder": Path("a"), "flag": np.bool_(True)}) == {
        "count": 3, "folder": "a", "flag": True,
    }  # fmt: skip


# What cannot be read.


def small_run(folder: Path, *, steps=(0, 1), begins_at=0, note="", kind="norm") -> Run:
    measurements = tuple(
        Measurement(step, 0, "norm", None, {"size": Estimate(step + 0.5)}, Cost(), Status.EXACT, notes=(note,))
        for step in steps
    )
    declaration = Declaration("norm", "Norm", (Quantity("size", "Length."),))
    facts = RunFacts(module="Net", folder=str(folder), software="lightning_sloppy 9.9")
    run = Run({"norm": InstrumentRun(kind, declaration, measurements, ("Text.",))}, facts)
    RunWriter(begins_at=begins_at).end(run)
    return run


def steps(folder: Path) -> list[int]:
    return [m.step for m in load_run(folder).instruments["norm"].measurements]


def test_parts_are_joined_by_the_steps_at_which_they_begin(tmp_path):
    small_run(tmp_path, steps=(0, 2, 4, 6))
    small_run(tmp_path, steps=(5, 6, 8), begins_at=5, note="abandoned")
    assert steps(tmp_path) == [0, 2, 4, 5, 6, 8]
    small_run(tmp_path, steps=(3, 5), begins_at=3)
    assert steps(tmp_path) == [0, 2, 3, 5]  # nothing of the second part is left
    assert load_run(tmp_path).facts.resumed_at == (3,)
    small_run(tmp_path, steps=(0,))
    assert steps(tmp_path) == [0]


def test_a_final_certificate_of_an_earlier_part_is_left_out(tmp_path):
    """It is for weights that the training has left."""
    small_run(tmp_path, steps=(9,), kind="certificate")
    assert steps(tmp_path) == [9]
    small_run(tmp_path, steps=(), begins_at=10, kind="certificate")  # still running
    assert steps(tmp_path) == []


def test_the_folder_above_is_enough_if_it_holds_one_run(tmp_path):
    small_run(tmp_path / "logs" / "name" / "version_0")
    assert steps(tmp_path / "logs") == steps(tmp_path / "logs" / "name" / "version_0" / run_file.FILE) == [0, 1]
    small_run(tmp_path / "logs" / "name" / "version_1")
    with pytest.raises(ConfigurationError, match=r"has 2 runs below it; pass the folder of one of them: .*version_0, "):
        load_run(tmp_path / "logs")


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no sloppy_run\.jsonl; pass the folder of a run"):
        load_run(tmp_path)
    with pytest.raises(ConfigurationError, match="does not exist; pass the folder of a run"):
        load_run(tmp_path / "nowhere")
    (tmp_path / run_file.FILE).write_text("")
    with pytest.raises(ConfigurationError, match="holds no run"):
        load_run(tmp_path)


def test_another_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    small_run(tmp_path)
    file = tmp_path / run_file.FILE
    file.write_text(file.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(
        ConfigurationError, match=r"format 2, and this version .* reads format 1.*lightning_sloppy 9\.9"
    ):
        load_run(tmp_path)


def test_what_a_later_version_adds_is_ignored_and_what_it_lacks_is_the_default(tmp_path):
    run = small_run(tmp_path)
    found = events(tmp_path)
    for event in found:
        event["new"] = 1
    del found[1]["notes"], found[1]["facts"]
    found[2]["estimates"]["size"]["new"] = {"a": 1}
    found.insert(2, {"event": "picture", "file": "a.png"})
    (tmp_path / run_file.FILE).write_text("".join(json.dumps(event) + "\n" for event in found))
    first, second = run.instruments["norm"].measurements
    read = load_run(tmp_path)
    assert not differences(list(read.instruments["norm"].measurements), [replace(first, notes=()), second])


def test_a_damaged_line_is_left_out_with_one_warning(tmp_path):
    small_run(tmp_path, steps=(0, 1, 2))
    lines = (tmp_path / run_file.FILE).read_text().splitlines(keepends=True)
    (tmp_path / run_file.FILE).write_text("".join([lines[0], lines[1], lines[2][:30] + "\n", *lines[3:]]))
    with pytest.warns(UserWarning, match="A line of .* cannot be read"):
        assert steps(tmp_path) == [0, 2]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_reads_it(tmp_path):
    small_run(tmp_path)
    asked = 'select(.event == "measurement") | [.group, .step, .estimates.size.value]'
    done = subprocess.run(["jq", "-c", asked, run_file.FILE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['["norm",0,0.5]', '["norm",1,1.5]']


def test_reading_needs_no_lightning():
    check = "from lightning_sloppy import load_run; import sys; print('lightning' in sys.modules)"
    run = subprocess.run(["python", "-c", check], capture_output=True, text=True, check=False)
    assert lightning_sloppy.load_run is load_run
    assert run.stdout.strip() in {"False", ""}
