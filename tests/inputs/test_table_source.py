"""Tables from files and objects: one table, written in every way, is read the same."""

from __future__ import annotations

import gzip
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_sloppy.errors import ConfigurationError, MissingExtraError
from lightning_sloppy.inputs import encoded_table as encoding
from lightning_sloppy.inputs import table_in_memory as memory
from lightning_sloppy.inputs import table_source as sources
from lightning_sloppy.inputs.encoded_table import EncodedTable, encoded_table
from lightning_sloppy.inputs.row_influence import dominating_rows
from lightning_sloppy.inputs.table_source import table_source

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.standard_normal((120, 3)), columns=["a", "b [K]", "c, d"])
FRAME["count"] = RNG.integers(0, 9, 120)
FRAME.iloc[5:45, 1] = np.nan


def read(data, targets=(), missing=()) -> EncodedTable:
    return encoded_table(table_source(data, missing), targets, missing, lambda rows: None)


def numbers(table: EncodedTable) -> np.ndarray:
    return table.values * table.scale + table.shift


def assert_same(table: EncodedTable, *, names: bool = True) -> None:
    if names:
        assert table.names == tuple(FRAME.columns)
    np.testing.assert_allclose(numbers(table), FRAME.to_numpy(float), rtol=0, atol=1e-12)
    assert table.rows == 120


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t.csv", {}),
        ("t.tsv", {"sep": "\t"}),
        ("t.csv.gz", {}),
        ("t.csv.xz", {}),
        ("t.csv.zip", {}),
        ("t.txt", {"sep": "|"}),
        ("semicolons.csv", {"sep": ";", "decimal": ","}),
        ("gaps.csv", {"na_rep": "NA"}),
        ("marks.csv", {"na_rep": "?"}),
        ("none.csv", {"na_rep": "NaN"}),
    ],
)
def test_files_of_text(tmp_path, name, options) -> None:
    FRAME.to_csv(tmp_path / name, index=False, **options)
    assert_same(read(tmp_path / name))
    assert_same(read(str(tmp_path / name)))


def test_the_row_numbers_of_pandas_are_no_column(tmp_path) -> None:
    FRAME.to_csv(tmp_path / "t.csv")
    assert_same(read(tmp_path / "t.csv"))


@pytest.mark.parametrize("index", [True, False])
def test_columns_numbered_by_pandas_have_a_header(tmp_path, index) -> None:
    frame = FRAME.copy()
    frame.columns = range(4)
    frame.to_csv(tmp_path / "t.csv", index=index)
    assert_same(read(tmp_path / "t.csv"), names=False)


def test_files_without_a_header(tmp_path) -> None:
    FRAME.to_csv(tmp_path / "t.csv", header=False, index=False)
    table = read(tmp_path / "t.csv")
    assert table.names == ("0", "1", "2", "3")
    assert_same(table, names=False)
    FRAME.to_csv(tmp_path / "t.data", header=False, index=False, sep=" ", na_rep="NaN")
    assert_same(read(tmp_path / "t.data"), names=False)


def test_a_header_of_numbers_and_words_above_numbers(tmp_path) -> None:
    """As the sensors of a line are published: Time, 0, 1, ..., Pass/Fail."""
    frame = pd.DataFrame(RNG.standard_normal((40, 5)), columns=["Time", "0", "1", "2", "Pass/Fail"])
    frame["Time"] = pd.date_range("2008-07-19 11:55", periods=40, freq="h").astype(str)
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = read(tmp_path / "t.csv", targets=["Pass/Fail"])
    assert table.names == ("0", "1", "2")
    assert table.set_aside == {"Time": "dates"}
    assert set(table.targets) == {"Pass/Fail"}


def test_columnar_and_numpy_files(tmp_path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet")
    assert_same(read(tmp_path / "t.parquet"))
    np.save(tmp_path / "t.npy", FRAME.to_numpy(float))
    assert_same(read(tmp_path / "t.npy"), names=False)
    np.savez(tmp_path / "columns.npz", **{name: FRAME[name] for name in FRAME})
    assert_same(read(tmp_path / "columns.npz"))
    np.savez(tmp_path / "two.npz", x=FRAME.to_numpy(float)[:, :3], y=FRAME["count"])
    table = read(tmp_path / "two.npz", targets=["y"])
    assert table.names == ("x 0", "x 1", "x 2")
    np.save(tmp_path / "named.npy", np.array([(1.0, 2), (3.0, 5)], dtype=[("u", "f8"), ("v", "i4")]))
    assert read(tmp_path / "named.npy").names == ("u", "v")


@pytest.mark.parametrize(("code", "kind"), [(0x08, ">u1"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_files(tmp_path, code, kind) -> None:
    values = RNG.integers(0, 9, (50, 2, 2)).astype(kind)
    content = struct.pack(">HBBIII", 0, code, 3, *values.shape) + values.tobytes()
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    table = read(tmp_path / "x-idx3-ubyte.gz")
    assert table.names == ("0,0", "0,1", "1,0", "1,1")
    np.testing.assert_allclose(numbers(table), values.reshape(50, 4), rtol=0, atol=1e-12)


def test_objects_in_memory() -> None:
    values = FRAME.to_numpy(float)
    tensor = torch.from_numpy(values)
    assert_same(read(FRAME))
    assert_same(read({name: FRAME[name].to_numpy() for name in FRAME}))
    loader = DataLoader(TensorDataset(tensor, torch.zeros(120)), batch_size=7)
    for data in (values, tensor, values.tolist(), TensorDataset(tensor, torch.zeros(120)), loader, Samples(tensor)):
        assert_same(read(data), names=False)
    assert_same(read(Stream(tensor)), names=False)
    assert read(tensor.reshape(120, 2, 2)).names == ("0,0", "0,1", "1,0", "1,1")
    np.testing.assert_allclose(numbers(read(tensor[:, [0, 2]].bfloat16())), values[:, [0, 2]], atol=0.02)


def test_polars_and_arrow_tables() -> None:
    polars = pytest.importorskip("polars")
    arrow = pytest.importorskip("pyarrow")
    assert_same(read(polars.DataFrame({name: FRAME[name].to_numpy() for name in FRAME})))
    assert_same(read(polars.LazyFrame({name: FRAME[name].to_numpy() for name in FRAME})))
    assert_same(read(arrow.Table.from_pandas(FRAME)))


def test_nullable_types_of_pandas() -> None:
    frame = FRAME.copy()
    frame["count"] = frame["count"].astype("Int64")
    frame["b [K]"] = frame["b [K]"].astype("Float64")
    assert_same(read(frame))
    frame["flag"] = pd.array([True, None, False] * 40, dtype="boolean")
    assert np.isnan(read(frame).values[:, -1]).sum() == 40


class Samples(Dataset):
    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, index):
        return self.tensor[index], index


class Stream(IterableDataset):
    def __init__(self, tensor):
        self.tensor = tensor

    def __iter__(self):
        return iter(self.tensor)


def test_text_columns_are_encoded_or_set_aside_by_name() -> None:
    frame = FRAME.copy()
    frame["grade"] = ["L", "M", "H", None] * 30
    frame["shift"] = ["day", "night"] * 60
    frame["product"] = [f"M{index}" for index in range(120)]
    frame["when"] = pd.date_range("2024-01-01", periods=120)
    frame["clock"] = [f"{index % 24:02d}:15" for index in range(120)]
    frame["words"] = [f"remark {index % 40}" for index in range(120)]
    frame["dead"] = "on"
    frame["stuck"] = 7
    frame["empty"] = np.nan
    frame["lasted"] = pd.to_timedelta(np.arange(120) % 50, unit="s")
    table = read(frame)
    assert numbers(table)[:, -1] == pytest.approx(np.arange(120) % 50)
    assert table.encoded == {"grade": ("grade=H", "grade=L", "grade=M"), "shift": ("shift=night",)}
    assert table.constant == ("dead", "stuck")
    assert table.set_aside == {
        "product": "an identifier: all 120 texts differ",
        "when": "dates",
        "clock": "dates",
        "words": "text with 40 different values (at most 20 are encoded)",
        "empty": "no value at all",
    }
    grades = numbers(table)[:, [table.names.index(f"grade={letter}") for letter in "HLM"]]
    np.testing.assert_allclose(grades[:4], [[0, 1, 0], [0, 0, 1], [1, 0, 0], [np.nan] * 3], atol=1e-12)


def test_codes_of_ones_own_are_missing(tmp_path) -> None:
    frame = FRAME.copy()
    frame.iloc[10:20, 0] = -999
    frame["d"] = np.where(np.arange(120) % 3 == 0, "off", frame["c, d"].round(6).astype(str))
    frame.to_csv(tmp_path / "t.csv", index=False)
    for data in (frame, tmp_path / "t.csv"):
        table = read(data, missing=["-999", "off"])
        found = numbers(table)
        assert np.isnan(found[10:20, 0]).all()
        assert np.isnan(found[::3, 4]).all()
        np.testing.assert_allclose(found[1::3, 4], frame["c, d"].round(6)[1::3], atol=1e-12)
    assert np.isnan(read(frame.iloc[:, :3].to_numpy(float), missing=["-999"]).values[10:20, 0]).all()
    values = FRAME.to_numpy(float)
    values[3, 0] = np.inf
    assert np.isnan(read(values, missing=["inf"]).values[3, 0])


def test_columns_hardly_observed_are_set_aside() -> None:
    values = RNG.standard_normal((1_000, 3))
    values[40:, 1] = np.nan  # 40 rows of 1,000
    values[55:, 2] = np.nan
    table = read(values)
    assert table.set_aside == {"1": "hardly observed: 40 of 1,000 rows"}
    assert table.names == ("0", "2")


@pytest.mark.parametrize("gaps", [False, True])
def test_a_table_too_large_for_the_memory_is_read_twice(tmp_path, monkeypatch, gaps) -> None:
    frame = pd.DataFrame(RNG.standard_normal((3_000, 4)) @ RNG.standard_normal((4, 4)) + 50, columns=list("abcd"))
    frame["kind"] = ["x", "y", "z"] * 1_000
    if gaps:
        frame.iloc[::7, 1] = np.nan
    frame.iloc[1_234, :4] *= 100
    frame.to_parquet(tmp_path / "t.parquet")
    whole = read(tmp_path / "t.parquet")
    monkeypatch.setattr(encoding, "IN_MEMORY", 5_000)
    monkeypatch.setattr(encoding, "SAMPLED", 3_000)
    monkeypatch.setattr(encoding, "RUN", 10)
    monkeypatch.setattr(sources, "CHUNK_CELLS", 1_000)  # of files
    monkeypatch.setattr(memory, "CHUNK_CELLS", 1_000)
    large = read(tmp_path / "t.parquet")
    assert large.sampled
    assert not whole.sampled
    assert large.names == whole.names
    assert sum(part.rows for part in large.parts) == large.moments.rows == 3_000
    assert 16 <= len(large.parts) <= 128
    assert len(large.values) < 500
    assert large.heavy[0][0] == 1_234
    assert dominating_rows(large.heavy[1], large.moments)[:1] == [0]
    assert dominating_rows(whole.values, whole.moments)[:1] == [1_234]
    np.testing.assert_allclose(large.moments.correlation()[0], whole.moments.correlation()[0], rtol=0, atol=1e-12)
    _, mean, variance = large.moments.of_columns()
    np.testing.assert_allclose(large.shift + large.scale * mean, whole.shift, rtol=1e-12)
    np.testing.assert_allclose(large.scale * np.sqrt(variance), whole.scale, rtol=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "holds no rows"),
        (b"a,b\n1,2\n", "holds 1 row;"),
        (b"a,a\n1,2\n3,4\n", "names the column 'a' twice"),
        (b"a,b\n1,2\n3,4,5\n6,7\n", r"row 1 \(counted from 0\) has more than 2 cells"),
        (b"a,b\n1,2\n3,4,5,6\n6,7\n", "cannot be read as a table"),
        ("größe,b\n1,2\n3,4\n".encode("latin1"), r"not text in UTF-8 \(byte 0xf6\)"),
        (b"a,b\n" + b"1,2\n" * 5_000 + b"\xfc,3\n", r"not text in UTF-8 \(byte 0xfc\)"),
        ("a,b\n1,2\n".encode("utf-16"), "not text in UTF-8"),
        (b"a,b\n" + b"1,2\n" * 40, "No column of .* can be used: of 2, 2 constant"),
        (b"a,b\n" + b",\n" * 40, "can be used: of 2, 2 no value at all"),
        (b"a,b\n1,2\n3,inf\n5,6\n", r"Row 1 \(counted from 0\) of the column 'b' is infinite"),
    ],
)
def test_bad_files_of_text_are_refused_in_one_sentence(tmp_path, content, message) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_numbers_mixed_with_text_are_refused() -> None:
    values = FRAME["a"].astype(object)
    values[13] = "broken"
    with pytest.raises(ConfigurationError, match=r"'a' mixes numbers and text: row 13 \(counted from 0\) is 'broken'"):
        read(pd.DataFrame({"a": values, "b": FRAME["count"]}))
    few = read({"n": np.array(["0", "1", "2", "3+"] * 30, dtype=object)})
    assert few.encoded == {"n": ("n=0", "n=1", "n=2", "n=3+")}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.csv", "There is no file"),
        (".", "is a folder"),
        (7, "but a int was given"),
        ([[1.0, 2.0], [3.0]], "rows of different lengths"),
        (np.float64(3), "but a float64 was given"),
        (np.zeros((3, 9_000)), "9,000 columns, but at most 8,192"),
        (np.ones((4, 2)) * 1j, "complex numbers"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "different lengths"),
        (pd.DataFrame(np.zeros((3, 2)), columns=["a", "a"]), "names the column 'a' twice"),
        (TensorDataset(torch.zeros(0, 3)), "holds no rows"),
        (DataLoader(torch.arange(4.0), batch_size=2), "has the shape"),
        ([torch.zeros(2), torch.zeros(3)], "rows of different lengths|different lengths"),
    ],
)
def test_other_objects_are_refused(data, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(data)


def test_bad_binary_files_are_refused(tmp_path) -> None:
    for name in ("t.npy", "t.npz", "t.parquet", "t.csv.gz", "t.csv.zip", "x-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"nonsense" * 9)
        with pytest.raises(ConfigurationError) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "1,2\n")
        archive.writestr("b.csv", "1,2\n")
    with pytest.raises(ConfigurationError, match=r"holds 2 files \(a.csv, b.csv\)"):
        read(tmp_path / "two.zip")


def test_an_unknown_target_is_named_with_what_is_near() -> None:
    with pytest.raises(ConfigurationError, match=r"target .cuont. is no column .* for instance, count"):
        read(FRAME, targets=["cuont"])


def test_a_missing_extra_is_named(tmp_path, monkeypatch) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs pandas.*'lightning-sloppy\[data\]'"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "names", "firsts"),
    [
        ("x,y\n1,2,\n3,5,\n4,4,\n", ("x", "y"), (1.0, 2.0)),
        ('"x\nunit",y\n1,2\n3,5\n4,4\n', ("x\nunit", "y"), (1.0, 2.0)),
        ("\n\nx,y\n1,2\n3,5\n4,4\n", ("x", "y"), (1.0, 2.0)),
        ("x,y\na,1,2\nb,3,5\nc,4,4\n", ("x", "y"), (1.0, 2.0)),
    ],
    ids=["delimiter at the end", "line break in a name", "blank lines above", "row names without a heading"],
)
def test_names_stand_above_their_own_columns(tmp_path, text, names, firsts) -> None:
    (tmp_path / "t.csv").write_text(text)
    table = read(tmp_path / "t.csv")
    used = [table.names.index(name) for name in names]
    np.testing.assert_allclose(numbers(table)[0, used], firsts)
    assert table.rows == 3


def test_what_is_masked_is_missing() -> None:
    values = np.ma.masked_greater(np.where(np.arange(80).reshape(40, 2) % 7 == 0, 1e20, np.random.rand(40, 2)), 1e10)  # noqa: NPY002
    table = read(values)
    assert np.isnan(table.values).sum() == values.mask.sum() > 0
    assert numbers(table)[~np.isnan(table.values)].max() <= 1


def test_texts_of_pandas_with_na_are_read() -> None:
    frame = FRAME.copy()
    frame["kind"] = pd.array(["a", "b", pd.NA] * 40, dtype="string")
    assert np.isnan(read(frame).values[:, -1]).sum() == 40


def test_a_category_that_gets_the_name_of_a_column_is_refused() -> None:
    frame = FRAME.assign(a=["x", "y", "z"] * 40).assign(**{"a=x": np.arange(120.0) ** 2})
    with pytest.raises(ConfigurationError, match="'a=x', and a category of another column gets the same name"):
        read(frame)
