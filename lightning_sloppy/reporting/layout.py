"""The custom-scalars layout: curves that belong together on one chart of TensorBoard's Custom Scalars page.

A multiline entry is a regular expression that TensorBoard applies with ``re.match``, so each ends with ``$``. A margin
chart names three exact tags (value, lower, upper); the only such triples among our tags are an effective dimension
between its values at 10 z and at z/10, because an error is logged as its size and not as two ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.reporting.tags import tag
from lightning_sloppy.reporting.writers import attempt

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Layout = dict[str, dict[str, list[Any]]]

# The tag under which the page looks for a layout, as bytes because it is searched for in the event file itself.
_LAYOUT_KEY = b"custom_scalars__config__"

# A layout is written before training starts, so it stands near the beginning of a file.
_SEARCHED_BYTES = 64 * 2**20

_CHARTS: Mapping[str, Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "Sloppy: dimension": {
        "Hessian (Gauss-Newton part): effective dimension between 10 z and z/10": (
            "Margin",
            "hessian",
            ("effective_dimension", "effective_dimension_coarse", "effective_dimension_fine"),
        ),
        "Fisher: effective dimension between 10 z and z/10": (
            "Margin",
            "fisher",
            ("effective_dimension", "effective_dimension_coarse", "effective_dimension_fine"),
        ),
        "Fisher: does it depend on the number of samples?": (
            "Multiline",
            "fisher",
            ("effective_dimension", "effective_dimension_half_samples"),
        ),
        "Hessian: errors of the effective dimension": (
            "Multiline",
            "hessian",
            ("effective_dimension_sem", "effective_dimension_truncation"),
        ),
        "Fisher: eigenvalues above z": ("Multiline", "fisher", ("eigenvalue_count", "eigenvalue_count_half_samples")),
        "Hessian: eigenvalues above z": ("Multiline", "hessian", ("eigenvalue_count", "converged_above_z")),
    },
    "Sloppy: Hessian": {
        "Largest and smallest eigenvalue": ("Multiline", "hessian", ("largest", "smallest")),
        "Trace: Hessian and Gauss-Newton part": ("Multiline", "hessian", ("trace", "gauss_newton_trace")),
        "Loss on the probe": ("Multiline", "hessian", ("loss",)),
    },
    "Sloppy: Fisher": {
        "Largest eigenvalue and trace": ("Multiline", "fisher", ("largest", "trace")),
        "Dimensions without a scale": ("Multiline", "fisher", ("participation_ratio", "effective_rank")),
    },
    "Sloppy: input": {
        "Decades": ("Multiline", "input", ("decades", "covariance_decades", "second_moment_decades")),
        "Slope": ("Multiline", "input", ("slope", "covariance_slope", "second_moment_slope")),
        "Dimension of the inputs": (
            "Multiline",
            "input",
            ("participation_ratio", "effective_rank", "entropy_rank", "resolved", "num_features"),
        ),
    },
    "Sloppy: bound": {
        "Bounds and errors": ("Multiline", "bound", ("pac_bayes", "hold_out", "gibbs_error", "hold_out_error")),
        "Complexity (nats)": ("Multiline", "bound", ("log_ratio", "kl_displacement", "kl_covariance")),
    },
    "Sloppy: certificate": {
        "Final bounds and error": ("Multiline", "certificate", ("pair", "single", "gibbs_error")),
    },
    "Sloppy: cost": {
        "Seconds": (
            "Multiline",
            "cost",
            ("seconds_input", "seconds_hessian", "seconds_fisher", "seconds_bound"),
        ),
        "Share of the time": ("Multiline", "cost", ("share",)),
    },
}


def layout() -> Layout:
    """Return the layout in the form of ``SummaryWriter.add_custom_scalars``: category -> chart -> [kind, tags].

    >>> layout()["Sloppy: cost"]["Share of the time"]
    ['Multiline', ['sloppy_cost/share$']]
    """
    return {
        category: {
            title: [kind, [_entry(kind, tag(group, quantity)) for quantity in quantities]]
            for title, (kind, group, quantities) in charts.items()
        }
        for category, charts in _CHARTS.items()
    }


def write_layout(trainer: Trainer) -> None:
    """Write the layout once to every logger whose experiment takes one, unless its run already holds a layout.

    TensorBoard keeps one layout for each run. One that the user wrote, or one from before a resume into the same
    folder, is therefore left alone.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        with attempt(trainer, logger, "write the layout of the Custom Scalars page"):
            experiment: Any = getattr(logger, "experiment", None)
            if not hasattr(experiment, "add_custom_scalars"):
                continue
            if _has_layout(experiment):
                rank_zero_info("This TensorBoard run already has a Custom Scalars layout, so ours was not added.")
            else:
                experiment.add_custom_scalars(layout())


def _entry(kind: str, name: str) -> str:
    return name if kind == "Margin" else re.escape(name) + "$"


def _has_layout(experiment: Any) -> bool:
    """Look for a layout in the event files of a writer with a local folder."""
    folder = getattr(experiment, "log_dir", None)
    if not isinstance(folder, (str, Path)) or not Path(folder).is_dir():
        return False
    experiment.flush()
    return any(_holds_key(path) for path in Path(folder).glob("events.out.tfevents.*"))


def _holds_key(path: Path) -> bool:
    tail, left = b"", _SEARCHED_BYTES
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(2**20, left))):
            if _LAYOUT_KEY in tail + chunk:
                return True
            tail, left = chunk[-len(_LAYOUT_KEY) :], left - len(chunk)
    return False
