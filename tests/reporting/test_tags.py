from __future__ import annotations

import math
import re

import pytest

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting.tags import (
    ESTIMATED,
    GROUPS,
    HISTOGRAMS,
    QUANTITIES,
    SUFFIXES,
    all_tags,
    expected_tags,
    scalars,
    tag,
)


def measured(estimates: dict[str, Estimate], *, matrix: str = "hessian", status: Status = Status.CONVERGED, **cost):
    return Measurement(3, 1, matrix, None, estimates, Cost(**{"seconds": 1.5, **cost}), status)


def test_every_tag_has_one_slash_and_plain_characters():
    histogram_tags = [tag(group, name) for group in HISTOGRAMS for name in HISTOGRAMS[group]]
    for name in (*all_tags(), *histogram_tags, *(t for m in GROUPS[:5] for t in expected_tags(m))):
        assert re.fullmatch(r"sloppy_[a-z]+/[a-z0-9_]+", name), name


def test_no_quantity_can_be_mistaken_for_an_error_of_another():
    for group in GROUPS:
        assert not [q for q in QUANTITIES[group] if q.endswith(tuple(SUFFIXES))]
        assert ESTIMATED.get(group, frozenset()) <= set(QUANTITIES[group])


def test_every_explanation_is_a_sentence_or_two():
    for table in (*QUANTITIES.values(), *HISTOGRAMS.values(), SUFFIXES):
        for text in table.values():
            assert text.endswith(".")
            assert len(text) < 260


@pytest.mark.parametrize(("group", "quantity"), [("hessian", "effective_dimensions"), ("hesse", "trace"), ("cost", "")])
def test_unknown_names_are_refused(group, quantity):
    with pytest.raises(ConfigurationError, match="tag was asked"):
        tag(group, quantity)


def test_an_undocumented_estimate_is_never_logged():
    with pytest.raises(ConfigurationError, match="eigenvalue_1"):
        scalars(measured({"eigenvalue_1": Estimate(1.0)}))


def test_errors_stand_beside_inexact_estimates_only():
    found = scalars(measured({"largest": Estimate(4.0), "trace": Estimate(9.0, 0.5, 0.25)}))
    assert found == {
        "sloppy_hessian/largest": 4.0,
        "sloppy_hessian/trace": 9.0,
        "sloppy_hessian/trace_sem": 0.5,
        "sloppy_hessian/trace_truncation": 0.25,
        "sloppy_cost/seconds_hessian": 1.5,
    }


@pytest.mark.parametrize(
    "estimate",
    [
        Estimate(math.nan),
        Estimate(math.inf),
        Estimate(5.0, 0.1, 9.0, Status.UNRESOLVED),
        Estimate(5.0, status=Status.UNAVAILABLE),
        Estimate(10.0, lower_bound=True),
    ],
)
def test_values_that_mean_nothing_are_left_out(estimate):
    assert list(scalars(measured({"effective_dimension": estimate}))) == ["sloppy_cost/seconds_hessian"]


def test_a_lower_bound_is_logged_where_its_name_says_so():
    found = scalars(measured({"converged_above_z": Estimate(10.0, lower_bound=True)}))
    assert found["sloppy_hessian/converged_above_z"] == 10.0


@pytest.mark.parametrize("status", [Status.FAILED, Status.NON_FINITE])
def test_a_failed_measurement_logs_its_cost_alone(status):
    assert scalars(measured({"trace": Estimate(1.0)}, status=status)) == {"sloppy_cost/seconds_hessian": 1.5}


def test_a_bound_without_certificate_still_logs_its_parts():
    found = scalars(
        measured({"kl_displacement": Estimate(40.0)}, matrix="bound", status=Status.UNAVAILABLE), share=0.125
    )
    assert found["sloppy_bound/kl_displacement"] == 40.0
    assert found["sloppy_cost/share"] == 0.125


def test_cost_is_logged_where_it_was_counted():
    found = scalars(measured({}, products=28, peak_bytes=1024))
    assert found == {
        "sloppy_cost/seconds_hessian": 1.5,
        "sloppy_cost/products_hessian": 28.0,
        "sloppy_cost/peak_bytes_hessian": 1024.0,
    }


@pytest.mark.parametrize("matrix", GROUPS[:5])
def test_expected_tags_cover_every_scalar_of_a_matrix(matrix):
    estimates = {
        q: Estimate(1.0, 0.1, 0.1) if q in ESTIMATED.get(matrix, ()) else Estimate(1.0) for q in QUANTITIES[matrix]
    }
    found = scalars(measured(estimates, matrix=matrix, products=3, peak_bytes=5), share=0.5)
    assert set(found) == set(expected_tags(matrix))
