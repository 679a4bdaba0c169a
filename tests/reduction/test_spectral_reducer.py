"""SpectralReducer as a transformer of scikit-learn: its checks, frames, pipelines, refusals."""

from __future__ import annotations

import pickle
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from lightning_sloppy import ConfigurationError, SpectralReducer

SETTINGS = [{}, {"project": "n95"}, {"threshold": None, "project": 1, "standardize": False}]


def table(rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, rows))
    return pd.DataFrame({"a": a, "b": b, "twice a": 2 * a, "one": 1, "count": rng.integers(0, 9, rows)})


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_checks_of_scikit_learn_pass(settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # checks of array API libraries are skipped with a warning
        estimator_checks.check_estimator(SpectralReducer(**settings))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "check",
    [
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_global_output_transform_pandas",
    ],
)
def test_the_checks_of_names_and_frames_pass(check, settings) -> None:
    found = getattr(estimator_checks, check, None)
    if found is None:
        pytest.skip("not in this release of scikit-learn")
    if "polars" in check:
        pytest.importorskip("polars")
    with warnings.catch_warnings():
        # They give frames to what was fitted on arrays, and the other way round.
        warnings.filterwarnings("ignore", ".*feature names.*", UserWarning)
        found("SpectralReducer", SpectralReducer(**settings))


def test_other_names_are_refused_in_words_of_our_own() -> None:
    """check_dataframe_column_names_consistency asks for the wording of scikit-learn, which is several lines."""
    frame = table()
    reducer = SpectralReducer().fit(frame)
    assert reducer.feature_names_in_.tolist() == list(frame.columns)
    for other, words in {
        "order": (frame[["b", "a", "twice a", "one", "count"]], r"in another order \(place 0 is 'b', but was 'a'\)"),
        "missing": (frame.drop(columns="one"), r"missing: one; select them by name"),
        "extra": (frame.assign(new=1), r"unknown: new; select them"),
        "twice": (frame[[*frame.columns, "b"]], "twice: b; select"),
        "renamed": (frame.rename(columns={"a": "A"}), r"missing: a; unknown: A; select"),
    }.values():
        with pytest.raises(ConfigurationError, match=rf"^The columns are not those of fit, {words}") as caught:
            reducer.transform(other)
        assert "\n" not in str(caught.value)
    with pytest.warns(
        UserWarning, match="X does not have valid feature names, but SpectralReducer was fitted"
    ) as found:
        reducer.transform(frame.to_numpy())
    assert found[0].filename == __file__
    with pytest.warns(UserWarning, match="X has feature names, but SpectralReducer was fitted without"):
        SpectralReducer().fit(frame.to_numpy()).transform(frame)
    refitted = reducer.fit(frame.to_numpy())
    assert not hasattr(refitted, "feature_names_in_")


def test_pandas_in_and_out_keeps_index_types_and_labels() -> None:
    frame = table().set_index(np.arange(100, 160))
    found = SpectralReducer().fit(frame).transform(frame)
    pd.testing.assert_frame_equal(found, frame[["a", "b", "count"]])
    assert found["count"].dtype == frame["count"].dtype
    projected = SpectralReducer(project=2).fit(frame)
    out = projected.transform(frame)
    assert list(out.columns) == list(projected.get_feature_names_out()) == ["spectralreducer0", "spectralreducer1"]
    assert out.index.equals(frame.index)
    back = projected.inverse_transform(out)
    assert list(back.columns) == list(frame.columns)
    assert back.index.equals(frame.index)
    np.testing.assert_array_equal(projected.inverse_transform(out.to_numpy()), back)
    with pytest.raises(ConfigurationError, match=r"unknown: other; .* in the order of get_feature_names_out\(\)"):
        projected.inverse_transform(out.assign(other=1))
    numbered = frame.set_axis(range(5), axis=1)
    assert SpectralReducer().fit(numbered).transform(numbered).columns.tolist() == [0, 1, 4]


def test_nullable_and_boolean_columns_are_numbers() -> None:
    frame = table()
    frame["null"] = pd.array([pd.NA, *range(59)], dtype="Int64")
    frame["flag"] = frame["a"] > 0
    reducer = SpectralReducer().fit(frame)
    pd.testing.assert_frame_equal(reducer.transform(frame), frame[["a", "b", "count", "null", "flag"]])


@pytest.mark.parametrize("lazy", [False, True])
def test_polars_in_and_out(lazy) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(table().to_dict("list"))
    given = frame.lazy() if lazy else frame
    reducer = SpectralReducer().fit(given)
    out = reducer.transform(given)
    assert type(out) is type(given)
    out = out.collect() if lazy else out
    assert out.equals(frame.select("a", "b", "count"))
    projected = SpectralReducer(project=2).fit(given)
    out = projected.transform(given)
    assert type(out) is type(given)
    values = (out.collect() if lazy else out).to_numpy()
    with pytest.warns(UserWarning, match="valid feature names"):
        np.testing.assert_array_equal(values, projected.transform(frame.to_numpy()))
    with pytest.raises(ConfigurationError, match="missing: a"):
        reducer.transform(frame.drop("a"))


def test_arrow_in_and_out() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    given = pyarrow.Table.from_pandas(table())
    out = SpectralReducer().fit(given).transform(given)
    assert out.equals(given.select(["a", "b", "count"]))
    assert SpectralReducer(project=2).fit(given).transform(given).column_names == [
        "spectralreducer0",
        "spectralreducer1",
    ]


def test_set_output_comes_first() -> None:
    frame = table()
    values = frame.to_numpy()
    out = SpectralReducer().set_output(transform="pandas").fit_transform(values)
    assert list(out.columns) == ["x0", "x1", "x4"]
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    out = SpectralReducer(project=1).set_output(transform="polars").fit(frame).transform(frame)
    assert isinstance(out, polars.DataFrame)
    assert out.columns == ["spectralreducer0"]
    other = polars.DataFrame(frame.to_dict("list"))
    for settings, given in product(SETTINGS, (other, other.lazy(), other.to_arrow())):
        reducer = SpectralReducer(**settings).set_output(transform="pandas").fit(given)
        found = reducer.transform(given)
        assert isinstance(found, pd.DataFrame)
        assert list(found.columns) == list(reducer.get_feature_names_out())
        np.testing.assert_array_equal(found, reducer.reduction_.reduced(frame.to_numpy(float)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_arrays_keep_their_type(dtype, settings) -> None:
    values = table().to_numpy(dtype)
    reducer = SpectralReducer(**settings).fit(values)
    out = reducer.transform(values)
    assert out.dtype == dtype == reducer.inverse_transform(out).dtype
    np.testing.assert_array_equal(out, reducer.transform(torch.from_numpy(values)))
    np.testing.assert_array_equal(out.astype(np.float64), reducer.transform(values.astype(np.float64)).astype(dtype))


def test_it_is_cloned_searched_and_pickled() -> None:
    frame = table(200)
    labels = (frame["a"] + 0.1 * frame["b"] > 0).astype(int)
    search = GridSearchCV(
        make_pipeline(SpectralReducer(), LogisticRegression()),
        {"spectralreducer__project": [None, 1, 3], "spectralreducer__threshold": [0.9, None]},
        cv=3,
        error_score="raise",
    ).fit(frame, labels)
    assert search.best_score_ > 0.9
    assert search.best_params_["spectralreducer__project"] != 1
    reducer = SpectralReducer(project=0.9, threshold=0.8).fit(frame)
    again = pickle.loads(pickle.dumps(reducer))
    pd.testing.assert_frame_equal(again.transform(frame), reducer.transform(frame))
    assert again.dropped_ == reducer.dropped_
    assert clone(reducer).get_params() == {"project": 0.9, "standardize": True, "threshold": 0.8}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.assign(one="text"), "The column 'one' of the pandas frame holds no numbers"),
        (lambda f: f.assign(one=pd.Timestamp("2024-01-01")), "The column 'one' of the pandas frame holds no numbers"),
        (
            lambda f: f.assign(b=np.where(f.index == 3, np.inf, 1)),
            r"Row 3 \(counted from 0\) of column 'b' is infinite",
        ),
        (
            lambda f: f.iloc[:1],
            r"Found array with 1 sample\(s\) .* while a minimum of 2 is required by SpectralReducer",
        ),
        (lambda f: f[["one"]], "No column of the frame can be used: of 1, 1 constant"),
        (lambda f: f.set_axis(["a", "a", "c", "d", "e"], axis=1), "names the column 'a' twice"),
        (lambda f: f.set_axis(["a", "b", "c", "d", 5], axis=1), "Some column names are text and some are not"),
        (lambda f: np.where(f.to_numpy() > 2, -np.inf, f.to_numpy()), r"of column \d is infinite"),
        (lambda f: f.to_numpy().astype(str), r"The array holds text \(the first at \[0, 0\]\)"),
        (lambda f: np.array([[1, 2], [3, "4"]], dtype=object), r"The array holds text \(the first at \[1, 1\]\)"),
        (lambda f: f.to_numpy().astype("datetime64[s]"), "The array holds dates or durations"),
        (lambda f: [[1, 2], [3]], "The rows have different lengths"),
        (lambda f: f.to_numpy()[:, 0], r"Reshape your data .* an array of shape \(60,\) was given"),
        (lambda f: f.to_numpy().reshape(60, 5, 1), r"an array of shape \(60, 5, 1\) was given"),
        (lambda f: f.to_numpy() + 1j, "Complex data not supported"),
    ],
)
def test_refusals_of_fit_are_one_line(change, words) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        SpectralReducer().fit(change(table()))
    assert "\n" not in str(caught.value)


def test_what_is_masked_is_missing() -> None:
    values = table().to_numpy(float)
    values[3, 1] = np.nan
    reducer = SpectralReducer().fit(np.ma.masked_invalid(values))
    np.testing.assert_array_equal(reducer.transform(np.ma.masked_invalid(values)), values[:, [0, 1, 4]])


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.5, "x", True, float("nan"), [0.9]])
def test_thresholds_that_are_none_are_refused(threshold) -> None:
    with pytest.raises(ConfigurationError, match="is no absolute correlation"):
        SpectralReducer(threshold=threshold).fit(table())


def test_another_width_is_refused() -> None:
    reducer = SpectralReducer().fit(table().to_numpy())
    with pytest.raises(ConfigurationError, match="X has 4 features, but SpectralReducer is expecting 5 features"):
        reducer.transform(np.ones((3, 4)))
    with pytest.raises(ConfigurationError, match=r"The reduced table has 5 features, but .* is expecting 3 features"):
        reducer.inverse_transform(np.ones((3, 5)))
