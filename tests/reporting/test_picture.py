"""The picture of a run, as an object: what is drawn equals the record, and what was not measured is not drawn."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from support.instruments import DECLARED

from lightning_sloppy.certificate import Certificate, Reason
from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.records import Cost, Density, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting.canvas import png
from lightning_sloppy.reporting.curves import dimension_curves, error_rates, logged_error_rates, rank_curves
from lightning_sloppy.reporting.picture import picture, pictures
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts


def spectrum(values: Any, **fields: Any) -> Spectrum:
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    known = {"trace": Estimate(float(values.sum())), "dim": len(values), "num_samples": 99, "matrix": "jacobian",
             "floor": 0.0, "status": Status.EXACT, "residuals": 0 * values, "largest": float(values[0]),
             "smallest": float(values[-1]), **fields}  # fmt: skip
    return Spectrum(eigenvalues=values, **known)


def measured(kind: str, values: Any = None, *, step: int = 0, epoch: int = 0, **fields: Any) -> Measurement:
    estimates = {
        name: each if isinstance(each, Estimate) else Estimate(each)
        for name, each in fields.pop("estimates", {}).items()
    }
    found = values if values is None or isinstance(values, Spectrum) else spectrum(values)
    settings = {"cost": Cost(), "status": Status.EXACT, **fields}
    return Measurement(step, epoch, kind, found, estimates, **settings)


def run_of(facts: RunFacts = RunFacts(), **events: list[Measurement]) -> Run:  # noqa: B008
    return Run({kind: InstrumentRun(kind, DECLARED[kind], tuple(each)) for kind, each in events.items()}, facts)


def line(axes: Axes, start: str) -> Any:
    """The line whose label begins so."""
    return next(each for each in axes.get_lines() if str(each.get_label()).startswith(start))


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts() if text.get_text()]


def texts(axes: Axes) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in axes.texts)


DECAYING = np.logspace(0, -5, 120)
FLAT = np.full(12, 0.25)


def usual() -> Run:
    """Every panel has something to draw."""
    dimension = [{"effective_dimension": d, "effective_dimension_coarse": d / 2, "effective_dimension_fine": 2 * d}
                 for d in (80.0, 60.0, 50.0, 50.1, 50.2, 50.1, 50.0, 50.1)]  # fmt: skip
    steps = [max(20 * epoch - 1, 0) for epoch in range(8)]
    jacobian = [
        measured("jacobian", DECAYING * (1 + epoch / 10), step=step, epoch=max(epoch - 1, 0), estimates=values)
        for epoch, (step, values) in enumerate(zip(steps, dimension, strict=True))
    ]
    hessian = measured(
        "hessian", np.array([3.0, 1.0, -1.0]), step=139, epoch=6,
        estimates={"effective_dimension": Estimate(30.0, standard_error=2.0, truncation_error=0.5)},
        companions={"gauss_newton": spectrum(DECAYING[:50], matrix="gauss_newton")},
    )  # fmt: skip
    inputs = measured("input", np.linspace(3, 1, 12), companions={"null": spectrum(FLAT)},
                      estimates={"effective_dimension": 11.0})  # fmt: skip
    bound = measured("bound", step=139, epoch=6, certificate=certificate(),
                     estimates={"pac_bayes": 0.8341, "hold_out": 0.0936, "hold_out_error": 0.04})  # fmt: skip
    facts = RunFacts(epoch_steps=20, epochs=7, metrics={"train_acc": 0.96, "val_acc": 0.95, "val_loss": 0.3})
    return run_of(facts, input=[inputs], jacobian=jacobian, hessian=[hessian], bound=[bound])


def certificate(**fields: Any) -> Certificate:
    known = {"kind": "pac_bayes_pair", "certified_predictor": "pair_of_draws", "value": 0.8341, "valid": True,
             "n": 1438, "delta": 0.05, "guess_error": 0.9}  # fmt: skip
    return Certificate(**{**known, **fields})


def test_curves_are_the_eigenvalues_divided_by_the_trace() -> None:
    left = picture(usual()).axes[0]
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert (left.get_xlabel(), left.get_ylabel()) == ("Rank of the eigenvalue", "Eigenvalue / trace")
    drawn = line(left, "Jacobian")
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(1, 121))
    np.testing.assert_allclose(drawn.get_ydata(), DECAYING / DECAYING.sum(), rtol=1e-12)
    newton = line(left, "Gauss-Newton")
    np.testing.assert_allclose(newton.get_ydata(), DECAYING[:50] / DECAYING[:50].sum(), rtol=1e-12)
    count = int((DECAYING / DECAYING.sum() >= 1e-3).sum())
    assert f"Jacobian: {count} above the line" in legend(left)
    assert any(np.allclose(each.get_ydata(), 1e-3) and each.get_linestyle() == "--" for each in left.get_lines())
    assert "at step 139" in left.get_title(loc="left")
    assert not any(label.startswith("Fisher") for label in legend(left))  # it was not measured


def test_the_fitted_line_is_that_of_least_squares() -> None:
    curve = rank_curves(usual())["jacobian"]  # one straight line: no knee
    slope, height = np.polyfit(np.arange(1, 121), np.log10(DECAYING / DECAYING.sum()), 1)
    np.testing.assert_allclose(np.log10(curve.fit_fractions), height + slope * np.asarray(curve.fit_ranks), atol=1e-9)
    assert (curve.fit_ranks[0], curve.fit_ranks[-1]) == (1, 120)
    bent = run_of(jacobian=[measured("jacobian", np.concatenate([np.full(40, 1.0), np.full(40, 1e-3)]))])
    assert rank_curves(bent)["jacobian"].fit_ranks == ()  # R^2 is below 0.9
    assert "fit after the knee" not in legend(picture(bent).axes[0])


def test_null_and_floor_are_drawn_where_they_are_known() -> None:
    curve = rank_curves(usual())["input"]
    assert curve.null_fractions == (1 / 12,) * 12
    assert "null" in legend(picture(usual()).axes[0])
    values = np.logspace(0, -8, 30)
    floored = run_of(jacobian=[measured("jacobian", spectrum(values, floor=3e-5))])
    left, kept = picture(floored).axes[0], values[values > 3e-5]
    np.testing.assert_allclose(line(left, "Jacobian").get_ydata(), kept / values.sum())
    dotted = [each for each in left.get_lines() if each.get_linestyle() == ":" and len(each.get_ydata())]
    np.testing.assert_allclose(dotted[0].get_ydata(), 3e-5 / values.sum())
    assert "null" not in legend(left)


def test_a_quadrature_is_drawn_by_its_weights_and_few_pairs_say_so() -> None:
    nodes, weights = torch.tensor([[4.0, 1.0], [4.0, 2.0]]), torch.tensor([[2.0, 8.0], [4.0, 6.0]])
    off = torch.zeros(2)
    density = Density((off, off), (off, off), nodes.double(), weights.double(), True, torch.tensor([10.0, 10.0]))
    estimated = spectrum([4.0], truncated=True, density=density, dim=10, trace=Estimate(25.0))
    curve = rank_curves(run_of(jacobian=[measured("jacobian", estimated)]))["jacobian"]
    # Each probe vector counts half: 1 + 2 eigenvalues of 4, then 3 of 2, then 4 of 1.
    assert curve.ranks[-1] == 10.0
    assert dict(zip(curve.fractions, curve.ranks, strict=True)) == {4 / 25: 3.0, 2 / 25: 6.0, 1 / 25: 10.0}
    few = spectrum([4.0, 3.0], truncated=True, dim=10, trace=Estimate(25.0))
    left = picture(run_of(jacobian=[measured("jacobian", few)])).axes[0]
    assert "Jacobian: largest 2 only" in legend(left)
    unknown = replace(few, trace=None)
    assert rank_curves(run_of(jacobian=[measured("jacobian", unknown)])) == {}


def test_long_spectra_keep_both_ends_and_the_exact_count() -> None:
    values = np.logspace(0, -9, 20_000)
    curve = rank_curves(run_of(jacobian=[measured("jacobian", values)]))["jacobian"]
    assert len(curve.ranks) <= 400
    assert (curve.ranks[0], curve.ranks[-1]) == (1, 20_000)
    np.testing.assert_allclose(curve.fractions, (values / values.sum())[np.asarray(curve.ranks, dtype=int) - 1])
    assert curve.above == (values / values.sum() >= 1e-3).sum()


def test_dimensions_have_their_errors_and_the_moment_of_settling() -> None:
    middle = picture(usual()).axes[1]
    assert (middle.get_xlabel(), middle.get_ylabel()) == ("Step", "Effective dimension (directions)")
    drawn = line(middle, "Jacobian: 50.1")
    assert list(drawn.get_xdata()) == [0, 19, 39, 59, 79, 99, 119, 139]
    assert list(drawn.get_ydata()) == [80.0, 60.0, 50.0, 50.1, 50.2, 50.1, 50.0, 50.1]
    assert "Gauss-Newton: 30 ± 2.5" in legend(middle)
    np.testing.assert_array_equal(line(middle, "Inputs: 11").get_ydata(), [11.0, 11.0])  # they do not change
    settled = line(middle, "Jacobian settled")
    assert list(settled.get_xdata()) == [39, 39]  # after two epochs of 20 steps
    assert "Jacobian settled: epoch 2" in legend(middle)
    changing = [replace(event, estimates={"effective_dimension": Estimate(10.0 + 3 * place)})
                for place, event in enumerate(usual().instruments["jacobian"].measurements)]  # fmt: skip
    assert "Jacobian has not settled" in legend(picture(run_of(jacobian=changing)).axes[1])


def test_errors_of_an_estimate_are_a_band() -> None:
    events = [
        measured("fisher", DECAYING, step=step, estimates={"effective_dimension": Estimate(20.0, 1.0, 0.5)})
        for step in (0, 9)
    ]
    middle = picture(run_of(fisher=events)).axes[1]
    corners = middle.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (18.5, 21.5)


def test_bars_are_the_logged_errors_and_the_bounds() -> None:
    right = picture(usual()).axes[2]
    assert right.get_xlabel() == "Error rate (fraction of samples)"
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["Training error", "Validation error", "Hold-out bound", "PAC-Bayes bound", "Guessing"]
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], [0.04, 0.05, 0.0936, 0.8341, 0.9])
    assert texts(right) == "0.040 0.050 0.094 0.835 0.900"  # a bound is rounded up


def test_what_has_no_value_has_no_bar() -> None:
    reason = Reason("The loss is not a classification.", flag="loss_not_bounded")
    none = certificate(value=math.nan, valid=False, reasons=(reason,), guess_error=math.nan)
    run = run_of(RunFacts(metrics={"val_mae": 0.3}), bound=[measured("bound", certificate=none)])
    right = picture(run).axes[2]
    assert not right.patches
    assert texts(right) == "No error rate was logged. No PAC-Bayes bound: the loss is not a classification."
    kept = picture(run_of(RunFacts(metrics={"val_acc": 0.9}), bound=[measured("bound", certificate=none)])).axes[2]
    assert len(kept.patches) == 1
    assert "No PAC-Bayes bound: the loss is not a classification." in texts(kept)
    vacuous = run_of(bound=[measured("bound", certificate=certificate(value=1.0), estimates={"pac_bayes": 1.0})])
    assert "1.000 (no guarantee)" in texts(picture(vacuous).axes[2])


def test_the_final_certificate_takes_the_place_of_the_live_bound() -> None:
    final = measured("certificate", certificate=certificate(value=0.3), estimates={"pair": 0.3, "single": 0.2})
    run = Run({**usual().instruments, **run_of(certificate=[final]).instruments}, usual().facts)
    assert {rate.key: rate.value for rate in error_rates(run)}["pac_bayes"] == 0.3


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"train_acc": 0.9, "val_accuracy": 0.8, "test/err": 0.3}, {"train": 0.1, "validation": 0.2, "test": 0.3}),
        ({"valAccuracy": 0.8, "train_acc_epoch": 0.9}, {"train": 0.1, "validation": 0.2}),
        ({"val_acc_epoch": 0.7, "val_acc": 0.8}, {"validation": 0.2}),
        ({"val_top5_accuracy": 0.9, "val_loss": 0.1, "absolute_error": 0.2, "val_error_abs": 0.2}, {}),
        ({"val_acc": 97.0, "train_acc": math.nan, "acc": 0.9}, {}),
    ],
)
def test_error_rates_among_the_logged_metrics(metrics: dict[str, float], expected: dict[str, float]) -> None:
    assert logged_error_rates(metrics) == pytest.approx(expected)


def test_empty_panels_say_why() -> None:
    drawn = picture(run_of())
    assert [texts(axes) for axes in drawn.axes] == [
        "No spectrum was measured.",
        "No effective dimension was measured.",
        "No error rate was logged. No PAC-Bayes bound was computed.",
    ]
    assert not any(axes.lines or axes.patches for axes in drawn.axes)


def test_failed_measurements_are_gaps() -> None:
    good = measured("jacobian", DECAYING, estimates={"effective_dimension": 40.0})
    failed = measured("jacobian", step=9, status=Status.FAILED)
    unresolved = measured("jacobian", DECAYING, step=19, estimates={
        "effective_dimension": Estimate(7.0, status=Status.UNRESOLVED)})  # fmt: skip
    bad = measured("jacobian", spectrum([math.nan] * 3), step=29, status=Status.NON_FINITE,
                   estimates={"effective_dimension": math.nan})  # fmt: skip
    run = run_of(jacobian=[good, failed, unresolved, bad])
    assert dimension_curves(run)["jacobian"].steps == (0,)
    assert rank_curves(run)["jacobian"].step == 19
    every = [value for axes in picture(run).axes for each in axes.get_lines() for value in each.get_ydata()]
    assert np.isfinite(every).all()


def test_several_runs_in_one_picture() -> None:
    first, second = usual(), usual()
    second = replace(second, facts=replace(second.facts, metrics={"train_acc": 0.5}))
    drawn = pictures([first, second], ["wide", "narrow"])
    assert [label.split(":")[0] for label in legend(drawn.axes[0])] == ["wide", "narrow"]
    assert legend(drawn.axes[1]) == ["wide: 50.1", "narrow: 50.1"]
    assert drawn.axes[2].get_yticklabels()[0].get_text() == "Training error"
    values = [list(line(drawn.axes[2], name).get_xdata()) for name in ("wide", "narrow")]
    np.testing.assert_allclose(values[0], [0.04, 0.05, 0.0936, 0.8341, 0.9])
    np.testing.assert_allclose(values[1], [0.5, 0.04, 0.0936, 0.8341, 0.9])  # validation from the hold-out samples
    with pytest.raises(ConfigurationError, match="1 to 8 runs"):
        pictures([first] * 9)
    with pytest.raises(ConfigurationError, match="names"):
        pictures([first], ["a", "b"])


def test_runs_without_anything_in_common_say_so() -> None:
    drawn = pictures([run_of(), run_of()])
    assert texts(drawn.axes[0]) == "No spectrum was measured."
    assert texts(drawn.axes[2]) == "No error rate was logged, and no bound was computed."


def test_texts_and_legends_cover_nothing() -> None:
    for drawn in (picture(usual()), pictures([usual()] * 8, [f"a rather long name of a run {n}" for n in range(8)])):
        drawn.canvas.draw()
        frame, boxes = drawn.bbox, []
        for axes in drawn.axes:
            box = axes.get_legend().get_window_extent() if axes.get_legend() else None
            panel = axes.get_tightbbox(for_layout_only=True)
            assert frame.x0 <= panel.x0
            assert panel.x1 <= frame.x1 + 1
            if box is not None:
                assert box.y1 <= axes.get_window_extent().y0 - 30  # below ticks and name of the axis
                assert box.y0 >= frame.y0
                boxes.append(box)
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_the_png_is_1200_pixels_wide_and_always_the_same() -> None:
    first, second = png(picture(usual())), png(picture(usual()))
    assert first == second
    assert int.from_bytes(first[16:20], "big") == 1200
    assert len(first) < 150_000


def test_pyplot_and_the_users_style_are_left_alone() -> None:
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30.0}):
        drawn = picture(usual())
        assert drawn.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)
        assert matplotlib.rcParams["font.size"] == 30.0
    assert plt.get_fignums() == []


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"lightning-sloppy\[plot\]"):
        picture(usual())
