"""The shape of the house: arrows go down only, Lightning stays upstairs, files stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_sloppy"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the top of the house to the ground; a room may use the floors below its own.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"inspect_command", "report_command"},
    {"command_line"},
    {"callbacks", "demo"},
    {"certifying"},
    {"compression"},
    {"probing", "reporting"},
    {"reduction", "drift"},
    {"analysis", "inspection"},
    {"posteriors", "metrics"},
    {"bounds", "measures", "curvature", "inputs"},
    {"evaluation", "linalg"},
    {"runs"},
    {"records"},
    {"certificate", "quantities"},
    {"errors", "user_warnings", "version", "display"},
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
ROOMS_WITH_LIGHTNING = {"command_line", "inspect_command", "callbacks", "certifying", "probing", "reporting", "demo"}
LIGHTNING = {"lightning", "pytorch_lightning"}
PRIVATE_NAMES_ALLOWED = PACKAGE / "probing" / "trainer_internals.py"
LIGHTNING_OBJECTS = {"trainer", "pl_module", "strategy", "fit_loop", "lightning_module"}
OF_A_MACHINE = ["/" + "work/", "/" + "farm/", "../" + "shared", "/" + "root/", "/" + "opt/"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, str]]:
    """All imports of a file, also those for type checkers and inside functions: (module, name)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def rooms_used_by(path: Path) -> set[str]:
    used = set()
    for module, name in imports_of(path):
        parts = [*module.split("."), *([name] if name else [])]
        if parts[0] == "lightning_sloppy":
            used.add(parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__")
    return used


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_every_file_lives_in_a_known_room(path):
    assert room_of(path) in LEVEL


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_imports_go_down_only(path):
    room = room_of(path)
    wrong = {used for used in rooms_used_by(path) if used != room and LEVEL[used] <= LEVEL[room]}
    assert not wrong, f"{room} may not use {sorted(wrong)}"


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    """Not inside a directory either, and not for type checkers alone: one of the two is then in the wrong place."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    arrows = {
        name: {f"{module}.{what}" if f"{module}.{what}" in names else module for module, what in imports_of(path)}
        for name, path in names.items()
    }
    # What imports nothing of the rest is taken away until nothing is left; a circle is what cannot be taken away.
    rest = {name: used - {name} for name, used in arrows.items()}
    while ends := {name for name, used in rest.items() if not used & rest.keys()}:
        rest = {name: used for name, used in rest.items() if name not in ends}
    assert not rest


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_lightning_stays_upstairs(path):
    if room_of(path) not in ROOMS_WITH_LIGHTNING:
        assert not {module for module, _ in imports_of(path) if module.split(".")[0] in LIGHTNING}


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_private_names_of_lightning_live_in_one_file(path):
    if path == PRIVATE_NAMES_ALLOWED:
        return
    private = [
        f"{module}.{name}"
        for module, name in imports_of(path)
        if module.split(".")[0] in LIGHTNING and any(part.startswith("_") for part in [*module.split("."), name])
    ]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if LIGHTNING_OBJECTS & set(owner.replace("(", ".").replace(")", "").split(".")):
                private.append(f"{owner}.{node.attr}, line {node.lineno}")
    assert not private


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import lightning_sloppy",
        "from lightning_sloppy import hessian_spectrum, fisher_spectrum, input_spectrum",
        "from lightning_sloppy import Spectrum, Status, ConfigurationError",
        "import lightning_sloppy.bounds, lightning_sloppy.posteriors, lightning_sloppy.measures",
        "from lightning_sloppy import inspect, DataReport, SpectralErrors",
        "from lightning_sloppy import compress, Compressed",
    ],
)
def test_works_without_importing_lightning(statement):
    check = f"{statement}; import sys; print(sorted({LIGHTNING!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_file_names_a_place_of_one_machine():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in run.stdout.splitlines()] or MODULES  # an unpacked archive has no git
    found = []
    for path in files:
        if path.is_file() and path.suffix not in {".png", ".csv"}:
            text = path.read_text(errors="replace")
            found += [f"{ids(path)}: {place}" for place in OF_A_MACHINE if place in text]
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_asserts_tell_a_type_checker_what_is_there_and_check_no_input(path: Path) -> None:
    """``python -O`` takes them away; what a user may give wrong raises an error of the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            assert isinstance(node.test, ast.Compare), f"{path}:{node.lineno}"
            assert isinstance(node.test.ops[0], ast.IsNot), f"{path}:{node.lineno}"
            assert ast.unparse(node.test.comparators[0]) == "None", f"{path}:{node.lineno}"
