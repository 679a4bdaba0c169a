"""A transformer of scikit-learn that drops columns which repeat others, and projects on request."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_groups import THRESHOLD
from lightning_sloppy.inputs.frames import is_frame
from lightning_sloppy.inputs.table_source import need
from lightning_sloppy.reduction.column_reduction import NO_LINK, column_reduction, directions_of
from lightning_sloppy.reduction.frames_in_and_out import (
    chosen_columns,
    frame_like,
    names_of,
    refuse_other_columns,
    rows_of,
)
from lightning_sloppy.reduction.reduction_layer import ReductionLayer
from lightning_sloppy.user_warnings import warn_user

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:  # the name can be imported; an instance says what to install
    BaseEstimator = type("BaseEstimator", (), {})
    TransformerMixin = type("TransformerMixin", (), {})


class SpectralReducer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fewer columns for a model: repeated ones dropped by name or, on request, the leading directions.

    It is fitted on training rows alone and drops what ``inspect`` names there: constant columns, columns hardly
    observed, and those whose absolute correlation with one that stays is above the threshold. Correlations are taken
    over the rows that both columns have. Without ``project`` the columns that stay come out as they are, with missing
    values. With it, rows are projected onto the leading eigenvectors of the correlation matrix of the columns that
    stay, in which a missing value counts as the mean of its column.

    Args:
        threshold: Absolute correlation above which a column is dropped for a representative. None: only constant
            columns and those hardly observed are dropped.
        project: How many directions: "n90", "n95" or "n99", the fewest that hold 90, 95 or 99 % of the variance;
            another fraction in (0, 1); a whole number; "participation_ratio", rounded up. None: no projection.
        standardize: Whether columns are divided by their deviations before a projection. True, because columns of a
            table have different units: the directions of the covariance matrix would be those of the largest unit.
            False suits pixels and other columns of one unit.

    Attributes:
        kept_: Names of the columns that stay, in the order of the table. Columns of an array are x0, x1, ...
        dropped_: The others: name -> reason, representative and correlation (``DroppedColumn``).
        inverse_error_: Of ``inverse_transform``, (d,): root mean square over the training rows, in deviations of each
            column; see ``docs/reduce.md``.
        reduction_: Everything else that was found (``ColumnReduction``): means, eigenvalues, directions, energy.
        n_features_in_: Columns seen in fit.
        feature_names_in_: Their names, if fit was given a frame with names of text.

    Raises:
        MissingExtraError: Without scikit-learn: ``pip install 'lightning-sloppy[data]'``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((200, 3))
        >>> rows = np.column_stack([rows, 2 * rows[:, 0] + 1, np.full(200, 5.0)])
        >>> reducer = SpectralReducer().fit(rows)
        >>> reducer.kept_, reducer.dropped_["x3"].representative, reducer.dropped_["x4"].reason
        (('x0', 'x1', 'x2'), 'x0', 'constant')
        >>> reducer.transform(rows).shape, bool(np.allclose(reducer.inverse_transform(rows[:, :3]), rows))
        ((200, 3), True)
    """

    def __init__(
        self, *, threshold: float | None = THRESHOLD, project: str | float | None = None, standardize: bool = True
    ) -> None:
        need("sklearn", "SpectralReducer")
        self.threshold = threshold
        self.project = project
        self.standardize = standardize

    def fit(self, X: Any, y: Any = None) -> SpectralReducer:  # noqa: ARG002
        """Look at training rows.

        Args:
            X: Array, or frame of pandas, polars or Arrow, (n, d), NaN where missing; two rows and more.
            y: Not used; a pipeline gives it.

        Raises:
            ConfigurationError: A wrong setting, text, infinite numbers, fewer than two rows, or no column is left.
        """
        threshold = _plain_number(self.threshold)
        if threshold is not None and not (isinstance(threshold, float) and 0 < threshold < 1):
            raise ConfigurationError(
                f"threshold={self.threshold!r} is no absolute correlation; pass a number between 0 and 1, or None."
            )
        count = None if self.project is None else directions_of(_plain_number(self.project))
        names = names_of(X)
        values = rows_of(X, 2, self)
        self.reduction_ = column_reduction(
            [f"x{place}" for place in range(values.shape[1])] if names is None else names,
            values,
            threshold=NO_LINK if threshold is None else threshold,
            count=count,
            standardize=self.standardize,
            origin=f"The {'array' if names is None else 'frame'}",
        )
        self.n_features_in_ = values.shape[1]
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.kept_ = self.reduction_.kept
        self.dropped_ = self.reduction_.dropped
        self.inverse_error_ = self.reduction_.errors
        return self

    def transform(self, X: Any) -> Any:
        """Reduce rows.

        Args:
            X: Rows with the columns of fit, in their order, (n, d).

        Returns:
            The columns that stay, or the projection, (n, k): a frame for a frame, else an array. A kind
            that ``set_output`` asks for comes first.

        Raises:
            ConfigurationError: Other columns, text, infinite numbers.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        self._check_names(X)
        values = self._of_expected_width(X, self.n_features_in_, "X")
        reduced = self.reduction_.reduced(values).astype(values.dtype, copy=False)
        if not is_frame(X) or not self._output_is_free():
            return reduced
        if self.reduction_.directions is None and (names_of(X) is None) == (self._names_in() is None):
            return chosen_columns(X, self.reduction_.columns)
        return frame_like(X, list(self.get_feature_names_out()), reduced)

    def inverse_transform(self, X: Any) -> Any:
        """All columns from reduced rows, for explanations.

        Columns that stay come back as they were; a duplicate by the least-squares line on its representative over the
        training rows; a constant column by its value; one hardly observed by its mean; one without a value as NaN; a
        projection by its transpose. ``inverse_error_`` says how far off that was.

        Args:
            X: Reduced rows, (n, k).

        Returns:
            (n, d), a frame for a frame, else an array.

        Raises:
            ConfigurationError: Other columns, text, infinite numbers.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        names = names_of(X)
        if names is not None:
            refuse_other_columns(names, list(self.get_feature_names_out()), "get_feature_names_out()")
        values = self._of_expected_width(X, self.reduction_.outputs, "The reduced table")
        restored = self.reduction_.restored(values.astype(np.float64, copy=False)).astype(values.dtype, copy=False)
        return frame_like(X, self.reduction_.names, restored) if is_frame(X) else restored

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> npt.NDArray[Any]:
        """Names of the columns of ``transform``: those that stay, or spectralreducer0, spectralreducer1, ...

        Args:
            input_features: Names of the columns of an array, (d,); for a frame those of fit.

        Raises:
            ConfigurationError: Another number of names or, for a frame, other names.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        names = list(self.reduction_.names)
        if input_features is not None:
            given, seen = [str(name) for name in input_features], self._names_in()
            if seen is not None and given != list(seen):
                raise ConfigurationError("input_features is not equal to feature_names_in_; leave it out.")
            if len(given) != len(names):
                raise ConfigurationError(
                    f"input_features should have length equal to the number of columns of fit ({len(names)}), but has "
                    f"{len(given)}."
                )
            names = given
        if self.reduction_.directions is not None:
            return np.array([f"spectralreducer{index}" for index in range(self.reduction_.outputs)], dtype=object)
        return np.array([names[place] for place in self.reduction_.columns], dtype=object)

    def as_module(self) -> ReductionLayer:
        """The same as the first layer of a network; its buffers are saved in checkpoints.

        Returns:
            A new layer in float64 that takes float32 and float64 rows. For a device without float64, ``.float()``.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return ReductionLayer.of(self.reduction_)

    def _names_in(self) -> tuple[str, ...] | None:
        found = getattr(self, "feature_names_in_", None)
        return None if found is None else tuple(found)

    def _of_expected_width(self, data: Any, width: int, what: str) -> npt.NDArray[Any]:
        """Rows of so many columns."""
        values, own = rows_of(data, 1, self), type(self).__name__
        if values.shape[1] != width:
            raise ConfigurationError(
                f"{what} has {values.shape[1]} features, but {own} is expecting {width} features as input."
            )
        return values

    def _check_names(self, data: Any) -> None:
        """Refuse other names; warn, as scikit-learn does, where only one of fit and transform has names."""
        names, expected, own = names_of(data), self._names_in(), type(self).__name__
        if names is not None and expected is not None:
            refuse_other_columns(names, expected, "feature_names_in_")
        elif expected is not None:
            warn_user(f"X does not have valid feature names, but {own} was fitted with feature names")
        elif names is not None:
            warn_user(f"X has feature names, but {own} was fitted without feature names")

    def _output_is_free(self) -> bool:
        """Whether neither ``set_output`` nor the configuration of scikit-learn asks for a kind of output."""
        import sklearn

        own = getattr(self, "_sklearn_output_config", {}).get("transform")
        return bool((own or sklearn.get_config().get("transform_output", "default")) == "default")

    def __sklearn_tags__(self) -> Any:
        """Missing values are allowed (scikit-learn 1.6 and newer)."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:
        """The same for older releases."""
        return {"allow_nan": True, "preserves_dtype": [np.float64, np.float32]}


def _plain_number(value: Any) -> Any:
    """Numbers of numpy as those of Python."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value
