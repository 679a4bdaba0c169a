"""A message of the parser in at most four lines: what is wrong, and the nearest name that is right.

The parser of jsonargparse reports every type that an option may have, and the whole usage. These functions find the one
line that matters. They know the wording of several releases; a message that they do not know is shortened.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_LINES = 4
"""Lines of a message; the caller adds one on where to read more."""

MOST_CHARACTERS = 300
"""Characters of a line."""

NEAR = 0.6
"""Similarity (0 to 1) from which a name is suggested."""

CONFIG_ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Vocabulary:
    """The names that would have been right.

    Attributes:
        options: Options of the command, such as "--trainer.max_epochs".
        arguments_of: From the import path of a class to the names of its arguments.
        classes_for: From an option that takes a class to the names of the classes that it knows.
        config_files: Configuration files that were given.
    """

    options: Sequence[str] = ()
    arguments_of: Callable[[str], Sequence[str]] = lambda _: ()
    classes_for: Callable[[str], Sequence[str]] = lambda _: ()
    config_files: Sequence[str] = ()


def explained(message: str, vocabulary: Vocabulary) -> list[str]:
    """The lines to print for a message of the parser, the first without "error: ".

    Args:
        message: Of the parser.
        vocabulary: The names that would have been right.

    >>> explained("unrecognized arguments: --max_epoch 3", Vocabulary(["--trainer.max_epochs", "--model"]))
    ['There is no option --max_epoch.', 'Did you mean --trainer.max_epochs?']
    """
    text = message.removeprefix("Validation failed: ").strip()
    for explain in (_unrecognised, _unknown_key, _no_value, _missing, _config_file, _in_values):
        lines = explain(text, vocabulary)
        if lines:
            return [_short(line) for line in lines[:MOST_LINES]]
    kept = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("Given value")]
    return [_short(line) for line in kept[: MOST_LINES - 1]] or ["The arguments cannot be used."]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that is most similar to a word, or None if none is near.

    >>> nearest("widht", ["lr", "widths", "optimizer"])
    'widths'
    """
    known = list(dict.fromkeys(names))
    plain = {name.lower(): name for name in reversed(known)}
    found = difflib.get_close_matches(word.lower(), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def nearest_option(option: str, options: Iterable[str]) -> str | None:
    """The nearest option; a forgotten prefix counts little.

    >>> nearest_option("--epochs", ["--trainer.max_epochs", "--trainer.devices", "--model"])
    '--trainer.max_epochs'
    >>> nearest_option("--trainer.callback", ["--trainer.callbacks", "--trainer.callbacks.help"])
    '--trainer.callbacks'
    """

    def similarity(known: str) -> float:
        whole = difflib.SequenceMatcher(a=option, b=known).ratio()
        tail = difflib.SequenceMatcher(a=_tail(option), b=_tail(known)).ratio()
        return max(whole if tail > NEAR else 0.0, 0.95 * tail)

    best = max(options, key=similarity, default=None)
    return best if best is not None and similarity(best) > 0.7 else None


def _tail(option: str) -> str:
    return option.lstrip("-").rpartition(".")[2]


def _suggestion(found: str | None) -> list[str]:
    return [f"Did you mean {found}?"] if found else []


def _short(line: str) -> str:
    flat = " ".join(line.split())
    return flat if len(flat) <= MOST_CHARACTERS else f"{flat[: MOST_CHARACTERS - 3]}..."


def _unrecognised(text: str, vocabulary: Vocabulary) -> list[str]:
    found = re.match(r"(?i)unrecognized arguments: (.*)", text, re.DOTALL)
    if found is None:
        return []
    word = found[1].split()[0].split("=")[0] if found[1].split() else ""
    if word.startswith("-"):
        return [f"There is no option {word}.", *_suggestion(nearest_option(word, vocabulary.options))]
    if word.endswith(CONFIG_ENDINGS):
        return [f"{word} stands without an option.", f"Did you mean --config {word}?"]
    return [f"{word} stands without an option; every value follows an option, as in --trainer.max_epochs 3."]


def _unknown_key(text: str, vocabulary: Vocabulary) -> list[str]:
    """A key of a configuration file, as a dotted path from the top."""
    found = re.match(r"Subcommand '\w+' does not accept (?:option|nested key) '([^']+)'", text)
    if found is None:
        return []
    parts = found[1].split(".")
    known = [option.lstrip("-").split(".") for option in vocabulary.options]
    for depth, part in enumerate(parts):
        names = {path[depth] for path in known if path[:depth] == parts[:depth] and len(path) > depth}
        if part not in names:
            where = f" under {'.'.join(parts[:depth])}" if depth else ""
            said = [f"There is no key {part}{where}{_in_files(vocabulary)}."]
            return [*said, *_suggestion(nearest(part, names - {"help"}))]
    return [f"The key {found[1]} is not known{_in_files(vocabulary)}."]


def _in_files(vocabulary: Vocabulary) -> str:
    return f" in {' or '.join(vocabulary.config_files)}" if vocabulary.config_files else ""


def _no_value(text: str, _: Vocabulary) -> list[str]:
    found = re.match(r"argument (\S+): expected .*argument", text)
    return [f"{found[1].split('/')[-1]} needs a value."] if found else []


def _missing(text: str, _: Vocabulary) -> list[str]:
    found = re.match(r"the following arguments are required: (.*)", text) or re.match(
        r'Key "([^"]+)" is required', text
    )
    if found is None:
        return []
    names = [name.strip().split(".")[-1] for name in found[1].split(",")]
    lines = [f"{'An option is' if len(names) == 1 else 'Options are'} missing: {', '.join(f'--{n}' for n in names)}."]
    if "model" in names:
        lines.append("Name a LightningModule, as in --model MLPClassifier, or a file that does: --config FILE.")
    return lines


def _config_file(text: str, vocabulary: Vocabulary) -> list[str]:
    missing = re.search(r"(?:File does not exist|Path is not a file|File is not readable): '([^']+)'", text)
    if missing:
        path = Path(missing[1])
        if path.is_dir():
            return [f"{_as_given(path, vocabulary)} is a folder, but a file is needed."]
        if path.exists():
            return [f"{_as_given(path, vocabulary)} cannot be read."]
        beside = {file.stem: file.name for file in path.parent.glob(f"*{path.suffix}")} if path.parent.is_dir() else {}
        near = nearest(path.stem, beside)  # without the ending, which would make any two names similar
        given = _as_given(path, vocabulary)
        found = str(Path(given).with_name(beside[near])) if near else None
        return [f"There is no file {given}.", *_suggestion(found)]
    if text.startswith(("Problems parsing config", "Unexpected config")):
        files = " or ".join(vocabulary.config_files) or "the configuration"
        places = re.findall(r"line (\d+), column \d+", text)
        if text.startswith("Problems") and places:
            reasons = [line.strip() for line in text.splitlines() if line.strip() and '", line' not in line]
            return [f"{files} is not valid YAML: {reasons[-1]}, line {places[-1]}."]
        return [f"{files} holds no options; write a mapping such as `trainer: {{max_epochs: 3}}`."]
    return []


def _as_given(path: Path, vocabulary: Vocabulary) -> str:
    given = (name for name in vocabulary.config_files if Path(name).resolve() == path.resolve())
    return next(given, str(path))


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


def _in_values(text: str, vocabulary: Vocabulary) -> list[str]:
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
        *_suggestion(nearest(name, names)),
    ]
    if names:
        lines.append(f"{owner} takes {', '.join(names)}.")
    return lines


def _no_class(case: _Case) -> list[str]:
    name = case.match[1]
    found = nearest(name, case.vocabulary.classes_for(case.leaf.option))
    if found:
        return [f"There is no class {name} for --{case.leaf.option}.", *_suggestion(found)]
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
    return [*lines, *(_suggestion(known + rest) if known else [searched])]


def _no_attribute(case: _Case) -> list[str]:
    module, name = case.match[1], case.match[2]
    try:
        classes = [known for known, value in vars(importlib.import_module(module)).items() if isinstance(value, type)]
        classes += [known for known in dir(importlib.import_module(module)) if known[:1].isupper()]
    except Exception:
        classes = []
    found = nearest(name, classes)
    return [
        f"The module {module} has no class {name} (--{case.leaf.option}).",
        *_suggestion(f"{module}.{found}" if found else None),
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
    return [line, f"Found the keys {', '.join(map(str, wrong))}.", *_suggestion("class_path" if near else None)]


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
    return [f"--{case.leaf.option} takes {takes}, but got {given}.", *_suggestion(nearest(given, choices))]


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
    (r"^No module named '([^']+)'", _no_module),
    (r"^module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"^Expected a dot import path string: (\S+)", _no_class),
    (r"^Import path does not correspond to a subclass of (\w+)", _not_subclass),
    (r"^Expected an? (.+)\. Got value: ", _wrong_value),
    (r"^(?!Expected|Not a valid|Does not|Subtypes|Errors|Given|Unable|Subclass types|a )\S", _not_imported),
    (r"^Not a valid subclass of (\w+)", _not_a_class),
    (r"^Expected an? ", _wrong_value),
)
"""What a line says, and how it is explained, most telling first."""
