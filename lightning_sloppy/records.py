"""The records that move between the rooms: data only, no formula.

Letters in the docstrings: ``p`` trainable parameters, ``N`` probe samples, ``n`` training samples,
``d`` input features, ``k`` wanted eigenpairs, ``m`` Lanczos steps, ``z`` the curvature scale of an
effective dimension, ``epsilon`` the precision of the prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from torch import Tensor, float64, zeros

from lightning_sloppy.certificate import Certificate


class Status(Enum):
    """How a measurement ended; the value is what a person should read and do."""

    CONVERGED = "Converged: every wanted residual is below the tolerance."
    EXACT = "Exact: computed from the whole matrix, up to rounding."
    ONE_DRAW = "One draw: module or loss draw random numbers, and the values are those of one draw; see the note."
    NOT_CONVERGED = "Not converged: some residuals are above the tolerance; raise max_products or lower k."
    UNRESOLVED = "Unresolved: the truncation error is too large for the value to mean anything; raise steps."
    OUT_OF_MEMORY = "Out of memory: the basis would not fit; lower k and steps, or free memory."
    NON_FINITE = "Not finite: the loss or a product held NaN or infinity; look at the loss and the inputs."
    UNAVAILABLE = "Unavailable: what the quantity needs is not known; the reason stands beside it."
    FAILED = "Failed: the measurement raised an error; its cause was given in a warning."

    @property
    def ok(self) -> bool:
        """Whether values measured under this status may be logged."""
        return self in (Status.CONVERGED, Status.EXACT, Status.ONE_DRAW, Status.NOT_CONVERGED)


@dataclass(frozen=True)
class Estimate:
    """A number with both of its errors; an exact number has zeros.

    Attributes:
        value: The estimate.
        standard_error: Standard deviation of the estimate over its random probe vectors (or samples).
        truncation_error: Half the width of the interval in which the value lies when the probe vectors
            are taken as given: the deterministic error of a quadrature of finite depth.
        status: UNRESOLVED values are never logged.
        lower_bound: The value bounds the quantity from below (for instance a sum cut at k pairs).
    """

    value: float
    standard_error: float = 0.0
    truncation_error: float = 0.0
    status: Status = Status.EXACT
    lower_bound: bool = False

    @property
    def total_error(self) -> float:
        """Standard error and truncation error, added: they are of different kinds."""
        return self.standard_error + self.truncation_error


@dataclass(frozen=True)
class Cost:
    """What a result cost.

    Attributes:
        products: Matrix-vector products (0 where a Gram matrix was formed instead).
        seconds: Wall-clock seconds.
        product_seconds: The part of them spent inside the products.
        peak_bytes: Highest memory of the process so far, at the end; None where the system does not tell.
        method: How it was computed, for instance "kept_graph", "recomputed", "dense", "gram".
    """

    products: int = 0
    seconds: float = 0.0
    product_seconds: float = 0.0
    peak_bytes: int | None = None
    method: str = ""


@dataclass(frozen=True)
class Density:
    """A spectral density seen through Lanczos quadrature, one tridiagonal matrix for each probe vector.

    Attributes:
        diagonals: For each probe vector the diagonal of its tridiagonal matrix, shape (m,).
        offdiagonals: For each probe vector the off-diagonal, shape (m,): the last entry is the norm of the
            residual, zero where the Krylov space was exhausted and the quadrature is exact.
        nodes: Gauss nodes of all probe vectors, shape (vectors, m), padded with zeros.
        weights: Gauss weights, same shape, padded with zeros; every row sums to its mass.
        positive_semidefinite: Whether the matrix is so by construction, which makes Gauss-Radau brackets valid.
        masses: Squared norm of each probe vector, (vectors,): ``dim``, or what is left of it beside ``known``.
        known: Eigenvalues that the probe vectors were kept orthogonal to, counted exactly, (l,).
        known_residuals: Their residuals, (l,): what they and the rest still have in common.
    """

    diagonals: tuple[Tensor, ...]
    offdiagonals: tuple[Tensor, ...]
    nodes: Tensor
    weights: Tensor
    positive_semidefinite: bool
    masses: Tensor
    known: Tensor = field(default_factory=lambda: zeros(0, dtype=float64))
    known_residuals: Tensor = field(default_factory=lambda: zeros(0, dtype=float64))


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one symmetric matrix, and all that is needed to judge them.

    Attributes:
        eigenvalues: CPU float64, descending by signed value.
        residuals: ``||A u - lambda u||`` for each eigenvalue, same shape; zeros where the matrix was formed.
        converged: Whether the residual of each eigenvalue met the tolerance, (k,), bool; None where all are exact.
        eigenvectors: (p, k), columns in the order of the eigenvalues; None unless asked for.
        largest: Algebraically largest eigenvalue as far as it was computed.
        smallest: Algebraically smallest eigenvalue as far as it was computed.
        largest_residual: Residual of ``largest``.
        smallest_residual: Residual of ``smallest``; the smallest end converges later than the largest.
        density: Quadrature of the whole spectrum; None without probe vectors, unless the matrix was formed.
        dim: Side of the matrix: p for curvature, d for inputs.
        rank_bound: The rank cannot exceed it (min(N, p) for a Fisher matrix), or None.
        num_samples: Samples behind the matrix.
        trace: None when neither the whole matrix nor probe vectors were available.
        matrix: "hessian", "gauss_newton", "fisher_empirical", "correlation", ...
        floor: An eigenvalue whose magnitude is below it is rounding noise.
        truncated: Whether eigenvalues that may exceed the floor are missing from ``eigenvalues``.
        cost: Products, seconds, memory.
        status: How the computation ended.
        half_eigenvalues: Eigenvalues of the same matrix from the first half of the samples, or None.
        layers: The same for the diagonal block of each layer's parameters, by its name; empty unless asked for.
        detail: Facts in words worth keeping, for instance how many constant columns were left out.
    """

    eigenvalues: Tensor
    dim: int
    num_samples: int
    matrix: str
    floor: float
    status: Status
    residuals: Tensor
    largest: float
    smallest: float
    largest_residual: float = 0.0
    smallest_residual: float = 0.0
    eigenvectors: Tensor | None = None
    density: Density | None = None
    rank_bound: int | None = None
    trace: Estimate | None = None
    truncated: bool = False
    cost: Cost = field(default_factory=Cost)
    half_eigenvalues: Tensor | None = None
    converged: Tensor | None = None
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    detail: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class SloppinessVerdict:
    """Whether a spectrum is sloppy, judged beside that of a null without structure.

    Attributes:
        answer: "yes", "no" or "undetermined".
        reason: Why, one sentence with the numbers.
        null: What the null is, in words.
        dimension: Participation ratio (inputs) or effective dimension (networks) of the spectrum.
        null_dimension: The same of the null.
        spread: Decades that the fitted line crosses over all resolved eigenvalues, ``-slope * rank``.
        null_spread: The same of the null.
    """

    answer: Literal["yes", "no", "undetermined"]
    reason: str
    null: str
    dimension: float
    null_dimension: float
    spread: float
    null_spread: float


@dataclass(frozen=True)
class Measurement:
    """One event: what was measured, when, on what, with what error, at what cost.

    Attributes:
        step: The x-value under which it was logged, Lightning's own.
        epoch: Zero-based epoch.
        group: Name of the instrument, as in its tags: "input", "hessian", "fisher", "bound" ...
        spectrum: The spectrum behind the numbers, or None (a bound, a failure).
        estimates: Quantity name (the part of the tag behind the slash) to its estimate.
        cost: Cost of the whole measurement.
        status: How it ended.
        num_samples: Probe samples.
        mode: "eval" or "train", the mode of the module during the measurement.
        precision: Data type of the products, for instance "float32".
        notes: Sentences that say why something is missing.
        certificate: The bound, when the measurement is one.
        companions: Spectra of related matrices measured with it, by name: "gauss_newton", "covariance", ...
        verdicts: Whether a spectrum is sloppy, by its matrix.
    """

    step: int
    epoch: int
    group: str
    spectrum: Spectrum | None
    estimates: Mapping[str, Estimate]
    cost: Cost
    status: Status
    num_samples: int = 0
    mode: str = "eval"
    precision: str = "float32"
    notes: tuple[str, ...] = ()
    certificate: Certificate | None = None
    companions: Mapping[str, Spectrum] = field(default_factory=dict)
    verdicts: Mapping[str, SloppinessVerdict] = field(default_factory=dict)
