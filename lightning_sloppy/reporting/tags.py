"""Every tag under which this package logs, as data, and the scalars of a measurement under their tags.

A tag is ``sloppy_<group>/<quantity>``, characters ``[a-z0-9_/]``, exactly one slash. TensorBoard groups its cards by
the text before the slash, so a group is one block of cards. The two errors of an estimate stand beside it under the
suffixes ``_sem`` and ``_truncation``. A name that is not in ``QUANTITIES`` is refused, so no curve can appear that the
documentation does not explain: a test compares these tables with ``docs/reading_the_curves.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.records import Estimate, Measurement, Status
from lightning_sloppy.reporting.explanations import BOUND, CERTIFICATE, COST, FISHER, HESSIAN, INPUT

GROUPS = ("input", "hessian", "fisher", "bound", "certificate", "cost")

QUANTITIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "input": MappingProxyType(INPUT),
        "hessian": MappingProxyType(HESSIAN),
        "fisher": MappingProxyType(FISHER),
        "bound": MappingProxyType(BOUND),
        "certificate": MappingProxyType(CERTIFICATE),
        "cost": MappingProxyType(COST),
    }
)
"""Group -> quantity -> what it means and what to do about it."""

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        "_sem": "Standard error of the curve of the same name over the random probe vectors. If it is as large as the "
        "change you want to see, raise `probes`.",
        "_truncation": "Half the width of the interval in which the value lies for the probe vectors at hand: the "
        "error of stopping Lanczos after finitely many steps. If it dominates, raise `steps`.",
    }
)

HISTOGRAMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        group: MappingProxyType(explained)
        for group, explained in {
            "input": {
                "log10_eigenvalues": "Eigenvalues of the correlation matrix above the rounding floor, as log10. A few "
                "on the right and an even carpet to the left is a sloppy spectrum.",
            },
            "hessian": {
                "log10_eigenvalues": "Positive eigenvalues of the Hessian among the k pairs of largest magnitude, as "
                "log10: the stiff end.",
                "log10_eigenvalues_negative": "Magnitudes of the negative eigenvalues of the Hessian among the k "
                "pairs, as log10: the directions in which the loss still curves downwards.",
                "gauss_newton_log10_eigenvalues": "The whole spectrum of the Hessian's Gauss-Newton part above the "
                "rounding floor, as log10; counts are quadrature weights, so they may be fractions. A long even carpet "
                "to the left is a sloppy model.",
            },
            "fisher": {
                "log10_eigenvalues": "Non-zero eigenvalues of the Fisher matrix on the probe samples, as log10. At "
                "most N of them exist, whatever the number of parameters.",
            },
        }.items()
    }
)
"""Group -> histogram -> what it shows."""

ESTIMATED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "hessian": frozenset(
            {
                "trace",
                "gauss_newton_trace",
                "effective_dimension",
                "effective_dimension_fine",
                "effective_dimension_coarse",
                "eigenvalue_count",
            }
        ),
    }
)
"""Quantities that come from random probe vectors and therefore usually carry both errors."""

# Functionals of the whole spectrum: a sum cut at k pairs is k itself, so a lower bound never goes under these names.
_WHOLE_SPECTRUM = ("effective_dimension", "eigenvalue_count")

# After these nothing that was computed can be trusted, not even what happens to be finite.
_WORTHLESS = (Status.FAILED, Status.NON_FINITE)


def tag(group: str, quantity: str) -> str:
    """Return the full tag of a quantity, with or without one of the two error suffixes.

    Args:
        group: One of ``GROUPS``.
        quantity: A name in ``QUANTITIES[group]`` or ``HISTOGRAMS[group]``, optionally followed by a suffix.

    Raises:
        ConfigurationError: The group or the quantity is not in the tables.

    >>> tag("hessian", "trace"), tag("hessian", "trace_sem")
    ('sloppy_hessian/trace', 'sloppy_hessian/trace_sem')
    """
    if group not in QUANTITIES:
        raise ConfigurationError(f"A tag was asked for in the group {group!r}; the groups are {', '.join(GROUPS)}.")
    base = quantity
    for suffix in SUFFIXES:
        base = base.removesuffix(suffix)
    if quantity not in QUANTITIES[group] and base not in QUANTITIES[group] and base not in HISTOGRAMS.get(group, {}):
        raise ConfigurationError(
            f"A tag was asked for the quantity {quantity!r} of the group {group!r}, which no table explains; "
            f"add it to lightning_sloppy/reporting/explanations.py and to docs/reading_the_curves.md."
        )
    return f"sloppy_{group}/{quantity}"


def all_tags() -> tuple[str, ...]:
    """Every documented scalar tag without the error suffixes, in the order of the tables."""
    return tuple(tag(group, quantity) for group in GROUPS for quantity in QUANTITIES[group])


def expected_tags(matrix: str) -> tuple[str, ...]:
    """Every scalar tag that measurements of one matrix can be expected to log during a run.

    A logger that must know its columns beforehand (CSV) is given exactly these, NaN where there is no value.

    >>> "sloppy_cost/seconds_fisher" in expected_tags("fisher")
    True
    """
    names = [tag(matrix, quantity) for quantity in QUANTITIES[matrix]]
    names += [
        tag(matrix, quantity + suffix)
        for quantity in QUANTITIES[matrix]
        if quantity in ESTIMATED.get(matrix, ())
        for suffix in SUFFIXES
    ]
    costs = [q for q in QUANTITIES["cost"] if q == "share" or q.endswith(f"_{matrix}")]
    return tuple(names + [tag("cost", quantity) for quantity in costs])


def scalars(measurement: Measurement, *, share: float | None = None) -> dict[str, float]:
    """Return every loggable number of a measurement under its tag.

    An estimate is loggable when it is finite, its own status is ok (never UNRESOLVED), and the measurement did not
    fail. A value known only as a lower bound is never returned under the name of a whole-spectrum quantity. Both
    errors stand beside an estimate that has one. The cost is returned even for a measurement that failed: the time
    was spent.

    Args:
        measurement: The event.
        share: Seconds of measuring per second of training so far, when the caller wants it logged.

    Raises:
        ConfigurationError: An estimate has a name that no table explains.

    >>> from lightning_sloppy.records import Cost
    >>> half = Estimate(3.0, standard_error=0.5)
    >>> event = Measurement(7, 0, "hessian", None, {"trace": half}, Cost(seconds=2.0), Status.CONVERGED)
    >>> sorted(scalars(event).items())
    [('sloppy_cost/seconds_hessian', 2.0), ('sloppy_hessian/trace', 3.0), ('sloppy_hessian/trace_sem', 0.5),
     ('sloppy_hessian/trace_truncation', 0.0)]
    """
    found: dict[str, float] = {}
    for quantity, estimate in measurement.estimates.items():
        name = tag(measurement.matrix, quantity)
        if measurement.status not in _WORTHLESS and _loggable(quantity, estimate):
            found[name] = float(estimate.value)
            found.update(_errors(measurement.matrix, quantity, estimate))
    found.update(_costs(measurement, share))
    return found


def _loggable(quantity: str, estimate: Estimate) -> bool:
    if estimate.lower_bound and quantity.startswith(_WHOLE_SPECTRUM):
        return False
    return estimate.status.ok and math.isfinite(estimate.value)


def _errors(group: str, quantity: str, estimate: Estimate) -> dict[str, float]:
    pair = {"_sem": estimate.standard_error, "_truncation": estimate.truncation_error}
    if not any(pair.values()):
        return {}
    return {tag(group, quantity + suffix): float(value) for suffix, value in pair.items() if math.isfinite(value)}


def _costs(measurement: Measurement, share: float | None) -> dict[str, float]:
    cost, matrix = measurement.cost, measurement.matrix
    found = {tag("cost", f"seconds_{matrix}"): float(cost.seconds)}
    if cost.products and f"products_{matrix}" in QUANTITIES["cost"]:
        found[tag("cost", f"products_{matrix}")] = float(cost.products)
    if cost.peak_bytes is not None and f"peak_bytes_{matrix}" in QUANTITIES["cost"]:
        found[tag("cost", f"peak_bytes_{matrix}")] = float(cost.peak_bytes)
    if share is not None and math.isfinite(share):
        found[tag("cost", "share")] = float(share)
    return found
