"""The command line: Lightning's CLI with the classes of this package (``fit``), ``certify``, and ``inspect``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning_sloppy
from lightning_sloppy.errors import MissingExtraError, SloppyError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

DESCRIPTION = """Fit a Lightning module and measure its spectra, effective dimensions and a PAC-Bayes bound. Give any
LightningModule and LightningDataModule by class path, and the classes of this package also by name only.
"lightning-sloppy inspect PATH" looks at a table before any model."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name. None: those of the process.

    Raises:
        MissingExtraError: If jsonargparse is not installed.
        SystemExit: On ``--help``, ``--print_config``, arguments that cannot be parsed, and errors of this package.
    """
    if importlib.util.find_spec("jsonargparse") is None:
        raise MissingExtraError(
            "The command line needs jsonargparse, which is not installed: pip install 'lightning-sloppy[cli]'."
        )
    words = list(sys.argv[1:] if args is None else args)
    # As `python -m` does: modules in the working folder can be named in a configuration.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if words[:1] == ["inspect"]:
        if any(word.startswith("--data") for word in words):
            _know_names()
        from lightning_sloppy.inspect_command import run_inspect

        sys.exit(run_inspect(words[1:]))

    from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

    from lightning_sloppy.callbacks.certifying_trainer import CertifyingTrainer

    _know_names()

    class CLI(LightningCLI):
        """Lightning's CLI with the subcommands of this package."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """Lightning's subcommands, and ``certify``."""
            return {**LightningCLI.subcommands(), "certify": {"model", "datamodule"}}

    class SaveConfigBesideLogs(SaveConfigCallback):
        """Saves the configuration in the run's folder, or nowhere if there is no logger and thus no such folder.

        Otherwise it would overwrite a config.yaml of the user in the working folder.
        """

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            """Save once, if the run has a folder."""
            if trainer.loggers:
                super().setup(trainer, pl_module, stage)

    with warnings.catch_warnings():
        # The bundled data are in memory, where more worker processes would only add cost.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The user cannot fix the calls of Lightning to deprecated parts of torch and jsonargparse.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
        try:
            cli = CLI(
                trainer_class=CertifyingTrainer,
                args=None if args is None else list(args),
                save_config_callback=SaveConfigBesideLogs,
                save_config_kwargs={"overwrite": True},  # resuming a named version writes into the same folder
                seed_everything_default=0,  # a run is reproducible even if its configuration has no seed
                parser_kwargs={"prog": "lightning-sloppy", "description": DESCRIPTION},
            )
            final = getattr(getattr(cli, "trainer", None), "certified", None)
            if final is not None and final.certificates is None:
                sys.exit("error: There is no certificate; see the summary for the reason.")
        except (SloppyError, ValueError) as error:
            # Print the message without a traceback. The parser raises an error for all types that the argument may
            # have, with the error of this package as its cause.
            ours = _our_cause(error)
            if ours is None:
                raise
            sys.exit(f"error: {ours}")


def _know_names() -> None:
    """A class is found by its bare name only once its module is imported, and the public names are loaded lazily."""
    importlib.import_module("lightning_sloppy.demo")
    for name in dir(lightning_sloppy):
        getattr(lightning_sloppy, name)


def _our_cause(error: BaseException | None) -> SloppyError | None:
    while error is not None and not isinstance(error, SloppyError):
        error = error.__cause__
    return error
