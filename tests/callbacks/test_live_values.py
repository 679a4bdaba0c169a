"""Every number on every curve against the functional of its own spectrum, written out here with numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import Classifier, blobs, loader, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    Instrument,
    JacobianSpectrum,
    Measurement,
    Schedule,
    fisher_spectrum,
    input_spectrum,
)
from lightning_sloppy.callbacks.curvature_instrument import CurvatureInstrument
from lightning_sloppy.callbacks.jacobian_spectrum import _without_structure
from lightning_sloppy.curvature.jacobian import weighted
from lightning_sloppy.probing.samples import probe_indices

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

TRAIN, PROBE, EPSILON = 500, 96, 7.0
Z = EPSILON / (2 * (TRAIN - 1))
"""By the training samples, not by those of the probe."""

NEVER = Schedule(every_n_epochs=1000)
"""At the start and at the end alone."""


class Wide(Classifier):
    """More than the 256 parameters up to which whole matrices are formed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))


def fitted(tmp_path: Any, part: Any, model: Any = None, data: Any = None, **options: Any) -> Any:
    """The Trainer behind a short fit."""
    torch.manual_seed(0)
    host = trainer(tmp_path, callbacks=[part], max_epochs=1, **options)
    host.fit(Wide() if model is None else model, loader(blobs(TRAIN)) if data is None else data)
    return host


def numbers(values: Tensor, floor: float) -> np.ndarray:
    """Eigenvalues above rounding, descending."""
    found = values.double().numpy()
    return np.sort(found[found > floor])[::-1]


def at(values: np.ndarray, z: float) -> float:
    return float((values / (values + z)).sum())


def holding(values: np.ndarray, fraction: float) -> float:
    return float(np.searchsorted(values.cumsum(), fraction * values.sum() * (1 - 1e-12)) + 1)


def without_scale(values: np.ndarray) -> dict[str, float]:
    total = values.sum()
    return {
        "effective_dimension": at(values, 1e-3 * total),
        "effective_dimension_fine": at(values, 1e-4 * total),
        "effective_dimension_coarse": at(values, 1e-2 * total),
        "n90": holding(values, 0.9),
    }


def halved(values: np.ndarray) -> dict[str, float]:
    return {
        "effective_dimension_half_samples": at(values, 1e-3 * values.sum()),
        "n90_half_samples": holding(values, 0.9),
    }


def ranks(values: np.ndarray) -> dict[str, float]:
    fractions = values / values.sum()
    return {
        "participation_ratio": float(values.sum() ** 2 / (values**2).sum()),
        "effective_rank": float(values.sum() / values[0]),
        "entropy_rank": math.exp(-float((fractions * np.log(fractions)).sum())),
        "stable_rank": float((values**2).sum() / values[0] ** 2),
    }


def at_prior(values: np.ndarray) -> dict[str, float]:
    return {
        "effective_dimension_at_prior": at(values, Z),
        "effective_dimension_at_prior_fine": at(values, Z / 10),
        "effective_dimension_at_prior_coarse": at(values, 10 * Z),
        "eigenvalue_count": float((values >= Z).sum()),
        "z": Z,
        "epsilon": EPSILON,
    }


SHAPE = {"decades", "slope", "slope_times_rank", "slope_r_squared", "knee"}
"""Compared in test_shape_of_spectra.py."""


def assert_all(host: Any, event: Measurement, right: Mapping[str, float], elsewhere: set[str]) -> None:
    """Every estimate is one of these or is checked elsewhere, here and in the Trainer's metrics."""
    assert set(event.estimates) - elsewhere == set(right)
    for name, value in right.items():
        # What is below the rounding floor counts in some sums and not in others.
        assert event.estimates[name].value == pytest.approx(value, rel=1e-4), name
        assert float(host.callback_metrics[f"sloppy_{event.group}/{name}"]) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
def test_fisher(tmp_path: Any, kind: Any) -> None:
    part = FisherSpectrum(kind=kind, num_samples=PROBE, epsilon=EPSILON, schedule=NEVER, strict=True)
    host = fitted(tmp_path, part)
    event = part.latest
    values = numbers(event.spectrum.eigenvalues, event.spectrum.floor)
    half = numbers(event.spectrum.half_eigenvalues, event.spectrum.floor)
    assert len({round(value, 3) for value in at_prior(values).values()}) >= 5, "no two curves are alike"
    right = {
        "largest": float(event.spectrum.eigenvalues[0]),
        "trace": float(event.spectrum.eigenvalues.sum()),
        **without_scale(values),
        **halved(half),
        **ranks(values),
        **at_prior(values),
        "effective_dimension_at_prior_half_samples": at(half, Z),
        "eigenvalue_count_half_samples": float((half >= Z).sum()),
        "degrees_of_freedom_2": float(((values / (values + Z)) ** 2).sum()),
        "num_parameters": 403.0,
        "num_samples": float(PROBE),
    }
    assert_all(host, event, right, SHAPE)
    assert {quantity.name for quantity in part.quantities} == set(event.estimates)


@pytest.mark.parametrize("normalize", [True, False])
def test_jacobian(tmp_path: Any, normalize: bool) -> None:
    part = JacobianSpectrum(normalize=normalize, num_samples=PROBE, null=True, schedule=NEVER, strict=True)
    host = fitted(tmp_path, part)
    event = part.latest
    values = numbers(event.spectrum.eigenvalues, event.spectrum.floor)
    half = numbers(event.spectrum.half_eigenvalues, event.spectrum.floor)
    verdict = event.verdicts[event.spectrum.matrix]
    right = {
        **without_scale(values),
        **halved(half),
        **{name: ranks(values)[name] for name in ("entropy_rank", "participation_ratio")},
        "null_effective_dimension": verdict.null_dimension,
        "null_slope_times_rank": -verdict.null_spread,
        "largest_fraction": float(event.spectrum.eigenvalues[0] / event.spectrum.eigenvalues.sum()),
        "num_outputs": 3.0,
        "num_parameters": 403.0,
        "num_samples": float(PROBE),
    }
    assert_all(host, event, right, SHAPE | {"largest_sample_fraction"})
    assert {quantity.name for quantity in part.quantities} == set(event.estimates)
    assert verdict.null_spread > 0


def per_sample_norms(model: Any, inputs: Tensor) -> Tensor:
    """Squared norm of the Jacobian of the outputs of each sample, by a backward for each output."""
    found = []
    for x in inputs:
        outputs = model.net(x[None])[0]
        rows = [torch.autograd.grad(one, list(model.net.parameters()), retain_graph=True) for one in outputs]
        found.append(sum(float(part.square().sum()) for row in rows for part in row))
    return torch.tensor(found)


def test_a_sample_that_holds_the_trace_is_named_by_its_place_in_the_data(tmp_path: Any) -> None:
    inputs, targets = blobs(TRAIN).tensors
    place = int(probe_indices(TRAIN, PROBE, 5)[40])
    inputs[place] *= 100
    part = JacobianSpectrum(num_samples=PROBE, seed=5, schedule=NEVER)
    model = Classifier(lr=0.0)
    with pytest.warns(UserWarning, match=f"Sample {place:,} of the training data contributes"):
        fitted(tmp_path, part, model, DataLoader(TensorDataset(inputs, targets), 50))
    norms = per_sample_norms(model, inputs[probe_indices(TRAIN, PROBE, 5)])
    fraction = float(norms[40] / norms.sum())
    assert fraction > 0.1
    assert part.latest.estimates["largest_sample_fraction"].value == pytest.approx(fraction, rel=1e-4)


class Small(Classifier):
    """Few enough parameters for whole matrices."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("make", [Wide, Small])
def test_hessian(tmp_path: Any, make: Callable[..., Any]) -> None:
    part = HessianSpectrum(k=4, num_samples=PROBE, epsilon=EPSILON, schedule=NEVER, strict=True)
    model = make(lr=0.2)
    host = fitted(tmp_path, part, model)
    event = part.latest
    hessian, gauss_newton = event.spectrum, event.companions["gauss_newton"]
    values = numbers(gauss_newton.eigenvalues, gauss_newton.floor)
    exact = make is Small
    inputs, targets = (tensor[probe_indices(TRAIN, PROBE, 0)] for tensor in blobs(TRAIN).tensors)
    loss = float(nn.functional.cross_entropy(model.net(inputs), targets).detach())
    known = (hessian.eigenvalues - hessian.residuals).numpy()
    total = sum(p.numel() for p in model.parameters())
    right = {
        "largest": hessian.largest,
        "largest_residual": hessian.largest_residual,
        "smallest": hessian.smallest,
        "smallest_residual": hessian.smallest_residual,
        "trace": hessian.trace.value,
        "converged_above_z": float((known > Z).sum()),
        **without_scale(values),
        **({} if exact else halved(numbers(gauss_newton.half_eigenvalues, gauss_newton.floor))),
        "participation_ratio": ranks(values)["participation_ratio"],
        **at_prior(values),
        "gauss_newton_samples": float(PROBE),
        "num_parameters": float(total),
        "num_samples": float(PROBE),
        "subspace_baseline": 4 / total,
    }
    assert_all(host, event, right, SHAPE | {"loss", "gauss_newton_trace", *ALONG})
    assert event.estimates["loss"].value == pytest.approx(loss, rel=1e-5)
    assert event.estimates["largest"].value > event.estimates["smallest"].value
    trace = event.estimates["gauss_newton_trace"]
    assert abs(trace.value - float(gauss_newton.trace.value)) <= 4 * trace.standard_error + 1e-6 * trace.value
    if not exact:
        assert right["largest_residual"] != right["smallest_residual"]
        assert event.spectrum.trace.standard_error > 0
        assert abs(trace.value - hessian.trace.value) > 1e-3 * trace.value, "not the trace of the Hessian"


ALONG = {"gradient_fraction", "displacement_fraction", "overlap", "sharpness"}


def test_what_lies_along_the_stiffest_directions_by_hand(tmp_path: Any) -> None:
    """Dense Hessian, gradient and displacement in float64; the eigenvectors of the start from the weights there."""
    torch.manual_seed(0)
    model = Small(lr=0.05)
    data = blobs(TRAIN)
    indices = probe_indices(TRAIN, 1024, 0)
    inputs, targets = data.tensors[0][indices].double(), data.tensors[1][indices]

    def looked_at() -> tuple[Tensor, Tensor, Tensor]:
        net = Small().net.double()
        net.load_state_dict(model.net.state_dict())
        parameters = list(net.parameters())
        value = nn.functional.cross_entropy(net(inputs), targets)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, create_graph=True)])
        rows = [
            torch.cat([r.flatten() for r in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in gradient
        ]
        eigen = torch.linalg.eigh(torch.stack(rows))
        top = eigen.eigenvectors[:, eigen.eigenvalues.abs().argsort(descending=True)[:3]]
        return top, gradient.detach(), torch.cat([p.detach().flatten() for p in parameters])

    before = looked_at()
    part = HessianSpectrum(k=3, schedule=NEVER, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(model, loader(data))
    top, gradient, weights = looked_at()
    found = part.latest.estimates
    moved = weights - before[2]
    assert found["gradient_fraction"].value == pytest.approx(
        float((top.T @ gradient).square().sum() / gradient.square().sum()), rel=1e-3
    )
    assert found["displacement_fraction"].value == pytest.approx(
        float((top.T @ moved).square().sum() / moved.square().sum()), rel=1e-3
    )
    assert found["overlap"].value == pytest.approx(float((top.T @ before[0]).square().sum() / 3), rel=1e-3)
    assert found["sharpness"].value == pytest.approx(0.05 * found["largest"].value, rel=1e-6)
    assert 0.01 < found["overlap"].value < 0.99
    assert "overlap" not in part.measurements[0].estimates
    assert "displacement_fraction" not in part.measurements[0].estimates


def test_the_overlap_is_that_with_the_measurement_before(tmp_path: Any) -> None:
    """Weights that stand still after the first epoch have the same directions in the second and third."""

    class Halting(Small):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch:
                for group in self.trainer.optimizers[0].param_groups:
                    group["lr"] = 0.0

    torch.manual_seed(0)
    part = HessianSpectrum(k=3, num_samples=PROBE, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=3).fit(Halting(lr=0.2), loader(blobs(200)))
    overlaps = [event.estimates["overlap"].value for event in part.measurements[1:]]
    assert overlaps[0] < 0.99
    assert overlaps[1:] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_rates_that_differ_have_no_sharpness(tmp_path: Any) -> None:
    class Two(Small):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([{"params": self.net[0].parameters()}, {"params": self.net[2].parameters()}], 0.1)

    class Apart(Two):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            optimizer.param_groups[1]["lr"] = 0.01
            return optimizer

    for make, there in ((Two, True), (Apart, False)):
        part = HessianSpectrum(k=2, num_samples=PROBE, schedule=NEVER, strict=True)
        fitted(tmp_path, part, make())
        assert ("sharpness" in part.latest.estimates) is there


@pytest.mark.parametrize("kind", ["correlation", "covariance", "second_moment"])
def test_inputs(tmp_path: Any, kind: Any) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((TRAIN, 12)) * np.logspace(0, -2, 12) @ rng.standard_normal((12, 12)) + 0.3
    rows[:, 5] = 2.0
    rows = rows.astype(np.float32).astype(np.float64)
    data = TensorDataset(torch.tensor(rows, dtype=torch.float32), torch.randint(3, (TRAIN,)))
    part = InputSpectrum(kind=kind, strict=True)

    class Twelve(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(12, 3)

    host = fitted(tmp_path, part, Twelve(), DataLoader(data, 50))
    event = part.latest

    def matrix(which: str, some: np.ndarray) -> np.ndarray:
        if which == "second_moment":
            return some.T @ some / len(some)
        if which == "covariance":
            return np.cov(some.T, bias=True)
        return np.corrcoef(np.delete(some, 5, axis=1).T)

    def values(which: str, some: np.ndarray = rows) -> np.ndarray:
        found = np.linalg.eigvalsh(matrix(which, some))[::-1]
        return found[found > 1e-12 * found[0]]

    own = values(kind)
    half = values(kind, rows[probe_indices(TRAIN, 50_000, 0).numpy()][: TRAIN // 2])
    verdict = event.verdicts[kind]
    right = {
        **without_scale(own),
        **halved(half),
        "n95": holding(own, 0.95),
        "n99": holding(own, 0.99),
        "covariance_n95": holding(values("covariance"), 0.95),
        **{name: value for name, value in ranks(own).items() if name != "stable_rank"},
        "null_participation_ratio": verdict.null_dimension,
        "null_slope_times_rank": -verdict.null_spread,
        "floor": event.spectrum.floor,
        "resolved": float(len(own)),
        "trace": float(np.trace(matrix(kind, rows))),
        "largest": float(own[0]),
        "num_features": 11.0 if kind == "correlation" else 12.0,
        "constant_columns": 1.0,
        "num_samples": float(TRAIN),
    }
    for side in ("covariance", "second_moment"):
        other = values(side)
        right |= {
            f"{side}_participation_ratio": ranks(other)["participation_ratio"],
            f"{side}_largest": float(other[0]),
            f"{side}_effective_dimension": without_scale(other)["effective_dimension"],
            f"{side}_decades": float(np.log10(other[0] / other[-1])),
        }
    sides = {f"{side}_slope_times_rank" for side in ("covariance", "second_moment")}
    pairs = np.corrcoef(np.delete(rows, 5, axis=1).T)
    repeated = bool((np.abs(pairs - np.eye(11)) > 0.95).any())
    right["repeated_columns"] = 0.0
    ends = {quantity.name for quantity in part.quantities if quantity.name.endswith(("_low", "_high"))}
    assert_all(host, event, right, SHAPE | sides | ends)
    other = {"missing_rate", "negative_eigenvalues", "set_aside_columns"}  # of data with missing values
    other |= {"deduplicated_participation_ratio", "deduplicated_decades"}  # of data with repeated columns
    assert not repeated
    assert {quantity.name for quantity in part.quantities} - other == set(event.estimates)
    assert len({right["n95"], right["n99"], right["covariance_n95"]}) >= 2


def test_every_instrument_of_curvature_has_one_scale() -> None:
    """So the two tests above see all that stands at the scale of the prior."""
    assert {made.__name__ for made in CurvatureInstrument.__subclasses__()} == {"HessianSpectrum", "FisherSpectrum"}
    assert issubclass(CurvatureInstrument, Instrument)


@pytest.mark.parametrize("seed", [0, 5])
def test_sampled_targets_and_probe_are_those_of_the_seed(tmp_path: Any, seed: int) -> None:
    part = FisherSpectrum(kind="sampled", num_samples=PROBE, seed=seed, schedule=NEVER, strict=True)
    model = Wide(lr=0.0)
    fitted(tmp_path, part, model)
    inputs, targets = (tensor[probe_indices(TRAIN, PROBE, seed)] for tensor in blobs(TRAIN).tensors)
    right = fisher_spectrum(model, [(inputs, targets)], nn.CrossEntropyLoss(), kind="sampled", seed=seed)
    other = fisher_spectrum(model, [(inputs, targets)], nn.CrossEntropyLoss(), kind="sampled", seed=seed + 1)
    for event in part.measurements:
        torch.testing.assert_close(event.spectrum.eigenvalues, right.eigenvalues, rtol=1e-4, atol=1e-7)
    assert abs(float(other.eigenvalues[0] / right.eigenvalues[0]) - 1) > 1e-3


@pytest.mark.parametrize("seed", [0, 4])
def test_inputs_are_read_as_many_as_asked_for_by_the_seed(tmp_path: Any, seed: int) -> None:
    part = InputSpectrum(max_samples=30, seed=seed, null=False, strict=True)
    fitted(tmp_path, part)
    right = input_spectrum(blobs(TRAIN).tensors[0][probe_indices(TRAIN, 30, seed)])
    torch.testing.assert_close(part.latest.spectrum.eigenvalues, right.eigenvalues)
    assert part.latest.num_samples == 30


def test_each_of_few_samples_has_its_part_of_the_trace(tmp_path: Any) -> None:
    """Of eight a sample holds an eighth: no reason for a warning, which would end this test."""
    part = JacobianSpectrum(num_samples=8, schedule=NEVER, strict=True)
    fitted(tmp_path, part)
    assert part.latest.estimates["largest_sample_fraction"].value > 0.1
    assert not part.latest.notes


@pytest.mark.slow
@pytest.mark.parametrize("make", [JacobianSpectrum, FisherSpectrum, HessianSpectrum])
def test_in_train_mode_every_measurement_has_one_random_stream(tmp_path: Any, make: Any) -> None:
    """Dropout acts, and alike each time: weights that stand still have one value."""
    values = {}
    for mode in ("train", "eval"):
        part = make(num_samples=32, mode=mode, strict=True)
        trainer(tmp_path, callbacks=[part], max_epochs=2).fit(Classifier(lr=0.0, dropout=0.5), loader(blobs(64)))
        found = [event.estimates["effective_dimension"].value for event in part.measurements]
        assert found == [found[0]] * 3
        assert {event.mode for event in part.measurements} == {mode}
        values[mode] = found[0]
    assert values["train"] != pytest.approx(values["eval"], rel=1e-3)


def test_a_null_has_the_mean_square_of_the_inputs_and_not_their_variance() -> None:
    inputs = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0)) + 3
    (found,) = _without_structure(weighted([(inputs, inputs)]), seed=1)
    assert found[0].shape == inputs.shape
    assert float(found[0].square().mean()) == pytest.approx(float(inputs.square().mean()), rel=0.03)
    assert abs(float(found[0].mean())) < 0.2
    assert torch.equal(found[1], torch.ones(2000))
