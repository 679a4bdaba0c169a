"""What several instruments report of a spectrum: dimensions without a scale and at that of the prior, and its shape."""

from __future__ import annotations

from lightning_sloppy.quantities import Quantity


def quantities_of_dimension(
    explanation: str, *, chart: str, fine: str = "", half: str = "", headline: bool = True
) -> tuple[Quantity, ...]:
    """What ``measures.relative_dimension.relative_estimates`` finds, with the words of one instrument.

    Args:
        explanation: Of the effective dimension itself.
        chart: Title of its chart.
        fine: What the value at a ten-thousandth of the trace says more.
        half: What the values on half of the samples say; empty: the instrument has none.
        headline: Whether the closing summary reports it.
    """
    halves = (
        Quantity(
            "effective_dimension_half_samples",
            f"The same on the first half of the samples. {half}",
            chart=chart,
            whole_spectrum=True,
        ),
        Quantity("n90_half_samples", "The same on the first half of the samples.", whole_spectrum=True),
    )
    return (
        Quantity(
            "effective_dimension",
            explanation,
            chart=chart,
            band=("effective_dimension_coarse", "effective_dimension_fine"),
            headline=headline,
            whole_spectrum=True,
        ),
        Quantity(
            "effective_dimension_fine",
            f"The same at a ten-thousandth of the trace. {fine}".strip(),
            whole_spectrum=True,
        ),
        Quantity(
            "effective_dimension_coarse",
            "The same at a hundredth of the trace: the leading directions only. At most 100.",
            whole_spectrum=True,
        ),
        *(halves[:1] if half else ()),
        Quantity(
            "n90",
            "Fewest eigenvalues that hold 90 % of the trace together. It has no cap, so it goes on where the effective "
            "dimension comes near 1,000.",
            whole_spectrum=True,
        ),
        *(halves[1:] if half else ()),
    )


def quantities_at_prior() -> tuple[Quantity, ...]:
    """What an instrument on curvature reports at the scale of the prior."""
    return (
        Quantity(
            "effective_dimension_at_prior",
            "N_eff(z) = sum lambda / (lambda + z) at the scale z of the prior, on which the bound rests. It measures "
            "how well samples are fitted, and goes to 0 when all are.",
            chart="Effective dimension at the scale of the prior",
            band=("effective_dimension_at_prior_coarse", "effective_dimension_at_prior_fine"),
            whole_spectrum=True,
        ),
        Quantity(
            "effective_dimension_at_prior_fine",
            "The same at z/10, a weaker prior. If it still grows while the curve at z is flat, the curve at z is at "
            "its maximum, not on a plateau.",
            whole_spectrum=True,
        ),
        Quantity(
            "effective_dimension_at_prior_coarse",
            "The same at 10 z, a stronger prior: the stiffest directions only. It settles first.",
            whole_spectrum=True,
        ),
        Quantity(
            "eigenvalue_count",
            "p(n, epsilon): eigenvalues at or above z. A step function, hence harder to resolve than N_eff(z); the "
            "rest of the parameters is left to the prior.",
            chart="Eigenvalues above z",
            whole_spectrum=True,
        ),
        Quantity(
            "z",
            "Curvature scale epsilon / (2 (n - 1)) at which data and prior weigh the same. Constant in a run; "
            "curves of two runs compare only at the same z.",
        ),
        Quantity(
            "epsilon",
            "Precision of the prior behind z, by default p / ||w0||^2. Pass one `epsilon` to all runs that you "
            "want to compare.",
        ),
        Quantity(
            "num_parameters",
            "Trainable parameters p. The denominator for every dimension of this group.",
        ),
    )


def quantities_of_shape(
    matrix: str, *, decades: str = "", slope: str = "", knee: str = "", headline: bool = False
) -> tuple[Quantity, ...]:
    """What ``measures.sloppiness.shape_estimates`` finds, but the participation ratio.

    Args:
        matrix: The matrix in words.
        decades: What the instrument has to say of the decades.
        slope: The same of the slope.
        knee: The same of the knee.
        headline: Whether the closing summary reports the decades.
    """
    return (
        Quantity(
            "decades",
            f"Powers of ten between the largest and the smallest resolved eigenvalue of the {matrix}: a lower bound "
            f"where it runs into the rounding floor. {decades}".strip(),
            chart="Decades" if headline else "",  # of a network in float32 they are about 6 at every step
            headline=headline,
        ),
        Quantity(
            "slope",
            "Fitted change of log10 of the eigenvalue per index behind the knee; comparable only between spectra with "
            f"as many eigenvalues. {slope}".strip(),
        ),
        Quantity(
            "slope_times_rank",
            "The slope times the number of resolved eigenvalues: decades that the fitted line would cross over all of "
            "them. It compares inputs, Fisher matrix, Gauss-Newton part and Jacobian.",
            chart="Slope times rank",
        ),
        Quantity(
            "slope_r_squared",
            "How well a straight line fits log10 of the eigenvalues behind the knee. Near 1 the spectrum is spread "
            "evenly in the logarithm; below about 0.9 do not quote the slope.",
        ),
        Quantity(
            "knee",
            f"Index at which the sharp first drop ends and the even tail begins; 0 without such a drop. {knee}".strip(),
        ),
    )
