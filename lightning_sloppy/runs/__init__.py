"""The record of one fit: what its instruments measured, and facts about the training."""

from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from lightning_sloppy.runs.run_file import load_run

__all__ = [
    "InstrumentRun",
    "Run",
    "RunFacts",
    "load_run",
]
