"""Tags of declared quantities, and the scalars of a measurement by tag.

A tag is ``sloppy_<instrument>/<quantity>``, with the characters ``[a-z0-9_/]`` and exactly one slash. TensorBoard
groups its cards by the text before the slash, so an instrument is one block of cards. The two errors of an estimate are
logged under tags that end in ``_sem`` and ``_truncation``. Only declared quantities are logged, so that every curve has
an explanation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_sloppy.quantities import RESERVED, SUFFIXES, Declaration, Quantity
from lightning_sloppy.records import Estimate, Measurement
from lightning_sloppy.runs.frame import has_curve

OVERHEAD = Quantity(
    "overhead",
    "Seconds of measuring so far, divided by the seconds of training without measuring. `max_overhead` limits it, "
    "after the first `grace_seconds` of measuring. The card has it for the whole fit, with the work after the last "
    "measurement.",
    chart="Overhead",
)
"""The cost of all instruments together."""


def tag(group: str, quantity: str) -> str:
    """Return the full tag.

    >>> tag("hessian", "trace_sem")
    'sloppy_hessian/trace_sem'
    """
    return f"sloppy_{group}/{quantity}"


def cost_quantities(declaration: Declaration) -> list[Quantity]:
    """The logged costs of an instrument's measurements, in the group of costs."""
    name, title, advice = declaration.name, declaration.title, declaration.cost_advice
    explained = {
        "seconds": f"Wall-clock seconds per measurement: {title}. {advice}".strip(),
        "products": f"Number of matrix-vector products per measurement: {title}. Missing if a matrix was formed. "
        "A rise at constant settings means that the eigenvalues converge more slowly.",
        "peak_bytes": f"Peak memory of the process so far, at the end of a measurement: {title}. On CUDA it is that "
        "of torch's allocator, elsewhere the resident memory. A rise means that this measurement set a new peak.",
    }
    units = {"seconds": "seconds", "products": "products", "peak_bytes": "bytes"}
    charts = {"seconds": "Seconds of a measurement"}
    return [
        Quantity(
            f"{cost}_{name}",
            explained[cost],
            unit=units[cost],
            chart=charts.get(cost, ""),
            expert=cost != "seconds",
            once=declaration.once,
        )
        for cost in declaration.costs
    ]


def expected_tags(declaration: Declaration) -> tuple[str, ...]:
    """Every scalar tag that an instrument may log during a run, also those of which there is no curve.

    >>> expected_tags(Declaration("norm", "Norm", [Quantity("size", "Length of the weights.")]))
    ('sloppy_norm/size', 'sloppy_cost/seconds_norm', 'sloppy_cost/overhead')
    """
    return _tags(declaration, declaration.quantities, cost_quantities(declaration))


def curve_tags(declaration: Declaration) -> tuple[str, ...]:
    """The tags that loggers get, by ``declaration.detail``.

    A logger that must know its columns in advance (CSV) gets exactly these, with NaN where there is no value.

    >>> norm = [Quantity("size", "Length of the weights."), Quantity("weights", "Their number.", once=True)]
    >>> curve_tags(Declaration("norm", "Norm", norm))
    ('sloppy_norm/size', 'sloppy_cost/seconds_norm', 'sloppy_cost/overhead')
    """
    own = [quantity for quantity in declaration.quantities if declaration.draws(quantity)]
    return _tags(declaration, own, [cost for cost in cost_quantities(declaration) if declaration.draws(cost)])


def curves(values: Mapping[str, float], declaration: Declaration) -> dict[str, float]:
    """The scalars of a measurement that loggers get; an error of zero only with ``detail="all"``.

    Args:
        values: Scalars by tag.
        declaration: Declaration of the instrument.
    """
    wanted, everything = set(curve_tags(declaration)), declaration.detail == "all"
    found = {}
    for name, each in values.items():
        of = next((name.removesuffix(ending) for ending in SUFFIXES if name.endswith(ending)), None)
        if name in wanted if of is None else of in wanted and (everything or each != 0):
            found[name] = each
    return found


def _tags(declaration: Declaration, own: Sequence[Quantity], costs: Sequence[Quantity]) -> tuple[str, ...]:
    values = [tag(declaration.name, quantity.name) for quantity in own]
    errors = [tag(declaration.name, q.name + end) for q in own if q.estimated for end in SUFFIXES]
    return (*values, *errors, *(tag(RESERVED, quantity.name) for quantity in (*costs, OVERHEAD)))


def undeclared(measurement: Measurement, declaration: Declaration) -> list[str]:
    """Names of estimates that are not declared, and therefore not logged."""
    return [name for name in measurement.estimates if declaration.quantity(name) is None]


def scalars(measurement: Measurement, declaration: Declaration, *, overhead: float | None = None) -> dict[str, float]:
    """Return every loggable number of a measurement by its tag.

    An estimate is loggable if it is declared and finite, its status is ok (never UNRESOLVED), and the measurement did
    not fail. A lower bound is never returned under the name of a functional of the whole spectrum. For an estimate with
    an error, both errors are returned as well. The cost is returned even if the measurement failed.

    Args:
        measurement: The measurement.
        declaration: Declaration of the instrument.
        overhead: Seconds of measuring per second of training so far; None: not logged.

    >>> from lightning_sloppy.records import Cost, Status
    >>> half = Estimate(3.0, standard_error=0.5)
    >>> event = Measurement(7, 0, "hessian", None, {"trace": half}, Cost(seconds=2.0), Status.CONVERGED)
    >>> sorted(scalars(event, Declaration("hessian", "Hessian", [Quantity("trace", "Sum.")])).items())
    [('sloppy_cost/seconds_hessian', 2.0), ('sloppy_hessian/trace', 3.0), ('sloppy_hessian/trace_sem', 0.5),
     ('sloppy_hessian/trace_truncation', 0.0)]
    """
    found: dict[str, float] = {}
    for name, estimate in measurement.estimates.items():
        quantity = declaration.quantity(name)
        if quantity is not None and has_curve(measurement, quantity, estimate):
            found[tag(declaration.name, name)] = float(estimate.value)
            found.update(_errors(declaration.name, name, estimate))
    found.update(_costs(measurement, declaration))
    if overhead is not None and math.isfinite(overhead):
        found[tag(RESERVED, OVERHEAD.name)] = float(overhead)
    return found


def _errors(group: str, name: str, estimate: Estimate) -> dict[str, float]:
    pair = {"_sem": estimate.standard_error, "_truncation": estimate.truncation_error}
    if not any(pair.values()):
        return {}
    return {tag(group, name + suffix): float(value) for suffix, value in pair.items() if math.isfinite(value)}


def _costs(measurement: Measurement, declaration: Declaration) -> dict[str, float]:
    cost = measurement.cost
    known = {"seconds": cost.seconds, "products": cost.products or None, "peak_bytes": cost.peak_bytes}
    return {
        tag(RESERVED, f"{name}_{declaration.name}"): float(value)
        for name in declaration.costs
        if (value := known[name]) is not None
    }
