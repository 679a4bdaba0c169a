"""What several instruments report of a spectrum's dimension: the scale-free quantities, and those at the prior."""

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
