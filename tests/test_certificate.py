"""The record, its words, its file."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.alike import differences

from lightning_sloppy import Certificate, ConfigurationError
from lightning_sloppy.certificate import Reason

WHOLE = Certificate(
    kind="pac_bayes_pair",
    certified_predictor="pair_of_draws",
    value=0.1234,
    valid=True,
    n=55_000,
    delta=0.05,
    conditions=("The examples are independent draws.",),
    remarks=("A remark.",),
    n_prior=500,
    examples="certifying",
    empirical_risk=0.03,
    risk_upper=0.04,
    risk_samples=10_000,
    log_ratio=1234.5,
    kl_displacement=1000.0,
    kl_covariance=230.0,
    log_xi=5.7,
    delta_pac=0.01,
    evaluation=2,
    epsilon=100.0,
    weakest="displacement",
    prior="the weights at the start do not depend on the examples.",
    networks=("certified_1.ckpt", "certified_2.ckpt"),
    seed=3,
)


def test_the_statement_says_who_with_which_probability_and_provided_what() -> None:
    assert WHOLE.statement() == (
        "With probability at least 95 % over the draw of the 55,000 certifying examples and of the weights, the error "
        "of a classifier that picks one of the two networks drawn around the model at random is at most 0.1234, "
        "provided that: The examples are independent draws. "
        "The user's statement: the weights at the start do not depend on the examples."
    )


def test_the_explanation_names_every_part_and_what_would_help() -> None:
    text = WHOLE.explain()
    for words in (
        "PAC-Bayes-kl for an antithetic pair",
        "0.0300 on 10,000 examples",
        "on all 55,000 examples: 0.0400",
        "1,234.5 nats",
        "1,000.0 for the distance",
        "230.0 for the precision",
        f"{5.7 - math.log(0.01):.1f} nats",
        "500 other examples",
        "DistanceToInit",
        "A remark.",
    ):
        assert words in text, words


@pytest.mark.parametrize("weakest", ["risk", "displacement", "covariance", "sample", "subsample"])
def test_every_weakest_term_has_advice(weakest: str) -> None:
    assert dataclasses.replace(WHOLE, weakest=weakest).explain().count("Largest term") == 1


def test_without_a_bound_there_are_reasons_only() -> None:
    reason = Reason("Two reads differ.", flag="augmentation_in_certification")
    none = dataclasses.replace(WHOLE, valid=False, value=math.nan, reasons=(reason, "Something else."))
    assert none.statement() == none.explain() == "There is no bound. Two reads differ. Something else."
    assert none.flags == ("augmentation_in_certification", "other")
    assert none.vacuous
    assert not WHOLE.vacuous
    assert "guarantees nothing" in dataclasses.replace(WHOLE, value=1.0).explain()


def test_the_file_gives_back_the_certificate(tmp_path) -> None:
    reasons = (Reason("Two reads differ.", flag="augmentation_in_certification"),)
    for certificate in (WHOLE, dataclasses.replace(WHOLE, valid=False, value=math.nan, reasons=reasons, seed=None)):
        path = certificate.save(tmp_path / "deep" / "certificate.json")
        plain = json.loads(path.read_text())
        assert plain["statement"] == certificate.statement()
        assert plain["tau"] is None
        again = Certificate.load(path)
        assert again.flags == certificate.flags
        assert not differences(again, certificate)


def test_what_is_no_certificate_is_refused(tmp_path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"other.json cannot be read as a certificate \(KeyError"):
        Certificate.load(path)
    with pytest.raises(ConfigurationError, match="FileNotFoundError"):
        Certificate.load(tmp_path / "none.json")


def test_reasons_survive_copies_and_pickles() -> None:
    reason = Reason("Because.", flag="x")
    for again in (copy.deepcopy(reason), pickle.loads(pickle.dumps(reason))):
        assert (again, again.flag) == ("Because.", "x")


def test_another_format_is_refused_also_without_asserts(tmp_path):
    """``python -O`` drops every assert."""
    content = json.loads(WHOLE.save(tmp_path / "one.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({**content, "format": "lightning_sloppy 99"}))
    script = (
        "from lightning_sloppy import Certificate, ConfigurationError\n"
        "try:\n"
        f"    Certificate.load({str(tmp_path / 'one.json')!r})\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "its format is 'lightning_sloppy 99'" in done.stdout


def test_asserts_of_the_package_narrow_types_and_guard_no_input():
    package = Path(__file__).parents[1] / "lightning_sloppy"
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                assert ast.unparse(node.test).endswith(" is not None"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "Largest term"),
        ({"guess_error": 0.2}, "always predicting the most frequent class has an error of 0.2000"),
        ({"live_value": 0.25}, "The live bound of the run, 0.2500, was lower"),
        ({"guess_error": 0.5, "live_value": 0.5}, "Largest term"),
    ],
)
def test_a_number_that_says_nothing_is_not_advertised(options, said):
    made = Certificate("pac_bayes_pair", "pair_of_draws", 0.3, True, 100, 0.05, weakest="risk", **options)
    assert said in made.explain()
    assert ("Largest term" in made.explain()) == (said == "Largest term")


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    path = Certificate("hold_out", "fixed_network", 0.3, True, 100, 0.05, guess_error=0.5).save(tmp_path / "c.json")
    assert Certificate.load(path).guess_error == 0.5
    kept = json.loads(path.read_text())
    for name in ("start_error", "guess_error", "live_value"):
        del kept[name]
    path.write_text(json.dumps(kept))
    assert math.isnan(Certificate.load(path).guess_error)
