"""Plain English: phrases that readers did not understand stay out of the documentation and of the code's texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CITATION.cff",
    ROOT / "pyproject.toml",
    ROOT / "benchmarks" / "RESULTS.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.yaml")),
]
SOURCES = sorted((ROOT / "lightning_sloppy").rglob("*.py"))

PHRASES = (
    # Riddles and metaphors.
    "so-manieth",
    "halve its luck",
    "cannot be trusted is said",
    "cut at k",
    "is dear",
    "nobody knows",
    "nobody can see",
    "nobody has seen",
    "nobody else",
    "by its own word",
    "the user's word",
    "limits, honestly",
    "misses included",
    "dominates a toy",
    "honest baseline",
    "shows the house",
    "demo room",
    "even carpet",
    "the even tail",
    "the mean rules",
    "own the trace",
    "blind to scales",
    "pull in one direction",
    "carries everything",
    "no way down",
    "across the valley",
    "stiff end",
    "hovers about",
    "spectrum has become harder",
    "pins down",
    "pin down",
    "being sure about",
    "a shrunk model",
    "top of a hill",
    # Words in an unusual order, or old words.
    "beside it",
    "beside them",
    "stand beside",
    "stands beside",
    "behind every",
    "behind each",
    "behind the knee",
    "behind the first drop",
    "seen through probe vectors",
    "the wanted pairs",
    "wanted pairs",
    "pairs at hand",
    "weigh the same",
    "counts one half",
    "matter alike",
    "outputs alike",
    "as many eigenvalues",
    "an order of size",
    "has not been seen",
    "is said once",
    "are said in a warning",
    "said in a warning",
    "you are told",
    "for ever",
    "goes best with",
    "all terms paid",
    "paid for",
    "paying for",
    "that pass by",
    "as it stands",
    "as they stand",
    "found by itself",
    "say the same",
    "draws of their own",
    "cannot be taken apart",
    "cannot be turned back",
    "leave a trace",
    "leaves a trace",
    "without a trace",
    "lost step",
    "keep step",
    "quick copy",
    "go on as before",
    "hardly more samples",
    "layers that thaw",
    "what costs most",
)


def words(text: str) -> str:
    """In small letters, with single spaces: a phrase may be broken over lines."""
    return " ".join(re.sub(r"[`*]", "", text).lower().split())


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module: docstrings and messages, those in parts put together."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


CODE = [(path, line, text) for path in SOURCES for line, text in texts(path)]


def holds(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as whole words."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", words(text)) is not None


def found_in_code(phrase: str) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}" for path, line, text in CODE if holds(text, phrase)]


def prose(page: Path) -> str:
    """A page without the output of programs, which is quoted as it is printed."""
    return re.sub(r"^```text\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documentation_holds_none(page):
    text = prose(page)
    assert not [phrase for phrase in PHRASES if holds(text, phrase)]


@pytest.mark.slow
@pytest.mark.parametrize("phrase", PHRASES)
def test_docstrings_and_messages_hold_none(phrase):
    assert found_in_code(phrase) == []


def test_no_phrase_is_in_the_list_twice():
    assert len(set(PHRASES)) == len(PHRASES)


def test_a_phrase_is_found_wherever_it_stands(tmp_path):
    source = tmp_path / "module.py"
    source.write_text('"""One.\n\nThis is\n    dear."""\nraise ValueError(f"{1} is" " dear")\n')
    assert [line for line, text in texts(source) if holds(text, "is dear")] == [1, 5]
    assert not holds("so it is dearly", "is dear")
