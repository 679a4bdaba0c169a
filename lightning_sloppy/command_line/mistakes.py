"""A message of the parser in at most four lines: what is wrong, and the nearest name that is right.

The parser of jsonargparse reports every type that an option may have, and the whole usage. These functions find the one
line that matters. They know the wording of several releases; a message that they do not know is shortened.
"""

from __future__ import annotations

import re
from pathlib import Path

from lightning_sloppy.command_line.nested_values import of_values
from lightning_sloppy.command_line.vocabulary import Vocabulary, nearest, nearest_option, suggestion

MOST_LINES = 4
"""Lines of a message; the caller adds one on where to read more."""

MOST_CHARACTERS = 200
"""Characters of a line."""

CONFIG_ENDINGS = (".yaml", ".yml", ".json")


def explained(message: str, vocabulary: Vocabulary) -> list[str]:
    """The lines to print for a message of the parser, the first without "error: ".

    Args:
        message: Of the parser.
        vocabulary: The names that would have been right.

    >>> explained("unrecognized arguments: --max_epoch 3", Vocabulary(["--trainer.max_epochs", "--model"]))
    ['There is no option --max_epoch.', 'Did you mean --trainer.max_epochs?']
    """
    text = message.removeprefix("Validation failed: ").strip()
    for explain in (_unrecognised, _unknown_key, _no_value, _missing, _help_of_class, _config_file, of_values):
        lines = explain(text, vocabulary)
        if lines:
            return [_short(line) for line in lines[:MOST_LINES]]
    kept = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("Given value")]
    return [_short(line) for line in kept[: MOST_LINES - 1]] or ["The arguments cannot be used."]


def _short(line: str) -> str:
    flat = " ".join(line.split())
    return flat if len(flat) <= MOST_CHARACTERS else f"{flat[: MOST_CHARACTERS - 3]}..."


def _unrecognised(text: str, vocabulary: Vocabulary) -> list[str]:
    found = re.match(r"(?i)unrecognized arguments: (.*)", text, re.DOTALL)
    if found is None:
        return []
    word = found[1].split()[0].split("=")[0] if found[1].split() else ""
    if word.startswith("-"):
        return [f"There is no option {word}.", *suggestion(nearest_option(word, vocabulary.options))]
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
            return [*said, *suggestion(nearest(part, names - {"help"}))]
    return [f"The key {found[1]} is not known{_in_files(vocabulary)}."]


def _in_files(vocabulary: Vocabulary) -> str:
    return f" in {' or '.join(vocabulary.config_files)}" if vocabulary.config_files else ""


def _no_value(text: str, _: Vocabulary) -> list[str]:
    found = re.match(r"argument (\S+): expected .*argument", text)
    return [f"{found[1].split('/')[-1]} needs a value."] if found else []


def _help_of_class(text: str, vocabulary: Vocabulary) -> list[str]:
    found = re.match(r"--([\w.]+)\.help: .*\s(\S+)$", text)
    if found is None:
        return []
    known = nearest(found[2], vocabulary.classes_for(found[1]))
    return [f"There is no class {found[2]} for --{found[1]}.", *suggestion(known)]


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
        return [f"There is no file {given}.", *suggestion(found)]
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
