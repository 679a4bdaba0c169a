"""Quantities of the inputs: of the correlation, covariance and second-moment matrices."""

from __future__ import annotations

from lightning_sloppy.callbacks.dimension_quantities import quantities_of_dimension, quantities_of_shape
from lightning_sloppy.inputs.spectrum import InputKind
from lightning_sloppy.quantities import Quantity, SpectrumHistogram

QUANTITIES = (
    *quantities_of_dimension(
        "Effective number of directions of the inputs: an eigenvalue of the correlation matrix that is a thousandth of "
        "the trace counts 1/2. Compare it with the number of features.",
        chart="Dimension of the inputs",
        half="If it differs much from the value on all samples, increase `max_samples`.",
        headline=False,
    ),
    Quantity(
        "n95",
        "Smallest number of eigenvalues of the correlation matrix whose sum is at least 95 % of the trace.",
        whole_spectrum=True,
    ),
    Quantity("n99", "Smallest number of eigenvalues whose sum is at least 99 % of the trace.", whole_spectrum=True),
    Quantity(
        "covariance_effective_dimension",
        "Effective dimension of the covariance matrix (centred features with their scales). If it is far below that of "
        "the correlation matrix, a few features of large scale dominate.",
        whole_spectrum=True,
    ),
    Quantity(
        "covariance_n95",
        "Smallest number of eigenvalues of the covariance matrix whose sum is at least 95 % of the trace. A PCA to "
        "this size removed 44 to 82 % of the input numbers and changed the error by -1.5 to +0.8 points on four data "
        "sets.",
        whole_spectrum=True,
    ),
    Quantity(
        "second_moment_effective_dimension",
        "Effective dimension of the uncentred second-moment matrix (the mean is one of the directions). Of the three "
        "matrices, its dimension correlates best with the dimensions of the network.",
        whole_spectrum=True,
    ),
    *quantities_of_shape(
        "correlation matrix",
        decades="With few samples per feature it is large for any data: compare with the null.",
        slope="Steeper: fewer directions matter. Near zero: all matter equally.",
        knee="A linear model uses the directions before it first.",
        headline=True,
    ),
    Quantity(
        "null_participation_ratio",
        "Participation ratio of the null: the same columns, each shuffled (correlation), or isotropic Gaussian samples "
        "(covariance, second moment). If it is at least twice that of the data, the data have a steep drop.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "null_slope_times_rank",
        "Slope times rank of the null. The inputs are sloppy if theirs is more negative by at least 1 and their "
        "participation ratio is at most half of the null's.",
        chart="Slope times rank",
    ),
    Quantity(
        "floor",
        "Eigenvalues below this value are rounding noise, or errors of missing values, and are never counted.",
    ),
    Quantity(
        "resolved",
        "Number of eigenvalues above the floor. If it is below the number of features and no values are missing, some "
        "features are exact linear combinations of others and can be removed.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2 of the correlation matrix. A flat spectrum of rank r has the value r. Compare "
        "it with the number of features.",
        chart="Dimension of the inputs",
        band=("participation_ratio_low", "participation_ratio_high"),
        headline=True,
    ),
    Quantity(
        "effective_rank",
        "Trace over largest eigenvalue of the correlation matrix. Near 1, one direction dominates: look for a common "
        "cause, a drift or a missing normalisation.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "entropy_rank",
        "exp of the entropy of the eigenvalues divided by their sum. It gives small eigenvalues more weight than the "
        "participation ratio does, so a large difference between the two means a long tail.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "trace",
        "Sum of the eigenvalues of the correlation matrix. It equals the number of columns that are not constant, so "
        "it is only a check.",
    ),
    Quantity(
        "largest",
        "Largest eigenvalue of the correlation matrix. Divided by the trace, it is the fraction of the variance in one "
        "direction.",
    ),
    Quantity(
        "num_features",
        "Number of columns d of the matrix (the correlation matrix excludes constant columns). Compare the dimensions "
        "of this group with it.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "constant_columns",
        "Number of constant features. They have no correlation and are excluded. Remove them from the data, or find "
        "out why they are constant.",
    ),
    Quantity(
        "num_samples",
        "Number of training samples used for this group. With ten samples per feature, sampling noise alone spreads a "
        "flat spectrum over half a decade, and more with fewer samples: increase `max_samples`.",
    ),
    Quantity(
        "covariance_decades",
        "Decades of the covariance matrix (centred features with their scales). If they are many more than those of "
        "the correlation matrix, the features have different scales: standardise them.",
        chart="Decades",
    ),
    Quantity(
        "covariance_slope_times_rank",
        "Slope times rank of the covariance matrix (centred features with their scales). Compare it with that of the "
        "correlation matrix.",
        chart="Slope times rank",
    ),
    Quantity(
        "covariance_participation_ratio",
        "Participation ratio of the covariance matrix (centred features with their scales). If it is far below that of "
        "the correlation matrix, a few features of large scale dominate.",
    ),
    Quantity(
        "covariance_largest",
        "Largest eigenvalue of the covariance matrix (centred features with their scales). It limits the learning rate "
        "of a linear model.",
    ),
    Quantity(
        "second_moment_decades",
        "Decades of the uncentred second-moment matrix (the mean is one of the directions). This is the matrix of the "
        "inputs to the first layer.",
        chart="Decades",
    ),
    Quantity(
        "second_moment_slope_times_rank",
        "Slope times rank of the uncentred second-moment matrix (the mean is one of the directions).",
        chart="Slope times rank",
    ),
    Quantity(
        "second_moment_participation_ratio",
        "Participation ratio of the uncentred second-moment matrix. Over 13 data sets it correlated with that of the "
        "Fisher matrix (Spearman .95). Near 1, the mean dominates: centre the inputs.",
        headline=True,
    ),
    Quantity(
        "second_moment_largest",
        "Largest eigenvalue of the uncentred second-moment matrix (the mean is one of the directions). If it is far "
        "above that of the covariance matrix, the mean dominates: centre the inputs.",
    ),
)

INTERVALS = {
    "effective_dimension": "effective dimension",
    "participation_ratio": "participation ratio",
    "entropy_rank": "entropy rank",
    "largest": "largest eigenvalue",
}
"""Quantities with an interval for the population, and their names in words."""

SPREADS = {"decades": "decades", "slope": "slope", "slope_times_rank": "slope times rank", "knee": "knee"}
"""Quantities of which only the spread over halves of the samples is known."""


def _ends(name: str, words: str) -> tuple[Quantity, Quantity]:
    return (
        Quantity(
            f"{name}_low",
            f"Lower end of the 95 % interval of the {words}, corrected for the bias of sampling (so the value may lie "
            "outside). Samples are taken as independent.",
        ),
        Quantity(f"{name}_high", f"Upper end of the 95 % interval of the {words}. If it is wide, use more samples."),
    )


def _spread(name: str, words: str) -> tuple[Quantity, Quantity]:
    return (
        Quantity(
            f"{name}_low",
            f"Lower end of the resampling spread of {words}: 95 % of its values over halves of the samples, moved onto "
            "the value. It is no interval for the population.",
        ),
        Quantity(f"{name}_high", f"Upper end of the resampling spread of {words}."),
    )


QUANTITIES = (
    *QUANTITIES,
    *(end for name, words in INTERVALS.items() for end in _ends(name, words)),
    *(end for name, words in SPREADS.items() for end in _spread(name, words)),
    Quantity(
        "repeated_columns",
        "Columns that say what another one says (absolute correlation above .95 to a column that stays). The summary "
        "names them. Up to 2,048 features.",
    ),
    Quantity(
        "deduplicated_participation_ratio",
        "Participation ratio without the repeated columns. Logged if there are any.",
    ),
    Quantity(
        "deduplicated_decades",
        "Decades without the repeated columns, which make decades say little. Logged if there are any.",
    ),
    Quantity(
        "missing_rate",
        "Part of the numbers that are missing, in the columns that are used. What is assumed of "
        "them (see `missing`) no data can show.",
    ),
    Quantity(
        "negative_eigenvalues",
        "Negative eigenvalues of the main matrix, which missing values cause, before they are set to zero. If there "
        "are many, fill the values or use `missing='em'`.",
    ),
    Quantity(
        "set_aside_columns",
        "Columns with values in fewer than 5 % of the samples, or in too few for a correlation. They are left out.",
    ),
)

HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Eigenvalues of the correlation matrix above the rounding floor, as log10. A sloppy spectrum has a few values "
        "on the right and an even spread over many decades on the left.",
    ),
)

SIDE_KINDS: tuple[InputKind, ...] = ("covariance", "second_moment")
SIDE_QUANTITIES = ("decades", "slope_times_rank", "participation_ratio", "largest", "effective_dimension")
