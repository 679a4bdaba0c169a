"""Pictures of a table, as objects: what is drawn equals the report."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_sloppy import DataReport, inspect
from lightning_sloppy.reporting.canvas import png
from lightning_sloppy.reporting.data_pictures import (
    correlation_picture,
    data_pictures,
    missing_picture,
    missing_rates,
    spectrum_picture,
    variance_picture,
)


@pytest.fixture(scope="module")
def report() -> DataReport:
    """Six independent columns, two copies of the first, and one column that begins in the middle."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((400, 9)) * np.arange(1, 10)
    table[:, 6] = table[:, 0] + 0.01 * rng.standard_normal(400)
    table[:, 7] = -table[:, 0] + 0.01 * rng.standard_normal(400)
    table[:200, 8] = np.nan
    return inspect({f"sensor {n}": table[:, n] for n in range(9)})


def test_the_spectrum_has_its_intervals_and_the_noise_edge(report: DataReport) -> None:
    axes = spectrum_picture(report).figure.axes[0]
    found = report.spectrum
    drawn = axes.get_lines()[0]
    np.testing.assert_allclose(drawn.get_ydata(), [v for v in found.eigenvalues if v > found.floor])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Rank of the eigenvalue", "Eigenvalue (mean 1)")
    edge = next(each for each in axes.get_lines() if str(each.get_label()).startswith("noise edge"))
    np.testing.assert_allclose(edge.get_ydata(), found.noise_edge)
    assert edge.get_label() == f"noise edge: {found.above_noise_edge:,} above"
    band = axes.collections[0].get_paths()[0].vertices
    low, high = found.intervals[0]
    np.testing.assert_allclose([band[band[:, 0] == 1, 1].min(), band[band[:, 0] == 1, 1].max()], [low, high])


def test_the_variance_counts_directions(report: DataReport) -> None:
    axes = variance_picture(report).figure.axes[0]
    values = np.asarray(report.spectrum.eigenvalues)
    held = 100 * values.cumsum() / values.sum()
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0, *held])
    count = int((held < 90).sum()) + 1
    assert f"{count} for 90 %" in axes.get_lines()[0].get_label()
    assert axes.get_ylabel() == "Variance (%)"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels] == ["all columns", "without repeated columns"]


def test_correlations_lie_in_the_order_of_the_groups(report: DataReport) -> None:
    drawn = correlation_picture(report).figure.axes[0]
    order = [report.names.index(name) for name in report.order]
    np.testing.assert_array_equal(drawn.images[0].get_array(), report.correlation[np.ix_(order, order)])
    assert [label.get_text() for label in drawn.get_xticklabels()] == list(report.order)
    square = drawn.patches[0]
    start = round(square.get_x() + 0.5)
    inside = report.order[start : start + round(square.get_width())]
    assert set(inside) == {"sensor 0", "sensor 6", "sensor 7"}
    assert drawn.images[0].get_clim() == (-1, 1)


def test_missing_values_are_shown_where_they_are(report: DataReport) -> None:
    rates = missing_rates(report)
    column = report.names.index("sensor 8")
    rows = np.asarray([part.rows for part in report.parts])
    assert rates[:, column] @ rows == pytest.approx(200)
    assert rates[0, column] == 1
    assert rates[-1, column] == 0
    assert not np.delete(rates, column, 1).any()
    found = missing_picture(report)
    drawn = found.figure.axes[0]
    order = [report.names.index(name) for name in report.order]
    np.testing.assert_allclose(drawn.images[0].get_array(), 100 * rates[:, order])
    assert drawn.images[0].get_extent()[2:] == [400.0, 0.0]
    assert "Most is missing in sensor 8" in found.caption
    assert "5.56 %" in drawn.get_title(loc="left")


def test_complete_and_narrow_tables_have_fewer_pictures(report: DataReport) -> None:
    assert len(data_pictures(report)) == 4
    rng = np.random.default_rng(1)
    assert len(data_pictures(inspect(rng.standard_normal((60, 5))))) == 3
    assert len(data_pictures(inspect(rng.standard_normal((60, 1))))) == 2


def test_many_columns_are_drawn_without_names() -> None:
    found = data_pictures(inspect(np.random.default_rng(2).standard_normal((80, 60))))
    assert found[2].figure.axes[0].get_xlabel() == "60 columns"
    assert not found[2].figure.axes[0].get_xticklabels()
    for each in found:
        assert len(png(each.figure)) < 150_000
        assert each.description.endswith(".")
        assert each.caption.endswith(".")


def test_nothing_is_cut_off(report: DataReport) -> None:
    for found in data_pictures(report):
        found.figure.canvas.draw()
        for axes in found.figure.axes:
            box = axes.get_tightbbox()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= found.figure.bbox.x1 + 1
