"""The records that the parts of the package exchange: data only, no formulas.

Symbols in the docstrings: ``p`` trainable parameters, ``N`` probe samples, ``n`` training samples,
``d`` input features, ``k`` requested eigenpairs, ``m`` Lanczos steps, ``z`` the curvature scale of an
effective dimension, ``epsilon`` the precision of the prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from torch import Tensor, float64, zeros

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.display import Displayed, Shown, number, number_with_error, shortened

_FIRST = ("effective_dimension", "participation_ratio", "hold_out", "largest", "smallest", "trace")
"""The estimates that the short text of a measurement names first."""

_SHOWN = 6
"""How many estimates it names."""


class Status(Enum):
    """How a measurement ended. The value is a sentence that explains it and says what to do."""

    CONVERGED = "Converged: the residuals of all requested eigenpairs are below the tolerance."
    EXACT = "Exact: computed from the whole matrix, up to rounding."
    ONE_DRAW = "One draw: the module or the loss draws random numbers, and the values are for one draw; see the note."
    NOT_CONVERGED = "Not converged: some residuals are above the tolerance; increase max_products or lower k."
    UNRESOLVED = "Unresolved: the truncation error is too large for a meaningful value; increase steps."
    OUT_OF_MEMORY = "Out of memory: the basis would not fit; lower k and steps, or free memory."
    NON_FINITE = "Not finite: the loss or a product contained NaN or infinity; check the loss and the inputs."
    UNAVAILABLE = "Unavailable: information that the quantity needs is missing; the notes give the reason."
    FAILED = "Failed: the measurement raised an error; a warning gave its cause."

    @property
    def ok(self) -> bool:
        """Whether values measured under this status may be logged."""
        return self in (Status.CONVERGED, Status.EXACT, Status.ONE_DRAW, Status.NOT_CONVERGED)


@dataclass(frozen=True)
class Estimate:
    """A number with both of its errors, which are zero for an exact number.

    Attributes:
        value: The estimate.
        standard_error: Standard deviation of the estimate over its random probe vectors (or samples).
        truncation_error: Half the width of the interval that contains the value for the given probe vectors: the
            deterministic error of a quadrature of finite depth.
        status: UNRESOLVED values are never logged.
        lower_bound: Whether the value is a lower bound of the quantity (for instance a sum over k eigenpairs only).
    """

    value: float
    standard_error: float = 0.0
    truncation_error: float = 0.0
    status: Status = Status.EXACT
    lower_bound: bool = False

    @property
    def total_error(self) -> float:
        """Sum of the standard error and the truncation error."""
        return self.standard_error + self.truncation_error


@dataclass(frozen=True)
class Cost:
    """The cost of a result.

    Attributes:
        products: Number of matrix-vector products (0 if a Gram matrix was formed instead).
        seconds: Wall-clock seconds.
        product_seconds: Wall-clock seconds spent in the products.
        peak_bytes: Peak memory of the process so far, at the end; None if the system does not report it.
        method: How it was computed, for instance "kept_graph", "recomputed", "dense", "gram".
    """

    products: int = 0
    seconds: float = 0.0
    product_seconds: float = 0.0
    peak_bytes: int | None = None
    method: str = ""


@dataclass(frozen=True)
class Density:
    """A spectral density estimated by Lanczos quadrature, with one tridiagonal matrix for each probe vector.

    Attributes:
        diagonals: The diagonal of the tridiagonal matrix for each probe vector, shape (m,).
        offdiagonals: The off-diagonal for each probe vector, shape (m,). The last entry is the norm of the residual; it
            is zero if the Krylov space was exhausted and the quadrature is exact.
        nodes: Gauss nodes of all probe vectors, shape (vectors, m), padded with zeros.
        weights: Gauss weights, same shape, padded with zeros. Every row sums to its mass.
        positive_semidefinite: Whether the matrix is positive semidefinite by construction, so that Gauss-Radau
            brackets are valid.
        masses: Squared norm of each probe vector, (vectors,): ``dim``, or the part of it orthogonal to the eigenvectors
            of ``known``.
        known: Eigenvalues, (l,), to whose eigenvectors the probe vectors are orthogonal; they are counted exactly.
        known_residuals: Their residuals, (l,): the remaining coupling between them and the rest.
    """

    diagonals: tuple[Tensor, ...]
    offdiagonals: tuple[Tensor, ...]
    nodes: Tensor
    weights: Tensor
    positive_semidefinite: bool
    masses: Tensor
    known: Tensor = field(default_factory=lambda: zeros(0, dtype=float64))
    known_residuals: Tensor = field(default_factory=lambda: zeros(0, dtype=float64))


@dataclass(frozen=True, repr=False)
class Spectrum(Displayed):
    """Eigenvalues of one symmetric matrix, with their errors, status and cost.

    Attributes:
        eigenvalues: CPU float64, descending by signed value.
        residuals: ``||A u - lambda u||`` for each eigenvalue, same shape; zeros if the matrix was formed.
        converged: Whether the residual of each eigenvalue met the tolerance, (k,), bool; None if all are exact.
        eigenvectors: (p, k), columns in the order of the eigenvalues; None unless requested.
        largest: Algebraically largest computed eigenvalue.
        smallest: Algebraically smallest computed eigenvalue.
        largest_residual: Residual of ``largest``.
        smallest_residual: Residual of ``smallest``, which converges later than the largest.
        density: Quadrature of the whole spectrum; None without probe vectors, unless the matrix was formed.
        dim: Number of rows of the matrix: p for curvature, d for inputs.
        rank_bound: Upper bound of the rank (min(N, p) for a Fisher matrix), or None.
        num_samples: Number of samples used for the matrix.
        trace: The trace; None if neither the whole matrix nor probe vectors were available.
        matrix: "hessian", "gauss_newton", "fisher_empirical", "correlation", ...
        floor: Eigenvalues of smaller magnitude are rounding errors.
        unrepaired: Signed eigenvalues before negative ones, which missing values cause, were set to zero; None for
            complete data.
        noise_floor: Eigenvalues up to it are errors of missing values, so decades, knee and slope do not count them.
            Sums over eigenvalues take all above ``floor``. 0 for complete data.
        truncated: Whether eigenvalues that may exceed the floor are missing from ``eigenvalues``.
        cost: Products, seconds, memory.
        status: How the computation ended.
        half_eigenvalues: Eigenvalues of the same matrix from the first half of the samples, or None.
        halves: Signed eigenvalues of random halves of the samples, each with those of the other half,
            (pairs, 2, k); None if no halves were resampled.
        layers: Spectra of the diagonal blocks of the layers' parameters, by layer name; empty unless requested.
        detail: Additional facts, for instance how many constant columns were excluded.
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
    unrepaired: Tensor | None = None
    noise_floor: float = 0.0
    truncated: bool = False
    cost: Cost = field(default_factory=Cost)
    halves: Tensor | None = None
    half_eigenvalues: Tensor | None = None
    converged: Tensor | None = None
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    detail: Mapping[str, str | int | float] = field(default_factory=dict)

    def _shown(self) -> Shown:
        rows = [
            ("largest", number_with_error(self.largest, self.largest_residual)),
            ("smallest", number_with_error(self.smallest, self.smallest_residual)),
            *([] if self.trace is None else [("trace", _in_figures(self.trace))]),
            ("eigenvalues", f"{len(self.eigenvalues):,} of {self.dim:,}"),
            ("samples", f"{self.num_samples:,}"),
            ("status", self.status.name),
            *([("density", f"from {len(self.density.masses)} vectors")] if self.density is not None else []),
            *([("layers", f"{len(self.layers):,}")] if self.layers else []),
        ]
        return Shown("Spectrum", self.matrix, rows)


@dataclass(frozen=True)
class SloppinessVerdict:
    """Whether a spectrum is sloppy, compared with that of a null without structure.

    Attributes:
        answer: "yes", "no" or "undetermined".
        reason: One sentence with the numbers that decide.
        null: Description of the null.
        dimension: Participation ratio (inputs) or effective dimension (networks) of the spectrum.
        null_dimension: The same of the null.
        spread: Decades that the fitted line spans over all resolved eigenvalues, ``-slope * rank``.
        null_spread: The same of the null.
    """

    answer: Literal["yes", "no", "undetermined"]
    reason: str
    null: str
    dimension: float
    null_dimension: float
    spread: float
    null_spread: float


@dataclass(frozen=True, repr=False)
class Measurement(Displayed):
    """The result of one instrument at one step, with its errors and its cost.

    Attributes:
        step: The x-value at which it was logged, the same as for Lightning's metrics.
        epoch: Zero-based epoch.
        group: Name of the instrument, as in its tags: "input", "hessian", "fisher", "bound" ...
        spectrum: The spectrum from which the numbers were computed, or None (a bound, a failure).
        estimates: Estimates by quantity name (the part of the tag after the slash).
        cost: Cost of the whole measurement.
        status: How the measurement ended.
        num_samples: Number of probe samples.
        mode: "eval" or "train", the mode of the module during the measurement.
        precision: Data type of the products, for instance "float32".
        notes: Sentences that say, for example, why a value is missing.
        certificate: The bound, if the measurement is one.
        companions: Spectra of related matrices measured at the same time, by name: "gauss_newton", "covariance", ...
        verdicts: Verdicts on whether a spectrum is sloppy, by the name of its matrix.
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

    def _shown(self) -> Shown:
        names = [*(name for name in _FIRST if name in self.estimates), *self.estimates]
        usable = [name for name in dict.fromkeys(names) if self.estimates[name].status.ok][:_SHOWN]
        rows = [] if self.certificate is None else [("bound", self.certificate.in_brief())]
        rows += [(name, _in_figures(self.estimates[name])) for name in usable]
        if len(self.estimates) > len(usable):
            rows.append(("estimates", f"{len(self.estimates):,} in all"))
        rows += [("note", shortened(note)) for note in self.notes[:1]]
        rows += [
            ("samples", f"{self.num_samples:,}"),
            ("seconds", number(self.cost.seconds)),
            ("status", self.status.name),
        ]
        return Shown("Measurement", f"{self.group}, step {self.step:,}, epoch {self.epoch}", rows)


def _in_figures(estimate: Estimate) -> str:
    return ("at least " if estimate.lower_bound else "") + number_with_error(estimate.value, estimate.total_error)
