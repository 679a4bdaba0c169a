"""What the errors of validation samples are reported as. Data only."""

from __future__ import annotations

from lightning_sloppy.quantities import Quantity

BOUNDS = {"low": "Lower", "high": "Upper"}


def _with_interval(
    name: str, explanation: str, chart: str, *, what: str = "", headline: bool = False
) -> tuple[Quantity, ...]:
    """A quantity and both ends of its interval, which loggers get for headlines only."""
    words = what or name.replace("_", " ")
    return (
        Quantity(name, explanation, chart=chart, band=(f"{name}_low", f"{name}_high"), headline=headline),
        *(
            Quantity(f"{name}_{end}", f"{side} end of the 95 % interval of the {words}.", expert=not headline)
            for end, side in BOUNDS.items()
        ),
    )


QUANTITIES = (
    *_with_interval(
        "error",
        "Fraction of the validation samples that the network gets wrong. Outputs that are not finite count as wrong.",
        "Error of validation samples",
        headline=True,
    ),
    *_with_interval(
        "balanced_error",
        "Mean of the errors of the classes that occur. Far above the error: rare classes are often wrong.",
        "Error of validation samples",
        headline=True,
    ),
    *_with_interval(
        "loss",
        "For a regression: mean squared error in units of the variance of the training targets. 1 is predicting their "
        "mean.",
        "Loss of validation samples",
        headline=True,
    ),
    *_with_interval(
        "tail_lowest",
        "Error (regression: loss) of the samples with the lowest share of energy in the tail of the training inputs' "
        "spectrum, the directions after those that hold 95 % of the trace.",
        "By share of energy in the tail",
        what="error in the lowest bin",
    ),
    *_with_interval(
        "tail_highest",
        "The same of the samples with the highest share.",
        "By share of energy in the tail",
        what="error in the highest bin",
    ),
    *_with_interval(
        "tail_difference",
        "Highest minus lowest bin. If its interval is above 0, the network is worse on samples that lie where the "
        "training inputs hardly vary: look for faulty sensors, or collect such samples.",
        "Highest minus lowest bin",
        what="difference",
        headline=True,
    ),
    *_with_interval(
        "distance_lowest",
        "Error (regression: loss) of the samples with the lowest Mahalanobis distance from the training inputs.",
        "By distance from the training inputs",
        what="error in the nearest bin",
    ),
    *_with_interval(
        "distance_highest",
        "The same of the samples with the largest distance.",
        "By distance from the training inputs",
        what="error in the most distant bin",
    ),
    *_with_interval(
        "distance_difference",
        "Most distant minus nearest bin. If its interval is above 0, the network is worse on unusual samples: do not "
        "trust it there, or collect more of them.",
        "Highest minus lowest bin",
        what="difference by distance",
        headline=True,
    ),
    *_with_interval(
        "worst_bin",
        "Error (regression: loss) of the worst bin of both measures; the summary names it and the columns that stand "
        "out in it.",
        "Error of validation samples",
        what="worst bin, wide enough to hold although it was picked (Bonferroni)",
        headline=True,
    ),
    *_with_interval(
        "worst_class",
        "Error of the worst class among those with at least 10 samples; the summary names it.",
        "Error of validation samples",
        what="worst class, wide enough to hold although it was picked (Bonferroni)",
    ),
    *_with_interval(
        "whitened_error_first",
        "For a regression: squared error along the first principal direction of the targets, divided by the variance "
        "of the training targets there. 1 is predicting their mean.",
        "Along the targets' directions",
        what="error along the first direction",
    ),
    *_with_interval(
        "whitened_error_last",
        "The same along the last one. Far above the first: the network learns the shared part of the targets only.",
        "Along the targets' directions",
        what="error along the last direction",
    ),
    Quantity("num_samples", "Number of validation samples N.", once=True),
)
