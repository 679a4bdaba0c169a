"""The promises about installing: exact versions on every Python, and a sentence where an interpreter cannot serve."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(python: str) -> dict[str, str]:
    """Version of every package that the constraints fix on this Python."""
    place = {"python_version": python, "python_full_version": f"{python}.0"}
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(place)]
    names = [canonical(pin.name) for pin in chosen]
    assert len(names) == len(set(names)), "two pins for one package"
    return {canonical(pin.name): next(iter(pin.specifier)).version for pin in chosen}


def declared() -> list[Requirement]:
    """Requirements of the package, of its extras and of its build, as pyproject.toml lists them."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, build = content["project"], content["build-system"]
    lists = [build["requires"], project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(entry) for entries in lists for entry in entries]
    return [requirement for requirement in found if requirement.name != "lightning-sloppy"]


def test_every_pin_is_one_exact_version():
    for pin in PINS:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_declared_is_pinned_within_its_range(python):
    versions = pinned(python)
    requirements = declared()
    assert {"torch", "lightning", "scikit-learn", "pytest", "hatchling"} <= {item.name for item in requirements}
    for requirement in requirements:
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), str(requirement)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_declared_pythons_are_in_the_metadata(python):
    assert f'"Programming Language :: Python :: {python}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("pretence", "message"),
    [
        ("sys.version_info = (3, 9, 18)", "Python 3.10 or newer is needed"),
        ("sys.modules['ensurepip'] = None", "apt install python3-venv"),
    ],
)
def test_make_says_why_an_interpreter_cannot_serve(tmp_path, pretence, message):
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; {pretence}; exec(sys.argv[1])" "$2"\n')
    stand_in.chmod(0o755)
    assert message in refused(tmp_path, stand_in)


def test_make_says_that_an_interpreter_is_missing(tmp_path):
    assert "install Python 3.10 or newer" in refused(tmp_path, tmp_path / "nowhere")


def refused(folder: Path, python: Path) -> str:
    target = folder / "environment" / "created"
    command = ["make", f"PYTHON={python}", f"VENV={target.parent}", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not target.parent.exists()
    return done.stderr


def test_the_oldest_versions_are_those_that_are_declared():
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pins = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, lines[2:]) if "==" in str(pin)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {}
    for entry in [
        *project["dependencies"],
        *project["optional-dependencies"]["cli"],
        *project["optional-dependencies"]["demo"],
    ]:
        requirement = Requirement(entry)
        floors[requirement.name] = next(s.version for s in requirement.specifier if s.operator == ">=")
    assert {"torch", "lightning", "scipy"} <= set(floors)
    for name, floor in floors.items():
        assert Version(pins[name]).release[:2] == (*Version(floor).release, 0)[:2], name
