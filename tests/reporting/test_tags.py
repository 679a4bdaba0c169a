from __future__ import annotations

import math
import re

import pytest
from support.instruments import DECLARED

from lightning_sloppy import Quantity
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.quantities import SUFFIXES, Declaration, SpectrumHistogram
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting.tags import cost_quantities, expected_tags, scalars, tag, undeclared


def measured(
    estimates: dict[str, Estimate],
    *,
    group: str = "hessian",
    status: Status = Status.CONVERGED,
    overhead: float | None = None,
    **cost,
) -> dict[str, float]:
    event = Measurement(3, 1, group, None, estimates, Cost(**{"seconds": 1.5, **cost}), status)
    return scalars(event, DECLARED[group], overhead=overhead)


@pytest.mark.parametrize("declaration", DECLARED.values(), ids=DECLARED)
def test_every_tag_has_one_slash_and_plain_characters(declaration):
    histograms = [tag(declaration.name, shown.name) for shown in declaration.histograms]
    for name in (*expected_tags(declaration), *histograms):
        assert re.fullmatch(r"sloppy_[a-z]+/[a-z0-9_]+", name), name


@pytest.mark.parametrize("declaration", DECLARED.values(), ids=DECLARED)
def test_every_explanation_is_a_sentence_or_two(declaration):
    quantities = [*declaration.quantities, *cost_quantities(declaration), *declaration.histograms]
    for text in (*(quantity.explanation for quantity in quantities), *SUFFIXES.values()):
        assert text.endswith(".")
        assert len(text) < 260


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Quantity("Trace", "Sum."), "lower-case letters"),
        (lambda: Quantity("a/b", "Sum."), "lower-case letters"),
        (lambda: Quantity("", "Sum."), "lower-case letters"),
        (lambda: Quantity("trace_sem", "Sum."), "ends like the error"),
        (lambda: Quantity("trace", " "), "no explanation"),
        (lambda: Declaration("cost", "Cost"), "cannot be named 'cost'"),
        (lambda: Declaration("Mine", "Mine"), "lower-case letters"),
        (lambda: Declaration("a", "A", [Quantity("x", "X."), Quantity("x", "Y.")]), "A declares x more than once"),
        (lambda: Declaration("a", "A", [Quantity("x", "X.")], [SpectrumHistogram("x", "Y.")]), "more than once"),
        (lambda: Declaration("a", "A", [Quantity("x", "X.", band=("low", "x"))]), "declares no low, but the band"),
        (lambda: Declaration("a", "A", costs=("euros",)), "euros"),
    ],
)
def test_declarations_that_do_not_fit_together_are_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_an_undeclared_estimate_is_never_logged():
    event = Measurement(3, 1, "hessian", None, {"eigenvalue_1": Estimate(1.0)}, Cost(), Status.EXACT)
    assert undeclared(event, DECLARED["hessian"]) == ["eigenvalue_1"]
    assert list(scalars(event, DECLARED["hessian"])) == ["sloppy_cost/seconds_hessian"]


def test_errors_stand_beside_inexact_estimates_only():
    found = measured({"largest": Estimate(4.0), "trace": Estimate(9.0, 0.5, 0.25)})
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
@pytest.mark.parametrize("name", ["effective_dimension", "effective_dimension_fine", "eigenvalue_count"])
def test_values_that_mean_nothing_are_left_out(name, estimate):
    assert list(measured({name: estimate})) == ["sloppy_cost/seconds_hessian"]


def test_a_lower_bound_is_logged_where_its_name_says_so():
    found = measured({"converged_above_z": Estimate(10.0, lower_bound=True)})
    assert found["sloppy_hessian/converged_above_z"] == 10.0


@pytest.mark.parametrize("status", [Status.FAILED, Status.NON_FINITE])
def test_a_failed_measurement_logs_its_cost_alone(status):
    assert measured({"trace": Estimate(1.0)}, status=status) == {"sloppy_cost/seconds_hessian": 1.5}


def test_a_bound_without_certificate_still_logs_its_parts():
    found = measured({"kl_displacement": Estimate(40.0)}, group="bound", status=Status.UNAVAILABLE, overhead=0.125)
    assert found["sloppy_bound/kl_displacement"] == 40.0
    assert found["sloppy_cost/overhead"] == 0.125


def test_cost_is_logged_where_it_was_counted():
    assert measured({}, products=28, peak_bytes=1024) == {
        "sloppy_cost/seconds_hessian": 1.5,
        "sloppy_cost/products_hessian": 28.0,
        "sloppy_cost/peak_bytes_hessian": 1024.0,
    }


@pytest.mark.parametrize("declaration", DECLARED.values(), ids=DECLARED)
def test_expected_tags_cover_every_scalar_of_an_instrument(declaration):
    estimates = {q.name: Estimate(1.0, 0.1, 0.1) if q.estimated else Estimate(1.0) for q in declaration.quantities}
    found = measured(estimates, group=declaration.name, products=3, peak_bytes=5, overhead=0.5)
    assert set(found) == set(expected_tags(declaration))
