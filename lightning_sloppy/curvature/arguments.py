"""Arguments of the analyses, checked before anything is computed."""

from __future__ import annotations

from typing import Any, get_args

from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.linalg.basis import Storage
from lightning_sloppy.linalg.which import Which


def checked_counts(k: int, probes: int | str) -> None:
    """Check the numbers of eigenpairs and probe vectors.

    Raises:
        ConfigurationError: If k < 1, or ``probes`` is 1 or negative.
    """
    if not isinstance(k, int) or k < 1:
        raise ConfigurationError(
            f"k={k} eigenpairs were asked for, but at least 1 is needed; pass k >= 1, as a whole number."
        )
    if probes != "auto" and (not isinstance(probes, int) or probes < 0 or probes == 1):
        raise ConfigurationError(
            f"probes={probes} probe vectors were asked for, but one has no standard error; pass 0, at least 2, "
            "or 'auto'."
        )


def one_of(name: str, value: str, choices: Any) -> None:
    """Check that a string is one of the choices.

    Raises:
        ConfigurationError: If it is not.
    """
    if value not in get_args(choices):
        raise ConfigurationError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(choices))}.")


def check_choices(mode: str, which: str = "magnitude", method: str = "auto", basis: str = "device") -> None:
    """Check the string arguments of a spectrum by products.

    Raises:
        ConfigurationError: If one is unknown.
    """
    one_of("mode", mode, Mode)
    one_of("which", which, Which)
    one_of("method", method, Method)
    one_of("basis", basis, Storage)


def check_solver(steps: int, tol: float | None, max_products: int | None, basis_memory: int | None) -> None:
    """Check the numeric arguments of eigensolver and quadrature.

    Raises:
        ConfigurationError: If one is out of range.
    """
    if steps < 1:
        raise ConfigurationError(f"steps={steps} Lanczos steps were asked for; pass steps >= 1, usually 30 to 100.")
    if tol is not None and not 0 < tol < 1:
        raise ConfigurationError(
            f"tol={tol} is a residual relative to the largest magnitude, so it must lie between 0 and 1; pass None for "
            "the default of the data type."
        )
    if max_products is not None and max_products < 1:
        raise ConfigurationError(f"max_products={max_products} does not allow a product; pass at least k, or None.")
    if basis_memory is not None and basis_memory < 1:
        raise ConfigurationError(f"basis_memory={basis_memory} is too small; pass a positive number of bytes, or None.")
