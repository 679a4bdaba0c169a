"""The one line that matters in a nested message about a value: every type that an option may have reports an error."""

from __future__ import annotations

import ast
import importlib
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_sloppy.command_line.vocabulary import Vocabulary, nearest, suggestion


@dataclass(frozen=True)
class _Leaf:
    """One line of a nested message.

    Attributes:
        text: The line.
        option: The option that it is about.
        class_path: The class whose argument it is about; empty at the top.
        given: What was given, if the message says it.
    """

    text: str
    option: str
    class_path: str
    given: str = ""

    @property
    def depth(self) -> int:
        """How far inside."""
        return self.option.count(".")


@dataclass(frozen=True)
class _Case:
    """A line, what was recognised in it, all lines, and the names that would have been right."""

    leaf: _Leaf
    match: re.Match[str]
    leaves: Sequence[_Leaf]
    vocabulary: Vocabulary


def _leaves(text: str) -> Iterator[_Leaf]:
    """The lines with the option and class around each, from their indentation."""
    above: list[tuple[int, str, str]] = []  # indentation, option or "", class or ""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        bare = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip()) + (2 if line.strip().startswith("- ") else 0)
        while above and above[-1][0] >= indent:
            above.pop()
        if key := re.match(r'Parser key "([^"]+)":\s*(.*)', bare):
            above.append((indent, key[1], ""))
            bare = key[2]
        elif path := re.match(r"Problem with given class_path '([^']+)':", bare):
            above.append((indent, "", path[1]))
            continue
        if bare:
            option = ".".join(name for _, name, _ in above if name)
            class_path = next((name for _, _, name in reversed(above) if name), "")
            yield _Leaf(bare, option, class_path, _given(lines[index:], indent))


def _given(lines: Sequence[str], indent: int) -> str:
    """The value that a union of types refused: the first "Given value" that is not further inside."""
    for line in lines:
        found = re.match(r"( *)Given value: (.*)", line)
        if found and len(found[1]) <= indent:
            inner = re.match(r"NestedArg\(key='[^']*', val='(.*)'\)", found[2])
            return inner[1] if inner else found[2]
    return ""


def of_values(text: str, vocabulary: Vocabulary) -> list[str]:
    """A value that its option does not accept: the deepest line that says why."""
    leaves = [leaf for leaf in _leaves(text) if leaf.option]
    for pattern, explain in _REASONS:
        found = [(leaf, match) for leaf in leaves if (match := re.search(pattern, leaf.text))]
        if found:
            leaf, match = max(found, key=lambda pair: pair[0].depth)
            lines = explain(_Case(leaf, match, leaves, vocabulary))
            if lines:
                return lines
    return []


def _no_argument(case: _Case) -> list[str]:
    name, owner = case.match[1].split(".")[-1], case.leaf.class_path.rpartition(".")[2]
    if owner == "LightningModule" and case.leaf.option == "model":
        return [f"--model.{name} is an argument of the model, but no model is named; give --model CLASS as well."]
    names = case.vocabulary.arguments_of(case.leaf.class_path)
    lines = [
        f"{owner or case.leaf.option} has no argument {name} (--{case.leaf.option}.{name}).",
        *suggestion(nearest(name, names)),
    ]
    if names:
        lines.append(f"{owner} takes {', '.join(names)}.")
    return lines


def _argument_missing(case: _Case) -> list[str]:
    names = [name.strip().split(".")[-1] for name in case.match[1].split(",")]
    owner = case.leaf.class_path.rpartition(".")[2] or f"--{case.leaf.option}"
    given = " ".join(f"--{case.leaf.option}.{name} VALUE" for name in names)
    return [f"{owner} needs {', '.join(names)}; give {given}."]


def _no_class(case: _Case) -> list[str]:
    name = case.match[1]
    found = nearest(name, case.vocabulary.classes_for(case.leaf.option))
    if found == name:
        return [f"{name} does not fit --{case.leaf.option}, which takes another kind of class."]
    if found:
        return [f"There is no class {name} for --{case.leaf.option}.", *suggestion(found)]
    return [f"There is no class {name} for --{case.leaf.option}; give the class of a module of yours as module.{name}."]


def _no_module(case: _Case) -> list[str]:
    asked, missing = case.leaf.class_path or case.leaf.given, case.match[1]
    if asked.split(".")[0] != missing.split(".")[0]:
        return [
            f"{asked} (--{case.leaf.option}) cannot be imported: it needs the module {missing}, which is not installed."
        ]
    lines = [f"There is no module {missing} for --{case.leaf.option} {asked}."]
    beside = [path.stem for path in Path.cwd().glob("*.py")]
    known = nearest(missing, beside)
    rest = asked[len(missing) :] if asked.startswith(missing) else ""
    searched = f"Modules are looked for in {Path.cwd()} and among the installed packages."
    return [*lines, *(suggestion(known + rest) if known else [searched])]


def _no_attribute(case: _Case) -> list[str]:
    module, name = case.match[1], case.match[2]
    try:
        names = [known for known in dir(importlib.import_module(module)) if not known.startswith("_")]
    except Exception:
        names = []
    found = nearest(name, names)
    return [
        f"The module {module} has no {name} (--{case.leaf.option}).",
        *suggestion(f"{module}.{found}" if found else None),
    ]


def _not_subclass(case: _Case) -> list[str]:
    return [f"{case.leaf.given or 'The given class'} is no {case.match[1]}, but --{case.leaf.option} needs one."]


def _not_imported(case: _Case) -> list[str]:
    """A module that raises while it is imported: its error, and where."""
    path = case.leaf.given.partition(".")[0]
    if not re.fullmatch(r"[\w.]+\.\w+", case.leaf.given):
        return []
    try:
        importlib.import_module(case.leaf.given.rpartition(".")[0])
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path in Path(frame.filename).stem]
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        return [f"{case.leaf.given} (--{case.leaf.option}) cannot be imported: {type(error).__name__}: {error}{place}"]
    return []


def _not_a_class(case: _Case) -> list[str]:
    try:
        value = ast.literal_eval(case.leaf.given)
    except (ValueError, SyntaxError):
        value = None
    parts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]
    wrong = next((part for part in parts if "class_path" not in part), None)
    line = (
        f"--{case.leaf.option} needs a {case.match[1]}: its name under class_path, and its arguments under init_args."
    )
    if wrong is None:
        return [line]
    near = next((key for key in wrong if nearest(str(key), ["class_path"])), None)
    return [line, f"Found the keys {', '.join(map(str, wrong))}.", *suggestion("class_path" if near else None)]


def _wrong_value(case: _Case) -> list[str]:
    kinds: list[str] = []
    choices: list[str] = []
    given = case.leaf.given
    for other in case.leaves:
        expected = re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", other.text)
        if other.option != case.leaf.option or other.class_path != case.leaf.class_path or not expected:
            continue
        given = expected[2] or given
        if expected[1].startswith("typing.Literal["):
            choices += [str(choice) for choice in ast.literal_eval(expected[1].removeprefix("typing.Literal"))]
        else:
            kinds.append(_kind(expected[1]))
    if choices:
        kinds.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    takes = " or ".join(sorted(dict.fromkeys(kinds), key=lambda kind: kind == "null"))
    return [f"--{case.leaf.option} takes {takes}, but got {given}.", *suggestion(nearest(given, choices))]


def _kind(expected: str) -> str:
    """A type in words."""
    name = expected.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
    words = {"NoneType": "null", "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    return words.get(name, {"list": "a list", "Iterable": "a list", "Sequence": "a list"}.get(name, name))


_Explain = Callable[["_Case"], list[str]]

_REASONS: tuple[tuple[str, _Explain], ...] = (
    (r"^(?:Validation failed: )?(?:Option|Key) '([^']+)' is not (?:accepted|expected)", _no_argument),
    (r"^(?:Validation failed: )?Group '\w+' does not accept (?:option|nested key) '([^']+)'", _no_argument),
    (r"unexpected keyword argument '(\w+)'", _no_argument),
    (r"^(?:Validation failed: )?the following arguments are required: (.+)", _argument_missing),
    (r"^(?:Validation failed: )?Key \"([^\"]+)\" is required", _argument_missing),
    (r"(?:^|callable class: )No module named '([^']+)'", _no_module),
    (r"(?:^|callable class: )module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"^Expected a dot import path string: (\S+)", _no_class),
    (r"^Import path does not correspond to a subclass of (\w+)", _not_subclass),
    (r"^Expected an? (.+)\. Got value: ", _wrong_value),
    (r"^(?!Expected|Not a valid|Does not|Subtypes|Errors|Given|Unable|Subclass types|a )\S", _not_imported),
    (r"^Not a valid subclass of (\w+)", _not_a_class),
    (r"^Expected an? ", _wrong_value),
)
"""What a line says, and how it is explained, most telling first."""
