"""The wheel that users install: built from the checkout, installed where nothing of it was, fitted once."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "lightning_sloppy"
    kept = [*package.rglob("*.py"), *(package / "reporting" / "templates").iterdir()]
    sources = {str(path.relative_to(ROOT)) for path in kept}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == sources | {"lightning_sloppy/py.typed", "lightning_sloppy/__init__.pyi"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_is_imported_and_fits_in_an_environment_of_its_own(wheel, tmp_path):
    """The environment borrows the installed dependencies by path, so that torch is not fetched a second time.

    A path that stands in a .pth file is searched but its own .pth files are not read: an editable install of the
    checkout there stays invisible.
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (packages,) = home.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    assert subprocess.run([python, "-c", "import lightning_sloppy"], cwd=tmp_path, capture_output=True).returncode == 1
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    where = run(python, "-c", "import lightning_sloppy; print(lightning_sloppy.__file__)", cwd=tmp_path).strip()
    assert Path(where) == packages / "lightning_sloppy" / "__init__.py"

    config = ROOT / "configs" / "minimal.yaml"
    text = run(home / "bin" / "lightning-sloppy", "fit", "--config", config, "--trainer.max_steps=1", cwd=tmp_path)
    assert "Effective dimension" in text
    assert list(tmp_path.glob("lightning_logs/version_0/events.out.tfevents.*"))
