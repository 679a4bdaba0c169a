"""Lightning's command line with the verbs and the messages of this package: fit, validate, test, predict, and more."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.callbacks.checkpoints import is_compressed
from lightning_sloppy.callbacks.compressing_trainer import CompressingTrainer
from lightning_sloppy.callbacks.low_rank_layers import LowRank
from lightning_sloppy.command_line import json_file, results
from lightning_sloppy.command_line.complaints import COMMAND, complain
from lightning_sloppy.command_line.compress_page import print_compressed
from lightning_sloppy.command_line.faults import FAILED, OK, WRONG_INPUT, Stage, own_part, told
from lightning_sloppy.command_line.parser import Parser, class_names
from lightning_sloppy.command_line.spectrum_page import print_spectra
from lightning_sloppy.command_line.vocabulary import nearest
from lightning_sloppy.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

OWN_VERBS = {verb: {"model", "datamodule"} for verb in ("certify", "spectrum", "compress")}
"""The verbs that Lightning does not have, each a method of :class:`CompressingTrainer`, with the arguments to skip."""


class SaveConfigBesideLogs(SaveConfigCallback):
    """Saves the configuration in the run's folder, or nowhere if there is no logger and thus no such folder.

    Otherwise it would overwrite a config.yaml of the user in the working folder.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save once, if the run has a folder."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class SloppyCLI(LightningCLI):
    """Lightning's command line with the verbs of this package.

    Args:
        words: The arguments.
        stages: Receives each stage when it begins, so that an error is known to be of the last one.
        options: For Lightning's class.
    """

    trainer: CompressingTrainer

    def __init__(self, words: Sequence[str], stages: list[Stage], **options: Any) -> None:
        self._words, self._stages = list(words), stages
        Parser.made.clear()
        super().__init__(**options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, and those of this package."""
        return {**LightningCLI.subcommands(), **OWN_VERBS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with the messages of this package."""
        parser = Parser(**kwargs)
        help_of_config = "Path to a configuration file in YAML or JSON."
        parser.add_argument("-c", "--config", action=ActionConfigFile, help=help_of_config)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, _: Any) -> None:
        """Parse the words, which are those of the process without the options that every verb has."""
        self.config = parser.parse_args(self._words)
        given = self.config.get(self.config.subcommand, {}).get("ckpt_path")
        if given is not None and not Path(given).is_file() and not _is_keyword(str(given)):
            raise ConfigurationError(f"There is no checkpoint {given}; pass --ckpt_path with a file written by a fit.")
        self._stages.append("checkpoint")

    def before_instantiate_classes(self) -> None:
        """The stage of building begins."""
        self._stages.append("building")

    def after_instantiate_classes(self) -> None:
        """The stage of running begins. If the checkpoint is a compressed one, its smaller layers are made first."""
        verb = str(self.config.subcommand)
        given = self.config.get(verb, {})
        strict = given.get("weights_only") is not False
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]
        known = verb in OWN_VERBS or any(isinstance(each, LowRank) for each in callbacks)
        if not known and is_compressed(given.get("ckpt_path"), self.model, weights_only=strict):
            callbacks.insert(0, LowRank(weights_only=strict))
        self._stages.append("running")

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters from the checkpoint, if its model is the configured one, and say what they change.

        Lightning takes them without a word, the class of the model included, and reads plain values only, whatever
        ``--weights_only`` says.
        """
        verb = str(self.config.subcommand)
        if self.config.get(verb, {}).get("weights_only") is False:
            return
        asked = self.config.clone()
        with Parser.raising():
            super()._parse_ckpt_path()
        before, after = (_model_of(config, verb) for config in (asked, self.config))
        if before.get("class_path") != after.get("class_path"):
            self.config = asked
            return
        changed = [name for name, value in after.items() if before.get(name) != value]
        if changed:
            values = ", ".join(f"{name} = {after[name]} instead of {before.get(name)}" for name in changed)
            rank_zero_info(f"Hyperparameters of the model are those in the checkpoint: {values}.")


def _model_of(config: Any, verb: str) -> dict[str, Any]:
    """The class and the arguments of the model in a configuration."""
    model = config.get(verb, {}).get("model") or {}
    return {"class_path": model.get("class_path"), **dict(model.get("init_args") or {})}


def _is_keyword(ckpt_path: str) -> bool:
    """Whether a checkpoint is not named by a file: Lightning's words, and addresses."""
    return ckpt_path in ("best", "last", "hpc", "registry") or ckpt_path.startswith("registry:") or "://" in ckpt_path


_OPTIONS: dict[str, Any] = {
    "trainer_class": CompressingTrainer,
    "save_config_callback": SaveConfigBesideLogs,
    "save_config_kwargs": {"overwrite": True},  # resuming a named version writes into the same folder
    "seed_everything_default": 0,  # a run is reproducible even if its configuration has no seed
    "parser_kwargs": {"prog": COMMAND},
}
"""Options of Lightning's command line."""


def run_lightning_verb(words: Sequence[str], *, json_to: Path | None = None, debug: bool = False) -> int:
    """Run one of Lightning's verbs or ours.

    Args:
        words: The arguments, from the verb on.
        json_to: File for the result, or None.
        debug: Whether to raise errors instead of printing them.

    Returns:
        The exit code.

    Raises:
        SystemExit: On ``--print_config``, on help, and for arguments that cannot be parsed.
        Exception: An error in the user's code, or any error with ``debug``.
    """
    stages: list[Stage] = ["parsing"]
    Parser.debug = debug
    try:
        with _without_noise():
            cli = SloppyCLI(words, stages, **_OPTIONS)
        return _finished(cli, json_to)
    except Exception as error:
        mistake = None if debug else told(error, stages[-1])
        if mistake is None:
            if debug:
                raise
            raise own_part(error) from None
        code, lines = mistake
        complain(lines, hint="Add --debug for the traceback.")
        return code
    finally:
        Parser.debug = False


def _finished(cli: SloppyCLI, json_to: Path | None) -> int:
    """Print and write the result of a verb that has run, and say whether it is one."""
    trainer = cli.trainer
    final, spectra = trainer.certified, trainer.spectra
    if trainer.is_global_zero:
        if spectra is not None:
            print_spectra(spectra)
        if trainer.compressed is not None:
            print_compressed(trainer.compressed)
        if json_to is not None:
            json_file.write(json_to, results.result_of(str(cli.subcommand), trainer))
    if final is not None and final.certificates is None:
        complain(["There is no certificate; the summary says why."], hint="See docs/certificates.md.")
        return FAILED
    return FAILED if spectra is not None and spectra.failed else OK


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Without warnings that the user of the command line can do nothing about."""
    with warnings.catch_warnings():
        # The bundled data are in memory, where more worker processes would only add cost.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The user cannot fix the calls of Lightning to deprecated parts of torch and jsonargparse.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
        yield


def help_of(verb: str, topic: str) -> tuple[list[str], str | None]:
    """Help about a topic: the Trainer, or a class.

    Args:
        verb: The verb.
        topic: "trainer", or the name of a model, a data module, a callback or a logger.

    Returns:
        Arguments with which the parser prints the help, or the text itself.

    Raises:
        SystemExit: For an unknown topic.
    """
    if topic == "trainer":
        return [], _trainer_page(verb)
    kinds = {
        "--model.help": LightningModule,
        "--data.help": LightningDataModule,
        "--trainer.callbacks.help": Callback,
        "--trainer.logger.help": Logger,
    }
    short = topic.rpartition(".")[2]
    for option, kind in kinds.items():
        if short in class_names(kind):
            return [verb, f"{option}={topic}"], None
    known = nearest(short, [name for kind in kinds.values() for name in class_names(kind)])
    said = [f"There is no help about {topic}.", *([f"Did you mean {known}?"] if known else [])]
    complain(said, verb)
    sys.exit(WRONG_INPUT)


def _trainer_page(verb: str) -> str:
    """The arguments of Lightning's Trainer, as the parser describes them."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit), _without_noise():
        SloppyCLI([verb, "--help"], [], **_OPTIONS)
    blocks = page.getvalue().split("\n\n")
    return "\n\n".join(block for block in blocks if "--trainer" in block and not block.startswith("usage")) + "\n"
