"""Tables as other tools write them: what stands above them, dates, cells with several values, files of other kinds."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.encoded_table import EncodedTable, encoded_table
from lightning_sloppy.inputs.table_source import table_source

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"a": RNG.standard_normal(120), "count": RNG.integers(0, 9, 120)})


def read(data) -> EncodedTable:
    return encoded_table(table_source(data), (), (), lambda rows: None)


def numbers(table: EncodedTable) -> np.ndarray:
    return table.values * table.scale + table.shift


@pytest.mark.parametrize(
    ("above", "delimiter", "names"),
    [
        ("sep=;\nx;y\n", ";", ("x", "y")),
        ("sep=;\n", ";", ("0", "1")),
        ("# line 3, night shift, oil\n\n# exported\nx,y\n", ",", ("x", "y")),
        ("# exported\n", ",", ("0", "1")),
        ("# x,y\n", ",", ("x", "y")),
    ],
    ids=["Excel", "Excel without names", "remarks", "remarks without names", "names as numpy.savetxt writes them"],
)
def test_what_stands_above_a_table_is_no_row(tmp_path, above, delimiter, names) -> None:
    values = RNG.standard_normal((40, 2)).round(3)
    text = above + "".join(f"{x}{delimiter}{y}\n" for x, y in values)
    (tmp_path / "t.csv").write_text(text)
    table = read(tmp_path / "t.csv")
    assert table.names == names
    np.testing.assert_allclose(numbers(table), values, atol=1e-12)


def test_numbers_between_spaces_are_columns_and_words_are_not(tmp_path) -> None:
    values = RNG.standard_normal((40, 2)).round(3)
    (tmp_path / "t.csv").write_text("x y\n" + "".join(f"{x} {y}\n" for x, y in values))
    np.testing.assert_allclose(numbers(read(tmp_path / "t.csv")), values, atol=1e-12)
    (tmp_path / "t.csv").write_text("state\n" + "".join(f"line {'ab'[i % 2]}\n" for i in range(40)))
    assert read(tmp_path / "t.csv").names == ("state=line b",)


def test_lines_longer_than_a_cell_may_be_are_read(tmp_path) -> None:
    """2,500 columns of 60 characters: by the wrong delimiter a line is one cell, and csv takes 131,072 characters."""
    values = RNG.standard_normal((30, 2_500))
    lines = [",".join(f"{value:.50f}" for value in row) for row in values]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert min(map(len, lines)) > 131_072
    np.testing.assert_allclose(numbers(read(tmp_path / "t.csv")), values, atol=1e-12)
    (tmp_path / "t.csv").write_text("\n".join(",".join(map(str, range(k, 9_000 + k))) for k in range(30)))
    with pytest.raises(ConfigurationError, match="9,000 columns, but at most 8,192"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "pattern",
    [
        "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S+02:00", "%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%H:%M",
        "%d-%b-%Y %H:%M:%S", "%B %d, %Y", "%b %d %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S", "%d. %B %Y",
        "%Y-%m", "%G-W%V",
    ],
)  # fmt: skip
def test_dates_of_many_styles_are_set_aside(pattern) -> None:
    when = pd.date_range("2024-01-30 06:30", periods=120, freq="6h").strftime(pattern).to_numpy(object)
    assert read({"when": when, "x": FRAME["count"].to_numpy()}).set_aside == {"when": "dates"}


@pytest.mark.parametrize("word", ["Model 12", "March 3x", "May be 7", "Machine 3, 2024", "2024-19", "12 marbles 3"])
def test_words_that_look_a_little_like_dates_are_none(word) -> None:
    cells = np.array([word, "other"] * 60, dtype=object)
    assert read({"kind": cells, "x": FRAME["count"].to_numpy()}).encoded == {"kind": (f"kind={max(word, 'other')}",)}


def test_cells_with_several_values_are_set_aside(tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = [[float(i % 2), 2.0] for i in range(120)]
    table = arrow.Table.from_pandas(FRAME)
    table = table.append_column("lists", arrow.array(lists))
    table = table.append_column("records", arrow.array([{"u": i % 2} for i in range(120)]))
    parquet.write_table(table, tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert found.set_aside == dict.fromkeys(("lists", "records"), "lists or records in its cells")
    assert found.names == tuple(FRAME.columns)


@pytest.mark.parametrize("kind", ["lists", "arrays", "records"])
def test_cells_with_several_values_of_polars_are_set_aside(kind) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"x": FRAME["count"].to_numpy(), "y": FRAME["a"].to_numpy()})
    column = {
        "lists": polars.Series("s", [[1, 2]] * 120),
        "arrays": polars.Series("s", RNG.standard_normal((120, 3))),
        "records": frame.select(polars.struct("x", "y").alias("s"))["s"],
    }[kind]
    found = read(frame.with_columns(column))
    assert found.set_aside == {"s": "lists or records in its cells"}
    assert found.names == ("x", "y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", gzip.compress(b"a,b\n1,2\n3,4\n"), "is packed with gzip; give it a name that ends with .gz"),
        ("t.csv", b"PK\x03\x04" + bytes(60), "is a zip archive or a spreadsheet"),
        ("t.txt", b"PAR1" + bytes(60), "is a parquet file; give it a name that ends with .parquet"),
        (
            "t.xlsx",
            b"PK\x03\x04" + bytes(60),
            "is a spreadsheet, which is not read; save its table as .csv or .parquet",
        ),
        ("t.json", b'[{"a": 1}]', "is JSON, which is not read"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
