"""One word for each thing: names of modules, exports and arguments keep to docs/glossary.md."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import lightning_sloppy
from lightning_sloppy import HessianSpectrum, PACBayesBound, bounds, hessian_spectrum, kl_inverse
from lightning_sloppy.bounds.inversion import kl_inverse as with_gradients

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_sloppy"
ROW = re.compile(r"^\| (?P<term>[^|]+) \| (?P<meaning>(?:[^|]|\\\|)+) \| (?P<replaces>[^|]*)\|$", re.MULTILINE)
REPLACED = {
    word
    for row in ROW.finditer((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))
    for word in re.findall(r"`([^`]+)`", row["replaces"])
}
# Names that explained nothing to somebody new.
RIDDLES = {"question", "passing", "rounds", "closing", "starts", "events", "shares", "wanted", "certify", "certifying"}
PACKAGES = [
    importlib.import_module(f"lightning_sloppy.{found.name}")
    for found in pkgutil.iter_modules(lightning_sloppy.__path__)
    if found.ispkg
]


def public() -> dict[str, object]:
    return {name: getattr(lightning_sloppy, name) for name in dir(lightning_sloppy) if not name.startswith("_")}


def signatures() -> dict[str, list[str]]:
    """Arguments of every public function, class and method, and of what the directories export."""
    found: dict[str, list[str]] = {}
    exported = {f"{room.__name__}.{name}": getattr(room, name) for room in PACKAGES for name in _exports(room)}
    for name, value in {**public(), **exported}.items():
        if callable(value):
            found[name] = _arguments(value)
        if isinstance(value, type):
            methods = inspect.getmembers(value, inspect.isfunction)
            found.update({f"{name}.{m}": _arguments(f) for m, f in methods if not m.startswith("_")})
    return found


def _exports(room: ModuleType) -> list[str]:
    return list(getattr(room, "__all__", []))


def _arguments(value: object) -> list[str]:
    """Names of the arguments; an Objective or a Probe goes by the name of its class."""
    try:
        given = inspect.signature(value).parameters.items()
        return [name for name, each in given if name.title() not in str(each.annotation)]
    except (TypeError, ValueError):  # classes of C, enumerations
        return []


def test_the_glossary_replaces_words():
    assert {"objective", "probe", "share", "budget", "work"} <= REPLACED


def test_no_two_modules_have_the_same_base_name():
    names = Counter(path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__"))
    # One file computes the spectrum of the inputs, the spectra of curvature are in curvature/.
    assert not {name: count for name, count in names.items() if count > 1}


def test_no_module_is_named_by_a_riddle():
    assert not {path.stem for path in PACKAGE.rglob("*.py")} & RIDDLES


@pytest.mark.parametrize("room", [lightning_sloppy, *PACKAGES], ids=lambda room: room.__name__)
def test_no_export_shadows_a_module(room):
    modules = {found.name for found in pkgutil.iter_modules(room.__path__)}
    names = set(dir(room)) if room is lightning_sloppy else set(_exports(room))
    assert not names & modules
    for module in modules - {"__main__"}:
        assert isinstance(importlib.import_module(f"{room.__name__}.{module}"), ModuleType)
        assert isinstance(getattr(room, module), ModuleType), module


def test_no_public_argument_has_a_word_that_the_glossary_replaces():
    found = {name: set(arguments) & REPLACED for name, arguments in signatures().items()}
    assert not {name: words for name, words in found.items() if words}


def test_quantities_and_tags_have_no_such_word_either():
    declared = [value for value in public().values() if isinstance(getattr(value, "quantities", None), tuple)]
    assert declared
    for instrument in declared:
        assert not {quantity.name for quantity in instrument.quantities} & REPLACED


def test_values_are_spelled_as_identifiers():
    assert set(REPLACED) >= {"kept graph", "central differences"}
    methods = inspect.signature(hessian_spectrum).parameters["method"].annotation
    assert "Method" in str(methods)
    assert PACBayesBound(prior="initialization").prior == PACBayesBound(prior="initialisation").prior


def test_the_promised_names_stay():
    promised = {
        "SloppyMonitor", "InputSpectrum", "HessianSpectrum", "FisherSpectrum", "PACBayesBound", "FinalCertificate",
        "EffectiveDimensionEarlyStopping", "LearningPlan", "hessian_spectrum", "fisher_spectrum", "input_spectrum",
        "ConfigurationError", "Instrument", "Quantity", "Schedule", "Probe",
    }  # fmt: skip
    assert promised <= set(dir(lightning_sloppy))
    assert bounds.kl_inverse is kl_inverse is with_gradients
    assert {"k", "probes", "num_samples", "parameters", "loss_fn", "name"} <= set(_arguments(HessianSpectrum))


def test_the_public_names_are_a_line_each():
    lines = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8").splitlines()
    assert "__version__: str" in lines
    named = [re.fullmatch(r"from \.[\w.]+ import (\w+) as (\w+)", line) for line in lines if line.startswith("from")]
    assert all(named)
    assert sorted(match[1] for match in named if match) == sorted(dir(lightning_sloppy))
