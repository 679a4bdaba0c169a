"""The command line: Lightning's own ``fit --config ...`` with our names known, ``certify``, and ``inspect``."""

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

DESCRIPTION = """Fit a Lightning module while its spectra, effective dimensions and a PAC-Bayes bound are measured:
any LightningModule and LightningDataModule, by class path; the classes of this package also by their bare name.
"lightning-sloppy inspect PATH" looks at a table before any model."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes them from the shell.

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
        """With the verbs of this package."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """Lightning's own, and ours."""
            return {**LightningCLI.subcommands(), "certify": {"model", "datamodule"}}

    class SaveConfigBesideLogs(SaveConfigCallback):
        """Saves the configuration in the run's folder; without a logger there is none, and nothing is written.

        Otherwise it would land in the working folder, over a config.yaml of the user's.
        """

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            """Save once, when there is a run's folder."""
            if trainer.loggers:
                super().setup(trainer, pl_module, stage)

    with warnings.catch_warnings():
        # The bundled data lie in memory, where more worker processes only cost.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # What Lightning still calls in torch and jsonargparse is not the user's to mend.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
        try:
            cli = CLI(
                trainer_class=CertifyingTrainer,
                args=None if args is None else list(args),
                save_config_callback=SaveConfigBesideLogs,
                save_config_kwargs={"overwrite": True},  # resuming a named version writes into the same folder
                seed_everything_default=0,  # a run can be repeated even when its configuration names no seed
                parser_kwargs={"prog": "lightning-sloppy", "description": DESCRIPTION},
            )
            final = getattr(getattr(cli, "trainer", None), "certified", None)
            if final is not None and final.certificates is None:
                sys.exit("error: There is no certificate; the summary says why.")
        except (SloppyError, ValueError) as error:
            # One sentence that says what to do is worth more than a traceback above it. The parser buries an error of
            # ours among those of all types that an argument might have had, and names it as the cause.
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
