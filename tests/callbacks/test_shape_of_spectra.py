"""Slope, decades and verdicts in a Trainer: each live number against the functional of its own spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny import SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    ConfigurationError,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    fisher_spectrum,
    jacobian_spectrum,
    relative_dimension,
    sloppiness,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def network() -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    model.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))
    return model


def wide(n: int = 400, d: int = 30, decades: float = 4.0) -> TensorDataset:
    """Features of correlated kinds, with two labels."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    inputs = rng.standard_normal((n, d)) * np.logspace(0, -decades / 2, d) @ axes.T
    return TensorDataset(torch.tensor(inputs, dtype=torch.float32), torch.tensor(inputs[:, :1], dtype=torch.float32))


class Line(Regressor):
    def __init__(self, features: int = 30) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, 12), nn.Tanh(), nn.Linear(12, 1))


@pytest.mark.slow
def test_every_group_has_the_shape_of_its_own_spectrum(tmp_path) -> None:
    parts = [JacobianSpectrum(strict=True), HessianSpectrum(k=2, strict=True), FisherSpectrum(strict=True)]
    host = trainer(tmp_path, callbacks=parts, max_epochs=1)
    host.fit(network(), loader(blobs(200)))
    for part in parts:
        event = part.latest
        shape = sloppiness(event.companions.get("gauss_newton", event.spectrum))
        for name, right in {
            "decades": shape.decades,
            "slope": shape.slope,
            "slope_times_rank": shape.slope * shape.resolved,
            "slope_r_squared": shape.r_squared,
            "knee": shape.knee or 0,
            "participation_ratio": shape.participation_ratio,
        }.items():
            assert event.estimates[name].value == pytest.approx(right), (part.name, name)
            assert float(host.callback_metrics[f"sloppy_{part.name}/{name}"]) == pytest.approx(right, rel=1e-5)


def test_a_quadrature_has_no_shape(tmp_path) -> None:
    part = HessianSpectrum(k=2, probes=4, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(network(), loader(blobs(200)))
    assert not {"decades", "slope_times_rank", "participation_ratio"} & set(part.latest.estimates)


@pytest.mark.parametrize("kind", ["correlation", "covariance", "second_moment"])
def test_inputs_are_judged_beside_their_null(tmp_path, kind) -> None:
    for data, answer in ((wide(), "yes"), (wide(decades=0.0), "no")):
        part = InputSpectrum(kind=kind, strict=True)
        host = trainer(tmp_path, callbacks=[part], max_epochs=1)
        host.fit(Line(), DataLoader(data, 50))
        event = part.latest
        assert {name: verdict.answer for name, verdict in event.verdicts.items()} == dict.fromkeys(
            {kind, "second_moment"}, answer
        )
        verdict, metrics = event.verdicts[kind], host.callback_metrics
        group = "input" if kind == "correlation" else f"input_{kind}"
        assert float(metrics[f"sloppy_{group}/null_participation_ratio"]) == pytest.approx(verdict.null_dimension)
        assert float(metrics[f"sloppy_{group}/null_slope_times_rank"]) == pytest.approx(-verdict.null_spread)
        assert 27 < verdict.null_dimension < 30
        words = " ".join(part.paragraphs())
        assert f"matrix is {'' if answer == 'yes' else 'not '}sloppy: its participation ratio is" in words


def test_too_few_features_are_said_once(tmp_path) -> None:
    part = InputSpectrum(strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(Classifier(), loader())
    words = " ".join(part.paragraphs())
    assert words.startswith("It is undetermined whether the inputs are sloppy: fewer than 10 eigenvalues are resolved")
    assert words.count("fewer than 10") == 1


def test_without_a_null_there_is_no_verdict(tmp_path) -> None:
    part = InputSpectrum(null=False, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(Line(), DataLoader(wide(), 50))
    assert not part.latest.verdicts
    assert not [name for name in part.latest.estimates if name.startswith("null")]


def test_the_network_is_judged_beside_its_start_on_gaussian_inputs(tmp_path) -> None:
    torch.manual_seed(0)
    model, data = Line(), wide()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    part = JacobianSpectrum(null=True, strict=True)
    host = trainer(tmp_path, callbacks=[part], max_epochs=2)
    host.fit(model, DataLoader(data, 50))
    first, last = part.measurements[0], part.latest
    values = [event.estimates["null_effective_dimension"].value for event in part.measurements]
    assert len(set(values)) == 1
    # By hand: the weights of the start, and normal numbers with the mean square of the probe's inputs.
    again = Line()
    again.load_state_dict(start)
    scale = float(data.tensors[0].square().mean().sqrt())
    rng = torch.Generator().manual_seed(3)
    draws = [
        relative_dimension(jacobian_spectrum(again, [torch.randn(256, 30, generator=rng) * scale])).value
        for _ in range(8)
    ]
    assert abs(values[0] - np.mean(draws)) < 4 * np.std(draws, ddof=1) + 0.02 * values[0]
    verdict = last.verdicts["jacobian"]
    assert verdict.null_dimension == values[0]
    assert verdict.dimension == last.estimates["effective_dimension"].value
    assert "The network" in " ".join(part.paragraphs())
    assert first.verdicts["jacobian"].dimension == first.estimates["effective_dimension"].value
    # A resumed run keeps the null of the start.
    host.save_checkpoint(tmp_path / "run.ckpt")
    resumed = JacobianSpectrum(null=True, strict=True)
    trainer(tmp_path, callbacks=[resumed], max_epochs=3).fit(
        Line(), DataLoader(data, 50), ckpt_path=tmp_path / "run.ckpt", **SAFELY
    )
    assert resumed.latest.estimates["null_effective_dimension"].value == pytest.approx(values[0], rel=1e-6)


def test_a_null_needs_inputs_of_one_floating_point_tensor(tmp_path) -> None:
    class Words(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 1))

    data = TensorDataset(torch.randint(9, (40, 3)), torch.randn(40, 1))
    with pytest.raises(ConfigurationError, match=r"null=True needs inputs that are one floating-point tensor, .*int64"):
        trainer(tmp_path, callbacks=[JacobianSpectrum(null=True, strict=True)], max_epochs=1).fit(
            Words(), DataLoader(data, 10)
        )


def test_double_precision_resolves_what_float32_calls_noise() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(30, 1, bias=False), wide(decades=20.0).tensors[0].double()
    inputs = inputs.float()
    single = jacobian_spectrum(module, [inputs], normalize=False)
    double = jacobian_spectrum(module, [inputs], normalize=False, precision="float64")
    right = torch.linalg.eigvalsh(inputs.double().T @ inputs.double() / len(inputs)).flip(0)
    torch.testing.assert_close(double.eigenvalues[:30], right, rtol=1e-6, atol=1e-13 * float(right[0]))
    assert sloppiness(single).at_least
    assert sloppiness(single).decades < 7
    assert sloppiness(double).decades > 9
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    targets = torch.randint(3, (len(inputs),))
    classes = nn.Linear(30, 3)
    found = fisher_spectrum(classes, [(inputs, targets)], weighted, precision="float64").eigenvalues
    same = fisher_spectrum(classes, [(inputs, targets)], weighted).eigenvalues
    torch.testing.assert_close(found, same, rtol=1e-3, atol=1e-6 * float(same[0]))
    assert weighted.weight.dtype == torch.float32
    assert classes.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("make", [FisherSpectrum, JacobianSpectrum])
def test_double_precision_in_a_trainer(tmp_path, make) -> None:
    values = {}
    for precision in (None, "float64"):
        part = make(precision=precision, strict=True)
        trainer(tmp_path, callbacks=[part], max_epochs=1).fit(network(), loader(blobs(200)))
        values[precision] = part.latest
    single, double = values[None], values["float64"]
    assert (single.precision, double.precision) == ("float32", "float64")
    assert double.spectrum.floor < 1e-6 * single.spectrum.floor
    assert double.estimates["effective_dimension"].value == pytest.approx(
        single.estimates["effective_dimension"].value, rel=2e-3
    )


def test_an_unknown_precision_is_refused() -> None:
    for call in (
        lambda: JacobianSpectrum(precision="double"),
        lambda: FisherSpectrum(precision="float16"),
        lambda: jacobian_spectrum(nn.Linear(2, 1), [torch.ones(3, 2)], precision="double"),
    ):
        with pytest.raises(ConfigurationError, match="pass 'float64', or None"):
            call()
