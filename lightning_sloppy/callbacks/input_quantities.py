"""What is reported of the inputs, of the correlation matrix and of the two beside it."""

from __future__ import annotations

from lightning_sloppy.callbacks.dimension_quantities import quantities_of_dimension, quantities_of_shape
from lightning_sloppy.inputs.spectrum import InputKind
from lightning_sloppy.quantities import Quantity, SpectrumHistogram

QUANTITIES = (
    *quantities_of_dimension(
        "Effective number of directions of the inputs: one that holds a thousandth of the trace of the correlation "
        "matrix counts one half. Read it beside the number of features.",
        chart="Dimension of the inputs",
        half="If it differs much from the whole value, raise `max_samples`.",
        headline=False,
    ),
    Quantity(
        "n95",
        "Fewest directions that hold 95 % of the trace of the correlation matrix together.",
        whole_spectrum=True,
    ),
    Quantity("n99", "Fewest directions that hold 99 % of the trace together.", whole_spectrum=True),
    Quantity(
        "covariance_effective_dimension",
        "Effective dimension of the covariance matrix (features centred, their scales kept). Far below that of the "
        "correlation matrix, a few features of large scale dominate.",
        whole_spectrum=True,
    ),
    Quantity(
        "covariance_n95",
        "Fewest directions that hold 95 % of the trace of the covariance matrix together. Inputs reduced to them had "
        "44 to 82 % fewer numbers and an error within -1.5 to +0.8 points on four data sets.",
        whole_spectrum=True,
    ),
    Quantity(
        "second_moment_effective_dimension",
        "Effective dimension of the uncentred second-moment matrix (the mean counts as a direction). Of the three it "
        "goes best with the dimensions of the network.",
        whole_spectrum=True,
    ),
    *quantities_of_shape(
        "correlation matrix",
        decades="Hardly more samples than features give several decades whatever the data are: compare with the null.",
        slope="Steeper means that fewer directions of the data matter; close to zero means that all matter alike.",
        knee="The directions before it are the ones that a linear model would use first.",
        headline=True,
    ),
    Quantity(
        "null_participation_ratio",
        "Participation ratio of a null: the same columns, each shuffled; for covariance and second moment isotropic "
        "Gaussian samples of the same number, features and trace. Twice the value of the data and more is a drop.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "null_slope_times_rank",
        "Slope times rank of that null. The inputs are sloppy where theirs is more negative by 1 or more and their "
        "participation ratio at most half of the null's.",
        chart="Slope times rank",
    ),
    Quantity(
        "floor",
        "Eigenvalues below this are rounding noise. They are counted nowhere.",
    ),
    Quantity(
        "resolved",
        "Number of eigenvalues above the floor. If it is below the number of features, some features are "
        "exact combinations of others and can be removed.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2 of the correlation matrix: directions of about equal strength that would give "
        "the same value. Compare it with the number of features.",
        chart="Dimension of the inputs",
        headline=True,
    ),
    Quantity(
        "effective_rank",
        "Trace over largest eigenvalue of the correlation matrix. Close to 1 means that one direction "
        "dominates: look for a common cause, a drift or a missing normalisation.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "entropy_rank",
        "exp of the entropy of the eigenvalues divided by their sum. Counts weak directions more than the "
        "participation ratio does, so a wide gap between both means a long tail.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "trace",
        "Sum of the eigenvalues of the correlation matrix, which is the number of columns that are not "
        "constant. A check rather than a curve.",
    ),
    Quantity(
        "largest",
        "Largest eigenvalue of the correlation matrix. Divided by the trace it is the fraction of the "
        "variance in a single direction.",
    ),
    Quantity(
        "num_features",
        "Columns d in the headline matrix (the correlation leaves constant ones out). The denominator for "
        "every dimension of this group.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "constant_columns",
        "Features that never change; they have no correlation and are left out. Remove them from the data or "
        "find out why they are constant.",
    ),
    Quantity(
        "num_samples",
        "Training samples read for this group. With ten for each feature, sampling alone spreads a flat "
        "spectrum by half a decade; with fewer, by more: raise `max_samples`.",
    ),
    Quantity(
        "covariance_decades",
        "Decades of the covariance matrix (features centred, their scales kept). Much more than for the "
        "correlation matrix means that the scales of the features differ: standardise them.",
        chart="Decades",
    ),
    Quantity(
        "covariance_slope_times_rank",
        "Slope times rank of the covariance matrix (features centred, their scales kept). Read it beside the "
        "correlation matrix.",
        chart="Slope times rank",
    ),
    Quantity(
        "covariance_participation_ratio",
        "Participation ratio of the covariance matrix (features centred, their scales kept). Far below that "
        "of the correlation matrix means that a few features of large scale dominate.",
    ),
    Quantity(
        "covariance_largest",
        "Largest eigenvalue of the covariance matrix (features centred, their scales kept). It limits the "
        "learning rate of a linear model.",
    ),
    Quantity(
        "second_moment_decades",
        "Decades of the uncentred second-moment matrix (the mean counts as a direction). This is the matrix "
        "that the first layer meets.",
        chart="Decades",
    ),
    Quantity(
        "second_moment_slope_times_rank",
        "Slope times rank of the uncentred second-moment matrix (the mean counts as a direction).",
        chart="Slope times rank",
    ),
    Quantity(
        "second_moment_participation_ratio",
        "Participation ratio of the uncentred second-moment matrix. Over 13 data sets it went with that of the Fisher "
        "matrix (Spearman .95); the correlation is blind to scales. Close to 1, the mean rules: centre the inputs.",
        headline=True,
    ),
    Quantity(
        "second_moment_largest",
        "Largest eigenvalue of the uncentred second-moment matrix (the mean counts as a direction). Far above "
        "that of the covariance, the mean is the reason: centre the inputs.",
    ),
)

HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Eigenvalues of the correlation matrix above the rounding floor, as log10. A few on the right and an "
        "even carpet to the left is a sloppy spectrum.",
    ),
)

SIDE_KINDS: tuple[InputKind, ...] = ("covariance", "second_moment")
SIDE_QUANTITIES = ("decades", "slope_times_rank", "participation_ratio", "largest", "effective_dimension")
