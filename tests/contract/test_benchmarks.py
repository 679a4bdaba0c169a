"""The benchmarks of the headline and of the GPU run, on a small piece."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def said(name: str) -> str:
    done = run(name, "--quick")
    done.check_returncode()
    return done.stdout


@pytest.mark.slow
def test_label_noise_raises_the_headline_and_width_hardly_changes_it() -> None:
    rows = re.findall(r"width (\d+), noise ([\d.]+): Jacobian ([\d.]+)", said("dimension"))
    found = {(int(width), float(noise)): float(value) for width, noise, value in rows}
    assert found[50, 1.0] > 1.1 * found[50, 0.0]
    assert 1 / 1.25 < found[200, 0.0] / found[50, 0.0] < 1.25


@pytest.mark.slow
def test_every_rule_has_a_row() -> None:
    rows = said("early_stopping").splitlines()[2:]
    assert len(rows) == 14
    assert all(row.count("|") == 6 for row in rows)
    assert rows[0] == "| full run | 1.00 | 0.0000 | 0.000 | 0 of 1 |"


@pytest.mark.slow
def test_each_reduction_has_a_row_with_its_inputs_and_weights() -> None:
    text = said("reduction")
    rows = re.findall(r"\| digits \| ([^|]+) \| (\d+) \| (\d+)[^|]* \| ([\d,]+) \| (0\.\d+) \| ([^|]*)\|", text)
    assert len(rows) == 11
    for _, inputs, width, weights, _, _ in rows:
        d, w = int(inputs), int(width)
        assert int(weights.replace(",", "")) == (d + 1) * w + (w + 1) * 64 + 65 * 10
    counts = {name: int(inputs) for name, inputs, width, *_ in rows if int(width) == 64}
    assert counts["all"] == counts["de-duplicated"] == 61 > counts["n99"] > counts["n95"] > counts["n90"]
    assert {int(width) for _, _, width, *_ in rows} >= {16, 64, 256}


@pytest.mark.slow
def test_errors_of_the_lowest_and_highest_fifth_are_compared() -> None:
    (row,) = re.findall(r"\| digits \((\d+)\) \| 1 \| (0\.\d+) \| (0\.\d+) \| ([^|]*) \| ([^|]*) \| (\d+) % \|",
                        said("spectral_errors"))  # fmt: skip
    samples, error, balanced, tail, distance, share = row
    assert int(samples) == 1797 - round(0.7 * 1797)
    assert 0 < float(error) < 0.6
    assert float(balanced) == pytest.approx(float(error), abs=0.05)
    assert all(re.fullmatch(r"[+-]\d\.\d+, above 0 in [01] of 1(, below in [01])?", each) for each in (tail, distance))
    assert 10 < int(share) < 40


@pytest.mark.slow
def test_the_benchmark_of_the_gpu_asks_every_question_without_one_too(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    done = run("gpu", "--device", "cpu", "--tiny", "--out", str(file))
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    product, waits, memory, fit, pairs = (record["rows"] for record in records)
    assert [len(rows) for rows in (product, waits, memory, fit, pairs)] == [3, 3, 3, 2, 3]
    assert not any("failed" in str(row) for record in records for row in record["rows"]), records
    # A product from scratch holds a gradient and a backward through it.
    assert all(row["recomputed, gradients"] > 1 for row in product)
    assert all(row["waits for a product"] == "not counted" for row in waits)
    for row, pair in zip(memory, pairs, strict=True):
        # At least the ten wanted vectors and the ten that a restart needs besides.
        assert row["basis, MB"] * 2**20 >= 20 * 4 * pair["p"]
        assert pair["status"] == "CONVERGED"
        if "curvlinops, difference" in pair:
            assert pair["curvlinops, difference"] < 1e-3
    assert all(row["fit with, s"] > row["fit without, s"] for row in fit)
    assert all(row["hessian, s each"] > 0 for row in fit)
    assert "Waits are not counted without CUDA." in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_the_gpu_says_that_it_needs_one() -> None:
    done = run("gpu")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("This benchmark needs a CUDA device and there is none")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_every_way_to_compress_has_a_row_for_each_network() -> None:
    tables = said("compression")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if line.startswith("| ")
    ]
    values = {"784-32-32-10": {}, "tiny GPT": {}}
    network = iter(values)
    for row in rows:
        if row[0] == "method":
            assert row[1:] == ["0.5", "0.4", "0.4, fine-tuned"]
            name = next(network)
        elif row[0] != "---":
            values[name][row[0]] = [float(cell.split(" ")[0]) for cell in row[1:] if cell]
    common = {"compress", "SVD", "ASVD", "SVD-LLM", "magnitude pruning", "one ratio, our metric"}
    common |= {"our ranks, SVD", "our ranks, ASVD", "our ranks, SVD-LLM"}
    assert set(values["784-32-32-10"]) == common
    assert set(values["tiny GPT"]) == common | {"SliceGPT"}
    for found in values.values():
        assert all(len(row) == (2 if "our " in method else 3) for method, row in found.items())
    # Fine-tuning mends some of what was lost.
    assert all(row[2] < row[1] for row in values["tiny GPT"].values() if len(row) == 3)


@pytest.mark.slow
def test_the_gate_is_tried_on_unchanged_and_changed_rows() -> None:
    rows = [line.split(" | ") for line in said("drift_calibration").splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["| tuned", "| held out", "| power"]
    assert [float(row[6]) for row in rows[:2]] == [0, 0]
    assert float(rows[2][7]) == 1  # the changed column is named
