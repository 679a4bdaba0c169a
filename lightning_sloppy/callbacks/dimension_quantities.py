"""Quantities that several instruments share: dimensions without a scale and at that of the prior, and shape."""

from __future__ import annotations

from lightning_sloppy.quantities import Quantity


def quantities_of_dimension(
    explanation: str, *, chart: str, fine: str = "", half: str = "", headline: bool = True
) -> tuple[Quantity, ...]:
    """Quantities of ``measures.relative_dimension.relative_estimates``, with the explanations of one instrument.

    Args:
        explanation: Explanation of the effective dimension.
        chart: Title of its chart.
        fine: Addition to the explanation of the value at a ten-thousandth of the trace.
        half: Addition to the explanation of the value on half of the samples; empty: the instrument has none.
        headline: Whether the closing summary reports it.
    """
    halves = (
        Quantity(
            "effective_dimension_half_samples",
            f"The same on the first half of the samples. {half}",
            chart=chart,
            whole_spectrum=True,
        ),
        Quantity(
            "n90_half_samples",
            "The same on the first half of the samples.",
            whole_spectrum=True,
            expert=True,
        ),
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
            "The same at a hundredth of the trace, so it counts the leading directions only. At most 100.",
            whole_spectrum=True,
        ),
        *(halves[:1] if half else ()),
        Quantity(
            "n90",
            "Smallest number of eigenvalues whose sum is at least 90 % of the trace. It has no upper limit, so use it "
            "where the effective dimension approaches its maximum of 1,000.",
            whole_spectrum=True,
            expert=True,
        ),
        *(halves[1:] if half else ()),
    )


def quantities_at_prior() -> tuple[Quantity, ...]:
    """Quantities of a curvature instrument at the scale of the prior."""
    return (
        Quantity(
            "effective_dimension_at_prior",
            "N_eff(z) = sum lambda / (lambda + z) at the curvature scale z of the prior, which the bound uses. It "
            "depends on how well the samples are fitted, and goes to 0 when all of them are.",
            chart="Effective dimension at the scale of the prior",
            band=("effective_dimension_at_prior_coarse", "effective_dimension_at_prior_fine"),
            whole_spectrum=True,
            expert=True,
        ),
        Quantity(
            "effective_dimension_at_prior_fine",
            "The same at z/10, which corresponds to a weaker prior. If it still grows while the curve at z is flat, "
            "the curve at z is at a maximum and will fall later.",
            whole_spectrum=True,
            expert=True,
        ),
        Quantity(
            "effective_dimension_at_prior_coarse",
            "The same at 10 z, which corresponds to a stronger prior. It counts only the directions of largest "
            "curvature, and stops changing first.",
            whole_spectrum=True,
            expert=True,
        ),
        Quantity(
            "eigenvalue_count",
            "p(n, epsilon): number of eigenvalues at or above z, the directions that the data determine. It is a step "
            "function, so it is harder to estimate than N_eff(z).",
            chart="Eigenvalues above z",
            whole_spectrum=True,
            expert=True,
        ),
        Quantity(
            "z",
            "Curvature scale epsilon / (2 (n - 1)), at which the data and the prior have equal weight. It is constant "
            "in a run. Compare runs only at the same z.",
            once=True,
        ),
        Quantity(
            "epsilon",
            "Precision of the prior that determines z, by default p / ||w0||^2. Pass the same `epsilon` to all runs "
            "that you want to compare.",
            once=True,
        ),
        Quantity(
            "num_parameters",
            "Number of trainable parameters p. Compare the dimensions of this group with it.",
            once=True,
        ),
    )


def quantities_of_shape(
    matrix: str, *, decades: str = "", slope: str = "", knee: str = "", headline: bool = False
) -> tuple[Quantity, ...]:
    """Quantities of ``measures.sloppiness.shape_estimates`` except the participation ratio.

    Args:
        matrix: Name of the matrix.
        decades: Addition to the explanation of the decades.
        slope: Addition to the explanation of the slope.
        knee: Addition to the explanation of the knee.
        headline: Whether the closing summary reports the decades.
    """
    return (
        Quantity(
            "decades",
            f"Powers of ten between the largest and the smallest resolved eigenvalue of the {matrix}. It is a lower "
            f"bound if the spectrum reaches the rounding floor. {decades}".strip(),
            chart="Decades" if headline else "",  # of a network in float32 they are about 6 at every step
            headline=headline,
            expert=True,
        ),
        Quantity(
            "slope",
            "Slope of a line fitted to log10 of the eigenvalues after the knee, per index. Compare it only between "
            f"spectra with the same number of eigenvalues. {slope}".strip(),
            expert=True,
        ),
        Quantity(
            "slope_times_rank",
            "Slope times the number of resolved eigenvalues: the decades that the fitted line spans over all of them. "
            "Use it to compare inputs, Fisher matrix, Gauss-Newton part and Jacobian.",
            chart="Slope times rank",
            expert=True,
        ),
        Quantity(
            "slope_r_squared",
            "R^2 of the line fitted to log10 of the eigenvalues after the knee. Near 1, the eigenvalues are evenly "
            "spaced in the logarithm. Below about 0.9, do not quote the slope.",
            expert=True,
        ),
        Quantity(
            "knee",
            "Index at which the steep first drop ends and the evenly spaced tail begins; 0 if there is no such drop. "
            f"{knee}".strip(),
            expert=True,
        ),
    )
