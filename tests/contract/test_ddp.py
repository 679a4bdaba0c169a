"""Two processes measure what one would, stop together, and fail together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import launched, ranks, two_ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*", "ignore:.*has `__len__` defined.*"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Every scenario but that of the data on two ranks, one after the other in the same two processes."""
    names = [name for name in two_ranks.SCENARIOS if name != "inputs"]
    return ranks.run(two_ranks.__file__, tmp_path_factory.mktemp("two"), *names)


def comparable(tag: str) -> bool:
    """Costs differ, and every process shuffles the columns of its own samples for the null."""
    return tag.startswith("sloppy_") and "cost" not in tag and "/null_" not in tag


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_agree_with_one(found, tmp_path):
    alone = two_ranks.run("everything", tmp_path)
    tags = [tag for tag in alone if comparable(tag)]
    assert len(tags) > 50
    for result in (rank["everything"] for rank in found):
        for tag in tags:
            assert result[tag] == pytest.approx(alone[tag], rel=1e-4, abs=1e-6), tag
        assert result["epochs"] == alone["epochs"] == 2


@pytest.mark.distributed
def test_two_processes_read_the_same_data_complete_or_with_missing_values(tmp_path):
    found = ranks.run(two_ranks.__file__, tmp_path, "inputs")
    alone = two_ranks.run("inputs", tmp_path)
    assert alone["complete"]["halves"]
    assert alone["many"]["values"]["missing_rate"] > 0.1
    assert "missing_rate" not in alone["complete"]["values"]
    for rank in found:
        for name, one in alone.items():
            two = rank["inputs"][name]
            assert two["values"] == pytest.approx(one["values"], rel=1e-8, abs=1e-8), name
            assert two["eigenvalues"] == pytest.approx(one["eigenvalues"], rel=1e-9, abs=1e-12), name
            assert two["halves"] == pytest.approx(one["halves"], rel=1e-9, abs=1e-12), name
            assert two["notes"] == one["notes"], name


def test_every_process_says_where_a_number_is_not_finite(found, tmp_path):
    alone = two_ranks.run("one_not_finite", tmp_path)
    said = [" ".join(notes) for notes in alone["notes"]]
    assert said
    assert all("1 of 258 numbers in the inputs of the 43 probe samples are NaN or infinite" in each for each in said)
    assert [rank["one_not_finite"] for rank in found] == [alone, alone]


def test_one_of_two_processes_writes_the_file_of_the_run(found, tmp_path):
    alone = two_ranks.run("recorded", tmp_path)
    assert found[0]["recorded"] == alone
    assert alone == {"events": ["head", *["measurement"] * 3, "end"], "steps": [0, 4, 9]}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_and_three_processes_certify_what_one_does(found, tmp_path):
    three = ranks.run(two_ranks.__file__, tmp_path, "certified", count=3)
    assert len(found + three) == 5
    alone = json.loads(json.dumps(two_ranks.run("certified", tmp_path)))
    for kind in ("pair", "single"):
        assert alone[kind]["valid"]
        assert alone[kind]["n"] == alone[kind]["risk_samples"] == 43
        for result in (rank["certified"][kind] for rank in found + three):
            assert result == alone[kind]


def test_two_processes_judge_the_same_clean_samples_or_refuse_them_together(found):
    first, second = (rank["cleaned"] for rank in found)
    assert first["alike"] == second["alike"]
    assert first["alike"]["n"] == 43
    assert len(first["alike"]["hashes"]) == 2
    assert first["other"]["flags"] == second["other"]["flags"] == ["other_samples"]


@pytest.mark.distributed
def test_two_processes_certify_in_the_same_coordinates(found, tmp_path):
    alone = two_ranks.run("turned", tmp_path)
    for kind in ("pair", "single"):
        first, second = (rank["turned"][kind] for rank in found)
        assert first == second
        assert first["valid"]
        assert first["n"] == first["risk_samples"] == 43
        assert first["n_prior"] == 40
        # Eigenvectors of another process may have another sign, and then get other draws.
        assert first["kl_displacement"] == pytest.approx(alone[kind]["kl_displacement"], rel=0.2)


def test_held_out_samples_that_differ_between_processes_shape_no_prior(found):
    for rank in found:
        assert rank["parted"]["flags"] == ["prior_depends_on_sample"]
        assert "The processes hold different training or validation samples" in rank["parted"]["reasons"][0]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_processes_that_lightning_starts_agree_with_one(tmp_path, strategy):
    paths = [str(Path(launched.__file__).parents[1]), str(Path(launched.__file__).parents[2])]
    run = subprocess.run(
        [sys.executable, launched.__file__, str(tmp_path), strategy],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (tmp_path / "alone").mkdir()
    launched.fit(tmp_path / "alone")
    expected = json.loads((tmp_path / "alone" / "rank0.json").read_text())
    tags = [tag for tag in expected if comparable(tag)]
    assert len(tags) > 50
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert {tag: found[tag] for tag in tags} == pytest.approx(
            {tag: expected[tag] for tag in tags}, rel=1e-4, abs=1e-6
        )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", ["uneven", "stream", "current"])
def test_the_probe_is_the_union_of_the_samples_of_all_ranks(found, tmp_path, name):
    alone = two_ranks.run(name, tmp_path)
    results = [dict(rank[name]) for rank in found]
    own = [result.pop("own", None) for result in results]
    alone.pop("own", None)
    if name == "uneven":
        assert own == [[[21], [56]], [[22], [27]]], "each made its part of 43 samples and of 83 parameters"
    for result in results:
        assert result == results[0], "every rank knows the same"
        for group, measurements in alone.items():
            assert [m["samples"] for m in result[group]] == [m["samples"] for m in measurements], group
            assert len(result[group]) > 1
            for two, one in zip(result[group], measurements, strict=True):
                assert two["status"] == one["status"]
                assert two["values"] == pytest.approx(one["values"], rel=1e-4, abs=1e-5), group
    counts = {"uneven": 43, "stream": 16, "current": 8}
    assert {m["samples"] for m in found[0][name]["hessian"]} == {counts[name]}


def test_when_a_rank_fails_all_ranks_skip_that_measurement(found):
    for result in (rank["failing"]["fisher"] for rank in found):
        assert [m["status"] for m in result] == ["EXACT", "FAILED", "EXACT"]
        assert "the sample is gone" in result[1]["notes"][0]
    assert found[0]["failing"]["fisher"][1]["notes"] == ["Rank 1 of 2 failed: the sample is gone"]


def test_a_failure_before_the_measurement_is_everybodys_too(found):
    for result in (rank["unguarded"]["fisher"] for rank in found):
        assert [m["status"] for m in result].count("FAILED") == 1
        assert "no room for a copy of the buffers" in next(m for m in result if m["status"] == "FAILED")["notes"][0]


def test_when_a_rank_has_no_memory_all_ranks_do_less(found):
    first, second = (rank["short_of_memory"] for rank in found)
    assert first == second
    assert first["size"] == [40, 2, 3]
    assert [m["status"] for m in first["hessian"]] == ["EXACT", "EXACT"]
