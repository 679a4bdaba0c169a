"""The picture and the sentences about errors of validation samples show the numbers of the report."""

from __future__ import annotations

import numpy as np
import torch

from lightning_sloppy import SpectralErrors
from lightning_sloppy.metrics.error_report import ErrorReport
from lightning_sloppy.reporting.errors_in_words import report_in_words, worst_in_words
from lightning_sloppy.reporting.errors_picture import errors_picture

NAMES = ("width", "height", "weight")


def regression(columns: int, count: int) -> tuple[SpectralErrors, ErrorReport]:
    """Predictions that are worse far from the mean, along the second direction of the targets more than the first."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(900, 2, generator=rng)
    inputs = torch.cat([inputs, inputs[:, :1] + 0.2 * torch.randn(900, 1, generator=rng)], dim=1)[:, :columns]
    targets = torch.stack([inputs[:, 0], inputs[:, 0] + 0.5 * inputs[:, 1]], dim=1)
    metric = SpectralErrors.from_inputs(inputs[:600], targets[:600])
    noise = 0.2 * torch.randn(count, 2, generator=rng)
    metric.update(0.8 * targets[600:][:count] + noise, targets[600:][:count], inputs[600:][:count])
    return metric, metric.report()


def test_bins_and_columns_are_drawn_as_reported():
    _, report = regression(3, 300)
    left, middle, right = errors_picture(report, NAMES, step=7).axes
    for axes, each in zip((left, middle), report.by, strict=True):
        drawn = [line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
        np.testing.assert_allclose(drawn, [rate.value for rate in each.bins])
    assert [text.get_text() for text in right.get_yticklabels()] == [NAMES[c.column] for c in report.worst.columns]
    assert right.patches[0].get_width() == report.worst.columns[0].inside
    assert report.worst.columns[0].column in (0, 1, 2)
    said = worst_in_words(report, NAMES)
    assert f"the worst of {report.worst.looked_at} bins was picked (Bonferroni)" in said
    assert NAMES[report.worst.columns[0].column] in said


def test_a_small_class_is_named_beside_the_worst_of_the_others():
    inputs = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    metric = SpectralErrors.from_inputs(inputs, num_classes=4)
    labels = torch.tensor([0] * 50 + [1] * 40 + [2] * 8 + [3] * 5)
    preds = torch.where(labels == 2, 0, labels)  # class 2 is always wrong, but has eight samples
    preds[:5] = 1
    metric.update(preds, labels, inputs[:103])
    said = report_in_words(metric.report(), NAMES, leading=1, tail=1)[0]
    assert "The largest one of the classes with at least 10 samples is that of class 0: 0.1 (" in said
    assert "2 classes have fewer than 10 samples; the largest error of these is that of class 2, 1 (0.6306 to 1" in said
    metric.reset()
    metric.update(preds[:98], labels[:98], inputs[:98])
    said = report_in_words(metric.report(), NAMES, leading=1, tail=1)[0]
    assert "1 class has fewer than 10 samples (class 2); its error is 1 (0.6306 to 1, N = 8)." in said
    metric.reset()
    metric.update(preds[:90], labels[:90], inputs[:90])
    assert "fewer than 10" not in report_in_words(metric.report(), NAMES, leading=1, tail=1)[0]


def test_bins_with_few_samples_are_named_with_their_number():
    _, report = regression(3, 45)
    paragraph = report_in_words(report, NAMES, leading=1, tail=2)[1]
    for each in report.by:
        few = [(place, rate.count) for place, rate in enumerate(each.bins, 1) if rate.count < 10]
        assert 0 < len(few) < 5
        measure = "share of energy in the tail" if each.measure == "tail" else "distance from the training inputs"
        names = {1: "the lowest fifth", 5: "the highest fifth"}
        places = ", ".join(f"{names.get(place, f'bin {place} of 5')} ({count})" for place, count in few)
        assert f"Fewer than 10 samples by {measure}: {places}; an error there is hardly known." in paragraph
    _, report = regression(3, 300)
    assert "Fewer than 10" not in report_in_words(report, NAMES, leading=1, tail=2)[1]


def test_without_a_tail_or_enough_samples_that_is_said():
    metric, report = regression(2, 300)
    left = errors_picture(report, NAMES, step=7).axes[0]
    assert "so there is no tail" in " ".join(left.texts[0].get_text().split())
    found = metric.bins.directions
    said = " ".join(report_in_words(report, NAMES, leading=found.leading, tail=found.tail))
    assert "so there is no tail" in said
    assert "share of energy" not in said
    assert "nan" not in said
    metric, report = regression(3, 6)
    found = metric.bins.directions
    said = " ".join(report_in_words(report, NAMES, leading=found.leading, tail=found.tail))
    assert "too few samples in the" in said
    assert "No bin has the 10 samples" in said
    right = errors_picture(report, NAMES, step=0).axes[2]
    assert right.get_title(loc="left") == "Along the targets' directions"
