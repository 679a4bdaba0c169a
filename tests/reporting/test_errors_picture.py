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
