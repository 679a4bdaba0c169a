"""Runs of the command line in the process of the test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_sloppy.cli import main

TINY = [
    "--model=MLPClassifier",
    "--model.widths=[64,8,10]",
    "--data=DigitsDataModule",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
"""A run of three steps on the digits."""


def exit_code(arguments: Sequence[str]) -> int:
    """The exit code of the command."""
    code: object = None
    try:
        main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    assert code is None or isinstance(code, int)
    return code or 0


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines of a command that ends with exit code 2; they are at most five."""
    code = exit_code(list(map(str, arguments)))
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = [line for line in captured.err.splitlines() if line]
    start = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start <= 5
    assert not any("Traceback" in line for line in lines[start:])
    return lines[start:]
