"""Later rows beside a reference: unchanged processes pass, what changed is found and named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import signal, stats

from lightning_sloppy import ConfigurationError, DriftReport, drift_report, inspect
from lightning_sloppy.drift.comparing import compared, reference_from
from lightning_sloppy.drift.differences import Columns, TopSpace, described, differences, top_space
from lightning_sloppy.drift.later_rows import LaterRows, read_later
from lightning_sloppy.drift.presence import less_often, more_often
from lightning_sloppy.inputs.encoded_table import encoded_table
from lightning_sloppy.inputs.noise_edge import median_lag_one
from lightning_sloppy.inputs.row_parts import CutMoments, row_parts
from lightning_sloppy.inputs.table_source import table_source
from lightning_sloppy.inspection.reference import reference_of

D = 12
NAMES = [f"sensor {index}" for index in range(D)]


def process(rows: int, seed: int, phi: float = 0.6, d: int = D) -> np.ndarray:
    """Autocorrelated rows; three columns each share a factor."""
    rng = np.random.default_rng(seed)
    found = signal.lfilter([1.0], [1.0, -phi], rng.standard_normal((rows + 100, 2 * d)), axis=0)[100:]
    return found[:, :d] + found[:, d + np.arange(d) // 3 * 3]


def frame(seed: int = 0, rows: int = 1_500, first: int = 0) -> pd.DataFrame:
    """Rows from ``first`` on of one process."""
    found = pd.DataFrame(process(3_000, seed)[first : first + rows], columns=NAMES)
    rng = np.random.default_rng(seed + 1_000 * first)
    found["line"] = rng.choice(["A", "B", "C"], rows)
    found["site"] = "north"
    found["dead"] = 3.0
    found["failed"] = rng.integers(0, 2, rows)
    found.loc[rng.random(rows) < 0.1, "sensor 5"] = np.nan
    return found


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "old.json"
    inspect(frame(), target="failed", intervals=False).save(path)
    return path


def later(**changes: Any) -> pd.DataFrame:
    return frame(first=2_000, rows=1_000).assign(**changes)


def test_two_stretches_of_one_process_are_the_same(old: Path) -> None:
    found = drift_report(later(), old)
    assert (found.answer, found.responsible, found.notes) == ("same", (), ())
    assert found.targets == ("failed",)  # neither new nor compared
    assert found.compared == D + 3
    assert drift_report(frame(), old).answer == "same"


def test_a_report_in_memory_is_a_reference_as_its_file_is(old: Path) -> None:
    report = inspect(frame(), target="failed", intervals=False)
    for changed in (later(), later(**{"sensor 3": 1.0})):
        memory, file = (json.loads(drift_report(changed, each).to_json()) for each in (report, old))
        assert (memory.pop("reference"), file.pop("reference")) == ("The pandas frame", str(old))
        assert memory == file


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda values, _: values + 1.2, "mean"),
        (lambda values, _: values * 2, "deviation"),
        (lambda values, rng: np.where(rng.random(len(values)) < 0.3, np.nan, values), "missing"),
        (lambda values, rng: rng.permutation(values), "correlations"),
    ],
)
def test_what_changed_in_one_column_is_named(old: Path, change: Any, what: str) -> None:
    # Values of sensor 5 are missing in the reference, so that it has a rate to compare with.
    column = "sensor 5" if what == "missing" else "sensor 4"
    table = later()
    table[column] = change(table[column].to_numpy(), np.random.default_rng(0))
    found = drift_report(table, old)
    assert found.is_drift
    assert column in found.responsible
    assert any(each.name == column and each.what == what for each in found.columns) or column in found.newly_missing
    mates = {"sensor 3", "sensor 4", "sensor 5"}
    assert set(found.responsible) <= mates
    if what == "correlations":
        assert {frozenset((pair.first, pair.second)) for pair in found.pairs} >= {
            frozenset(("sensor 3", "sensor 4")),
            frozenset(("sensor 4", "sensor 5")),
        }
        pair = found.pairs[0]
        truth = [table[[pair.first, pair.second]].corr().iloc[0, 1] for table in (frame(), table)]
        assert (pair.before, pair.after) == pytest.approx(truth, abs=0.05)


def test_columns_that_come_go_stop_or_start(old: Path) -> None:
    table = later(extra=np.arange(1_000.0), dead=4.0, **{"sensor 2": 1.5}).drop(columns="sensor 7")
    table.loc[400:, "line"] = "D"
    table.loc[np.random.default_rng(0).random(1_000) < 0.1, "sensor 9"] = np.nan
    found = drift_report(table, old)
    assert found.is_drift
    assert (found.lost, found.new) == (("sensor 7",), ("extra",))
    assert found.newly_constant == ("sensor 2",)
    assert found.constant_values == {"sensor 2": 1.5}
    assert found.newly_varying == ("dead",)
    assert found.new_categories == {"line": ("D",)}
    assert found.newly_missing["sensor 9"] == pytest.approx((0.0, table["sensor 9"].isna().mean()))
    assert found.responsible[:3] == ("sensor 7", "extra", "sensor 2")


def test_single_exceptions_are_notes(old: Path) -> None:
    table = later()
    table.loc[500, "dead"] = 5.0
    table.loc[510, "line"] = "Z"
    found = drift_report(table, old)
    assert found.answer == "same"
    assert "Constant in the reference, and other values now, in too few blocks to call it drift: dead." in found.notes
    assert "New categories of line, in too few blocks to call it drift: Z." in found.notes


def test_the_order_of_columns_and_another_last_category_change_nothing(old: Path) -> None:
    table = later()
    found = drift_report(table[table.columns[::-1]], old)
    assert found.to_json() == drift_report(table, old).to_json()
    lost = table[table["line"] != "B"].reset_index(drop=True)
    assert drift_report(lost, old).constant_values == {"line=B": 0.0}


def test_numbers_of_a_column_are_those_of_the_table_unless_single_values_are_wild(old: Path) -> None:
    reference, table = frame()["sensor 4"], later()
    table["sensor 4"] = 10 * table["sensor 4"] + 300
    table.loc[3, "sensor 4"] = np.nan
    found = drift_report(table, old)
    (mean,) = (each for each in found.columns if (each.name, each.what) == ("sensor 4", "mean"))
    assert (mean.before, mean.after) == pytest.approx((reference.mean(), table["sensor 4"].mean()), rel=1e-9, abs=1e-6)
    assert mean.cut_off == 1.0
    assert not any("another unit" in note for note in found.notes)  # the mean is not ten times as large
    assert any(note.startswith("100 % of the values of sensor 4 are outside") for note in found.notes)
    table = later(**{"sensor 4": later()["sensor 4"] + 1.5})
    honest = table["sensor 4"].mean()
    table.loc[17, "sensor 4"] = 1e6
    found = drift_report(table, old)
    (mean,) = (each for each in found.columns if (each.name, each.what) == ("sensor 4", "mean"))
    assert mean.after == pytest.approx(honest, abs=0.05)
    assert found.notes == ()


def test_a_wild_row_is_no_drift(old: Path) -> None:
    table = later()
    table.loc[17, NAMES] = 1e6
    assert drift_report(table, old).answer == "same"


def test_the_seed_decides_and_alpha_moves_the_limit(old: Path) -> None:
    table = later(**{"sensor 4": later()["sensor 4"] + 0.5})
    loose, strict = (drift_report(table, old, alpha=alpha) for alpha in (0.5, 0.01))
    assert loose.limit < drift_report(table, old).limit < strict.limit
    assert drift_report(table, old, seed=3).to_json() == drift_report(table, old, seed=3).to_json()


def test_statistics_are_those_of_the_two_tables() -> None:
    """Against numpy: without outliers nothing is cut off."""
    first, second = process(400, 1, d=6), process(300, 2, d=6)
    shift, scale = first.mean(0), first.std(0)
    parts = row_parts((first - shift) / scale)
    assert parts is not None
    every = np.ones(6, bool)
    columns = Columns(every, every, ~every, every, np.ones(15, bool))
    cut = np.clip((second - shift) / scale, parts.low, parts.high)
    one, two = described(parts.whole, columns), described(CutMoments.of(cut), columns)
    r = [np.corrcoef(values, rowvar=False) for values in (np.clip((first - shift) / scale, parts.low, parts.high), cut)]
    found = differences(one, two, columns, TopSpace(2))
    z = np.arctanh(np.clip(r[1], -0.999, 0.999)) - np.arctanh(np.clip(r[0], -0.999, 0.999))
    np.fill_diagonal(z, 0.0)
    np.testing.assert_allclose(found.mean, cut.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.deviation, np.log(cut.std(0)), atol=1e-5)
    np.testing.assert_allclose(found.distance, np.linalg.norm(z), rtol=1e-4)
    np.testing.assert_allclose(found.one_pair, np.abs(z).max(1), rtol=1e-4)
    np.testing.assert_allclose(found.all_pairs, np.sqrt((z**2).mean(1)), rtol=1e-4)
    np.testing.assert_allclose(found.squared, [(each**2).sum() for each in r], rtol=1e-5)
    spaces = [np.linalg.eigh(each)[1][:, -2:] for each in r]
    overlap = np.linalg.norm(spaces[0].T @ spaces[1]) ** 2 / 2
    assert 1 - found.angle**2 == pytest.approx(overlap, abs=1e-4)


def test_the_top_space_ends_at_a_gap() -> None:
    every = np.ones(6, bool)
    columns = Columns(every, every, ~every, every, np.ones(15, bool))
    rng = np.random.default_rng(0)
    # Two pairs of copies: two equal eigenvalues near 2, then a gap. Independent columns: no gap at all.
    values = rng.standard_normal((4_000, 6))
    values[:, 1], values[:, 3] = values[:, 0] + 0.1 * values[:, 1], values[:, 2] + 0.1 * values[:, 3]
    values = (values - values.mean(0)) / values.std(0)
    assert top_space(described(CutMoments.of(values), columns), columns).k == 2
    assert top_space(described(CutMoments.of(rng.standard_normal((4_000, 6))), columns), columns).k == 0


def test_blocks_in_which_something_occurs_are_compared_exactly() -> None:
    rng = np.random.default_rng(2)  # in no column are neighbouring blocks more alike than chance makes them
    before, after = rng.random((40, 5)) < 0.3, rng.random((30, 5)) < 0.6
    for column in range(5):
        a, c = int(before[:, column].sum()), int(after[:, column].sum())
        table = [[c, 30 - c], [a, 40 - a]]
        assert more_often(before, after, 1)[column] == pytest.approx(stats.fisher_exact(table, "greater").pvalue)
        assert less_often(before, after, 1)[column] == pytest.approx(stats.fisher_exact(table, "less").pvalue)


def test_what_lasts_is_counted_as_often_as_it_begins() -> None:
    spell = np.zeros((60, 1), dtype=bool)
    spell[5:25] = spell[40:55] = True
    always, scattered = np.ones((20, 1), dtype=bool), np.zeros((60, 1), dtype=bool)
    scattered[::7] = True
    # One long outage beside two in the reference is no news; as many blocks, scattered, would be.
    assert more_often(spell, always, 1)[0] > 0.05
    assert more_often(scattered, always, 1)[0] < 1e-6
    assert stats.hypergeom.sf(19, 80, 55, 20) < 0.001


def test_an_outage_in_too_few_stretches_is_a_note() -> None:
    values = process(3_000, 0, phi=0.95, d=4)
    old = inspect(values[:2_000], intervals=False)
    new = values[2_000:].copy()
    new[300:600, 1] = np.nan
    found = drift_report(new, old)
    assert found.answer == "same"
    assert any("too few stretches of rows to call it drift: 1 (0.0 % -> 30.0 %)." in note for note in found.notes)


def test_few_rows_say_how_large_a_change_they_show() -> None:
    values = process(1_500, 0)
    old = inspect(values[:1_000], intervals=False)
    few, many = (drift_report(values[1_000 : 1_000 + rows], old).notes for rows in (30, 500))
    assert not any(note.startswith("With so few") for note in many)
    (note,) = [note for note in few if note.startswith("With so few independent rows only large changes are seen")]
    shift = float(re.findall(r"a mean by about ([\d.]+) standard deviations", note)[0])
    drawn = values[1_000:1_030].copy()
    drawn[:, 2] += 3 * shift
    assert "2" in drift_report(drawn, old).responsible


def test_long_outages_of_an_unchanged_process_are_no_drift() -> None:
    called = 0
    for seed in range(8):
        values, rng = process(2_000, seed, d=4), np.random.default_rng(100 + seed)
        away = np.cumsum(rng.random((2_000, 4)) < 0.005, axis=0) % 2 == 1  # begins and ends every 200 rows
        table = np.where(away, np.nan, values)
        called += bool(drift_report(table[1_000:], inspect(table[:1_000], intervals=False)).newly_missing)
    assert called <= 1


def test_rows_of_several_processes_are_those_of_one(old: Path) -> None:
    reference = reference_from(old)
    source = table_source(later())
    whole = read_later(source, reference, ["failed"], (), lambda _: None)
    halves = [
        read_later(table_source(part.reset_index(drop=True)), reference, ["failed"], (), lambda _: None)
        for part in (later()[:600], later()[600:])
    ]
    joined = LaterRows.joined(reference, [half.packed() for half in halves])
    assert joined.rows == whole.rows
    assert joined.moments is not None
    assert whole.moments is not None
    for name, array in whole.moments.arrays().items():
        np.testing.assert_allclose(joined.moments.arrays()[name], array, rtol=1e-9)
    names = list(source.names)
    assert compared(joined, reference, "x", names).answer == compared(whole, reference, "x", names).answer == "same"


def test_chunks_of_any_size_give_the_same(old: Path) -> None:
    reference = reference_from(old)
    values = np.stack([process(700, 3)[:, 0]] * len(reference.names), axis=1)
    values[[5, 90], 0] = np.nan
    known = []
    for size in (700, 37, 5):
        rows = LaterRows(reference, np.ones(len(reference.names), bool), ("dead",))
        for start in range(0, 700, size):
            where = np.zeros((min(size, 700 - start), 1), bool)
            where[:, 0] = np.arange(start, start + len(where)) == 333
            rows.add(values[start : start + size], where, {"line": (where[:, 0], {"Q"})} if where.any() else None)
        known.append(rows)
    for other in known[1:]:
        for name in ("departs", "varies", "gaps"):
            assert np.array_equal(getattr(other.presence, name), getattr(known[0].presence, name))
        assert np.array_equal(other.constant_departs, known[0].constant_departs)
        assert np.array_equal(other.unseen["line"][0], known[0].unseen["line"][0])
    assert known[0].unseen["line"][0].sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "d", "rows"), [(0.6, 6, 600), (0.9, 4, 800)])
def test_unchanged_processes_are_seldom_drift(phi: float, d: int, rows: int) -> None:
    """benchmarks/drift_calibration.py has more of them, and larger ones."""
    called = 0
    for seed in range(30):
        values = process(2 * rows, seed, phi, d)
        table = encoded_table(table_source(values[:rows]), (), (), lambda _: None)
        reference = reference_of(table, (), (), median_lag_one(table.values))
        source = table_source(values[rows:])
        found = compared(read_later(source, reference, (), (), lambda _: None), reference, "x", list(source.names))
        called += found.is_drift
    assert called <= stats.binom.ppf(0.999, 30, 0.05)


def test_the_file_is_plain_json(old: Path) -> None:
    found = drift_report(later(**{"sensor 4": 1.0}), old)
    read = json.loads(found.to_json())
    assert read["version"] == 1
    assert (read["answer"], read["newly_constant"]) == ("drift", ["sensor 4"])
    assert {"statistics", "columns", "pairs", "limit", "responsible", "notes"} <= set(read)
    assert "answer drift" in repr(found)


def report_of(values: Any, path: Path, **options: Any) -> Path:
    inspect(values, intervals=False, **options).save(path)
    return path


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda path: path.unlink(),
            r"There is no file .*old.json; pass the FILE that lightning-sloppy inspect TABLE --json FILE wrote",
        ),
        # It may be the table itself: the advice must not be to write there.
        (lambda path: path.write_text("a,b\n1,2\n"), r"old.json is no report of inspect .*; pass the FILE that"),
        (lambda path: path.write_text('{"version": 1}'), r"old.json is no report of inspect; pass the FILE that"),
        (
            lambda path: path.with_suffix(".npz").unlink(),
            r"arrays of .*old.json are missing: there is no file .*old.npz",
        ),
        (lambda path: path.with_suffix(".npz").write_bytes(b"x"), r"old.npz does not hold the arrays of"),
        (lambda path: _change(path, version=2), r"has the version 2, but this version of lightning-sloppy reads 1"),
        (lambda path: _forget(path), r"was written by a version of lightning-sloppy whose reports cannot be compared"),
        (lambda path: _change(path, names=["q"]), r"does not hold the arrays of .* \(their columns differ\)"),
    ],
)
def test_files_that_are_no_reference_are_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    path = report_of(process(100, 0), tmp_path / "old.json")
    spoil(path)
    with pytest.raises(ConfigurationError, match=said):
        drift_report(process(100, 1), path)


def _change(path: Path, **keys: Any) -> None:
    found = json.loads(path.read_text())
    for name, value in keys.items():
        (found["details"] if name == "names" else found)[name] = value
    path.write_text(json.dumps(found))


def _forget(path: Path) -> None:
    found = json.loads(path.read_text())
    del found["details"]["reference"]
    path.write_text(json.dumps(found))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    path = report_of(dict(zip("abcd", process(200, 0, d=4).T, strict=True)), tmp_path / "o.json")
    table = dict(zip("abcd", process(200, 1, d=4).T, strict=True))
    for spoilt, said in (
        ({"a": table["a"], "x": table["b"]}, "has 1 of the 4 columns that are used there, and half are needed"),
        (
            {name: column[:10] for name, column in table.items()},
            f"The mapping cannot be compared with {path}: of 20 rows that are needed there are 10",
        ),
        ({name: column[:0] for name, column in table.items()}, "holds no rows"),
        (table | {"b": np.array(["A"] * 200)}, "column 'b' holds numbers in the reference, but row 0 .* is 'A'"),
        (table | {"b": np.full(200, np.inf)}, "Row 0 .* of the column 'b' is infinite"),
        ({name: np.ones(200) for name in "abcd"}, "no column varies"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            drift_report(spoilt, path)
    short = inspect(process(7, 0, d=2), intervals=False)
    with pytest.raises(ConfigurationError, match="its 7 rows make 7 blocks, and 8 are needed"):
        drift_report(process(100, 0, d=2), short)
    for alpha in (0.0, -1.0, 0.6, 1e-6, float("nan"), "0.05"):
        with pytest.raises(ConfigurationError, match="alpha="):
            drift_report(table, path, alpha=alpha)
    with pytest.raises(ConfigurationError, match="target 'q' is no column"):
        drift_report(table, path, target="q")


def test_a_table_of_rare_flags_is_compared_by_where_they_occur() -> None:
    rng = np.random.default_rng(0)
    flags, alike, more = ((rng.random((1_000, 4)) < rate).astype(float) for rate in (0.01, 0.01, 0.08))
    old = inspect(flags, intervals=False)
    assert drift_report(alike, old).answer == "same"
    assert set(drift_report(more, old).newly_varying) == set("0123")


def test_columns_that_wander_are_not_judged() -> None:
    values = process(2_000, 0, d=6)
    values[:, 2] = np.cumsum(np.random.default_rng(0).standard_normal(2_000))
    found = drift_report(values[1_000:], inspect(values[:1_000], intervals=False))
    assert found.answer == "same"
    assert any(note.startswith("Of 2 the correlations are not compared") for note in found.notes)
    assert found.too_slow == ("2",)
    assert found.sentence().endswith("beyond chance.")


def test_the_answer_says_if_most_columns_are_not_judged() -> None:
    values = process(2_000, 0, d=5)
    values[:, :3] = np.cumsum(np.random.default_rng(0).standard_normal((2_000, 3)), 0)
    found = drift_report(values[1_000:], inspect(values[:1_000], intervals=False))
    assert (found.answer, found.too_slow) == ("same", ("0", "1", "2"))
    assert found.sentence().endswith(
        f"beyond chance, as far as can be said: 3 of {found.compared} columns change too slowly to be compared in full."
    )


def test_a_counter_beside_the_columns_does_not_hide_what_they_do() -> None:
    values = process(2_000, 0, d=6)
    limits = []
    for table in (values, np.column_stack([values, np.arange(2_000.0)])):
        found = drift_report(table[1_000:], inspect(table[:1_000], intervals=False))
        limits.append({each.name: each.limit for each in found.statistics})
    for name in ("one_pair", "all_pairs", "distance"):
        assert limits[1][name] == pytest.approx(limits[0][name], rel=0.25)
    assert 1 - limits[1]["overlap"] == pytest.approx(1 - limits[0]["overlap"], rel=0.25)


def test_a_column_left_out_on_request_is_not_lost(old: Path) -> None:
    found = drift_report(later(), old, target="sensor 3")
    assert (found.answer, found.lost, found.targets) == ("same", (), ("sensor 3", "failed"))


def test_the_report_is_a_record(old: Path) -> None:
    found = drift_report(later(), old)
    assert isinstance(found, DriftReport)
    assert found.sentence() == f"No drift from {old} to the pandas frame beyond chance."


def test_the_page_shows_what_it_prints(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "drift.md").read_text()
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for text in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(text, namespace)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert capsys.readouterr().out == shown
