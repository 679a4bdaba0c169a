"""The README and the user guide: Python is executed, the output shown is printed, commands and links exist."""

import logging
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"bash", "sh", "shell", "console"}


def fences(*languages: str, page: Path = README) -> list[tuple[int, str]]:
    """Line of the first statement, and text, of every fence in one of the languages."""
    text = page.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match[2]) for match in FENCE.finditer(text) if match[1] in languages
    ]


def commands() -> list[str]:
    lines = "".join(text for _, text in fences(*SHELL)).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines]


def masked(text: str) -> str:
    """The words alone: numbers differ between versions of torch, and line breaks follow from them."""
    return " ".join(re.sub(r"[\d,]*\d(\.\d+)?", "#", text).split())


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, GUIDE], ids=lambda page: page.stem)
def test_python_fences_run_in_order_in_one_namespace_and_print_what_is_shown(page, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    shown = fences("python", page=page)
    assert shown
    namespace = {"__name__": page.stem}
    with caplog.at_level(logging.INFO):
        for line, text in shown:
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
    printed = masked("\n".join(record.getMessage() for record in caplog.records))
    for _, output in fences("text", page=page):
        for part in output.split("...\n"):
            assert masked(part) in printed


def test_the_readme_is_short_and_shows_output():
    assert len(README.read_text().splitlines()) <= 120
    assert fences("text")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_shown(target):
    assert any(re.match(rf"make {target}\b", line) for line in commands())


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for line in commands() if line.startswith("make ") for word in re.findall(r" ([a-z]+)\b(?!=)", line)}
    assert named <= targets


def test_configurations_exist():
    named = re.findall(r"configs/[\w./-]+\.yaml", README.read_text() + GUIDE.read_text())
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_extras_exist():
    optional = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", optional, re.MULTILINE))
    groups = re.findall(r"lightning.sloppy\[([\w,]+)\]", README.read_text())
    named = {extra for group in groups for extra in group.split(",")}
    assert named <= extras


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem)
def test_linked_files_and_headings_exist(page):
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for name, heading in links:
        target = page.parent / name if name else page
        assert target.exists(), name
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading
