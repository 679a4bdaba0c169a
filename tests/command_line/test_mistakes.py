"""Messages of the parser, of an old and of a new release, in a few lines."""

from __future__ import annotations

import pytest

from lightning_sloppy.command_line.mistakes import MOST_LINES, explained
from lightning_sloppy.command_line.vocabulary import Vocabulary, nearest, nearest_option

OPTIONS = ["--config", "--model", "--data", "--trainer.max_epochs", "--trainer.max_steps", "--trainer.callbacks"]
WORDS = Vocabulary(
    options=OPTIONS,
    arguments_of=lambda path: {"my.Net": ["width", "lr"], "HessianSpectrum": ["k", "probes"]}.get(path, []),
    classes_for=lambda option: {"model": ["MLPClassifier"], "trainer.callbacks": ["SloppyMonitor"]}.get(option, []),
    config_files=["run.yaml"],
)


def union(*errors: str, key: str = "model", given: str = "x") -> str:
    """A message as jsonargparse writes it for a union of types."""
    inside = "\n".join(f"    - {error}" for error in errors)
    types = "[<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]"
    return (
        f'Parser key "{key}":\n  Does not validate against any of the Union subtypes\n  Subtypes: {types}\n  Errors:\n'
        f"{inside}\n  Given value type: <class 'str'>\n  Given value: {given}"
    )


NULL = "Expected a <class 'NoneType'>"


@pytest.mark.parametrize(
    ("message", "first", "suggestion"),
    [
        ("unrecognized arguments: --trainer.max_epoch 3", "no option --trainer.max_epoch.", "--trainer.max_epochs"),
        ("Unrecognized arguments: --max_epochs=3", "no option --max_epochs.", "--trainer.max_epochs"),
        ("unrecognized arguments: run.yaml", "stands without an option", "--config run.yaml"),
        ("unrecognized arguments: --nonsense", "no option --nonsense.", None),
        ("Subcommand 'fit' does not accept option 'trainer.max_epoch'", "no key max_epoch under trainer in run.yaml",
         "max_epochs"),
        ("Validation failed: Subcommand 'fit' does not accept nested key 'trainr.logger.init_args.name'",
         "no key trainr in run.yaml", "trainer"),
        (union("Problem with given class_path 'my.Net':\n        Option 'widht' is not accepted", NULL),
         "Net has no argument widht (--model.widht)", "width"),
        (union(NULL, "Problem with given class_path 'my.Net':\n        Validation failed: Key 'widht' is not expected"),
         "Net has no argument widht (--model.widht)", "width"),
        (union("Expected a dot import path string: MLPClasifier", NULL), "no class MLPClasifier for --model",
         "MLPClassifier"),
        (union("Expected a <class 'list'>", "Expected a dot import path string: SlopyMonitor", NULL,
               key="trainer.callbacks"), "no class SlopyMonitor for --trainer.callbacks", "SloppyMonitor"),
        (union("Problem with given class_path 'nowhere_at_all.Net':\n        No module named 'nowhere_at_all'", NULL),
         "no module nowhere_at_all for --model nowhere_at_all.Net", None),
        (union("Problem with given class_path 'my.Net':\n        No module named 'rare'", NULL),
         "my.Net (--model) cannot be imported: it needs the module rare, which is not installed.", None),
        (union("Problem with given class_path 'collections.OrderdDict':\n"
               "        module 'collections' has no attribute 'OrderdDict'", NULL),
         "module collections has no OrderdDict", "collections.OrderedDict"),
        (union("Import path does not correspond to a subclass of LightningModule", NULL, given="torch.nn.Linear"),
         "torch.nn.Linear is no LightningModule, but --model needs one.", None),
        (union("Expected a <class 'int'>", NULL, key="trainer.max_epochs", given="abc"),
         "--trainer.max_epochs takes a whole number or null, but got abc.", None),
        (union("Problem with given class_path 'my.Net':\n        Parser key \"lr\":\n          "
               "Expected a <class 'float'>. Got value: fast", NULL), "--model.lr takes a number, but got fast.", None),
        ('Parser key "prior":\n  Expected a typing.Literal[\'split\', \'curvature\']. Got value: curvatur',
         "--prior takes one of split, curvature, but got curvatur.", "curvature"),
        (union("Not a valid subclass of LightningModule\n      Subclass types expect one of:\n      - a class path",
               NULL, given="{'class_pth': 'my.Net'}"), "--model needs a LightningModule", "class_path"),
        (union("Problem with given class_path 'my.Net':\n        the following arguments are required: width", NULL),
         "Net needs width; give --model.width VALUE.", None),
        (union(NULL, "Problem with given class_path 'my.Net':\n        Validation failed: Key \"width\" is required "
               "but not included in config object or its value is None."),
         "Net needs width; give --model.width VALUE.", None),
        (union("Type collections.abc.Callable[[typing.Any], torch.Tensor] expects a function or a callable class: "
               "module 'collections' has no attribute 'namedtupl'", NULL, key="loss_fn"),
         "The module collections has no namedtupl (--loss_fn).", "collections.namedtuple"),
        ("--model.help: Expected a dot import path string: MLPClasifier", "no class MLPClasifier for --model.",
         "MLPClassifier"),
        (union("Expected a dot import path string: MLPClassifier", NULL), "MLPClassifier does not fit --model", None),
        ("the following arguments are required: fit.model", "An option is missing: --model.", None),
        ('Validation failed: Key "fit.model" is required but not included in config object or its value is None.',
         "An option is missing: --model.", None),
        ("argument --trainer.max_epochs: expected one argument", "--trainer.max_epochs needs a value.", None),
        ("argument -c/--config: expected one argument", "--config needs a value.", None),
        ("Problems parsing config: while parsing a flow sequence\n  in \"<unicode string>\", line 1, column 4\n"
         "did not find expected ',' or ']'\n  in \"<unicode string>\", line 2, column 3",
         "run.yaml is not valid YAML: did not find expected ',' or ']', line 2.", None),
        ("Unexpected config: hello there\n", "run.yaml holds no options", None),
    ],
)  # fmt: skip
def test_the_cause_comes_first_and_then_the_nearest_name(message, first, suggestion) -> None:
    lines = explained(message, WORDS)
    assert first in lines[0]
    assert (f"Did you mean {suggestion}?" in lines) == (suggestion is not None)
    assert any("Did you mean" in line for line in lines) == (suggestion is not None)
    assert len(lines) <= MOST_LINES


def test_the_deepest_argument_is_the_one_that_is_named() -> None:
    inner = (
        "Problem with given class_path 'SloppyMonitor':\n        Parser key \"hessian\":\n          Errors:\n"
        "            - Problem with given class_path 'HessianSpectrum':\n"
        "                Option 'prob' is not accepted\n"
        "            - Expected a <class 'bool'>"
    )
    lines = explained(union(inner, NULL, key="trainer.callbacks"), WORDS)
    assert lines[:2] == [
        "HessianSpectrum has no argument prob (--trainer.callbacks.hessian.prob).",
        "Did you mean probes?",
    ]


def test_a_file_that_is_missing_is_named_as_it_was_given_with_the_nearest_beside_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("")
    (tmp_path / "other.yaml").write_text("")
    words = Vocabulary(config_files=["digit.yaml"])
    message = f"Parser key \"config\": File does not exist: '{tmp_path / 'digit.yaml'}'"
    assert explained(message, words) == ["There is no file digit.yaml.", "Did you mean digits.yaml?"]
    message = message.replace("digit.yaml", "entirely.yaml")
    assert explained(message, words) == [f"There is no file {tmp_path / 'entirely.yaml'}."]


def test_a_module_that_raises_while_it_is_imported_is_named_with_its_error(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_for_this_test.py").write_text("\nraise NameError('oops')\n")
    lines = explained(union("oops", NULL, given="broken_for_this_test.Net"), WORDS)
    assert lines == [
        "broken_for_this_test.Net (--model) cannot be imported: NameError: oops (broken_for_this_test.py, line 2)"
    ]


def test_an_unknown_message_is_shortened_and_never_empty() -> None:
    many = "\n".join(f"line {number} {'x' * 400}" for number in range(70))
    lines = explained(many, WORDS)
    assert 1 <= len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 200
    assert explained("", WORDS) == ["The arguments cannot be used."]


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert nearest("widht", ["optimizer", "lr"]) is None
    assert nearest("mlpclassifier", ["MLPClassifier", "MLPRegressor"]) == "MLPClassifier"
    assert nearest_option("--trainer.zzz", OPTIONS) is None
    assert nearest_option("--trainr.max_steps", OPTIONS) == "--trainer.max_steps"
