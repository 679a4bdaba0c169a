"""Quantities of the Hessian and of its Gauss-Newton part."""

from __future__ import annotations

from lightning_sloppy.callbacks import directions
from lightning_sloppy.callbacks.dimension_quantities import (
    quantities_at_prior,
    quantities_of_dimension,
    quantities_of_shape,
)
from lightning_sloppy.quantities import Quantity, SpectrumHistogram

QUANTITIES = (
    Quantity(
        "largest",
        "Largest eigenvalue of the Hessian of the mean loss on the probe samples, also called sharpness. Gradient "
        "descent without momentum is stable if the learning rate is below 2 / largest.",
        chart="Largest and smallest eigenvalue",
        headline=True,
    ),
    Quantity(
        "largest_residual",
        "Residual ||H u - lambda u|| of the largest eigenpair. If it is not small compared with the eigenvalue, "
        "increase `max_products`.",
        expert=True,
    ),
    Quantity(
        "smallest",
        "Algebraically smallest eigenvalue found. If it is clearly negative, the weights are near a saddle point and "
        "the loss can still decrease along this direction. If it is about zero, there is no such direction.",
        chart="Largest and smallest eigenvalue",
    ),
    Quantity(
        "smallest_residual",
        "Residual of the smallest eigenpair. This end of the spectrum converges last. Do not interpret a negative "
        "eigenvalue of smaller magnitude than its residual.",
        expert=True,
    ),
    Quantity(
        "trace",
        "Sum of all eigenvalues of the Hessian, estimated with random probe vectors: p times the mean curvature. If it "
        "falls, the training moves to flatter regions.",
        chart="Trace of the Hessian and of its Gauss-Newton part",
        estimated=True,
    ),
    Quantity(
        "converged_above_z",
        "Number of converged eigenvalues at or above z among the k computed ones. It is a lower bound and at most k. "
        "If it equals k, increase k or use `eigenvalue_count`.",
        chart="Eigenvalues above z",
        expert=True,
    ),
    *quantities_of_dimension(
        "Effective number of directions of the Hessian's Gauss-Newton part: an eigenvalue that is a thousandth of the "
        "trace counts 1/2. Compare it with p.",
        chart="Effective dimension of the Gauss-Newton part",
        fine="Missing if the quadrature does not resolve it.",
        half="Missing if the dimension is estimated with probe vectors.",
    ),
    *quantities_of_shape("Gauss-Newton part", decades="Missing if the spectrum is estimated with probe vectors."),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2 of the Gauss-Newton part. Compare it with that of the inputs' second moment.",
        whole_spectrum=True,
        expert=True,
    ),
    Quantity(
        "gauss_newton_samples",
        "Number of samples used for the spectrum of the Gauss-Newton part: a small number by default, all probe "
        "samples with `probes=`.",
        once=True,
    ),
    Quantity(
        "gauss_newton_trace",
        "Trace of the Gauss-Newton part. The trace of the Hessian minus this value comes from samples that are not "
        "fitted, and goes to zero with the training loss.",
        chart="Trace of the Hessian and of its Gauss-Newton part",
        estimated=True,
        expert=True,
    ),
    Quantity(
        "loss",
        "Mean loss on the probe samples, in the mode of the measurement. If it differs from the training loss, the "
        "probe samples are not representative: increase `num_samples`.",
        chart="Loss on the probe",
    ),
    Quantity(
        "num_samples",
        "Number of probe samples N. An effective dimension depends on N: compare only values with the same N.",
        once=True,
    ),
    *quantities_at_prior(),
    *directions.QUANTITIES,
)

HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Positive eigenvalues of the Hessian among the k pairs of largest magnitude, as log10.",
    ),
    SpectrumHistogram(
        "log10_eigenvalues_negative",
        "Magnitudes of the negative eigenvalues of the Hessian among the k pairs, as log10: directions of negative "
        "curvature.",
        negative=True,
    ),
    SpectrumHistogram(
        "gauss_newton_log10_eigenvalues",
        "Eigenvalues of the Gauss-Newton part, as log10, without those that Lanczos cannot distinguish from zero. "
        "Counts may be fractions (quadrature weights). In a sloppy model the values spread evenly over many decades.",
        companion="gauss_newton",
    ),
)
