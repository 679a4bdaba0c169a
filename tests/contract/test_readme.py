"""What the README shows, works: Python is executed, commands name what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"bash", "sh", "shell", "console"}


def fences(*languages: str) -> list[tuple[int, str]]:
    """Line of the first statement, and text, of every fence in one of the languages."""
    text = README.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match[2]) for match in FENCE.finditer(text) if match[1] in languages
    ]


def commands() -> list[str]:
    lines = "".join(text for _, text in fences(*SHELL)).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines]


def test_python_fences_run_in_order_in_one_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = fences("python")
    assert shown
    namespace = {"__name__": "readme"}
    for line, text in shown:
        exec(compile("\n" * (line - 1) + text, str(README), "exec"), namespace)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_shown(target):
    assert any(re.match(rf"make {target}\b", line) for line in commands())


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for line in commands() if line.startswith("make ") for word in re.findall(r" ([a-z]+)\b(?!=)", line)}
    assert named <= targets


def test_configurations_exist():
    named = re.findall(r"configs/[\w./-]+\.yaml", README.read_text())
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_extras_exist():
    optional = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", optional, re.MULTILINE))
    groups = re.findall(r"lightning.sloppy\[([\w,]+)\]", README.read_text())
    named = {extra for group in groups for extra in group.split(",")}
    assert named <= extras


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README.read_text())
    assert not [link for link in links if not (ROOT / link).exists()]
