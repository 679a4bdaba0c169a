"""The record of one fit: what its instruments measured, and facts about the training."""

from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

__all__ = [
    "InstrumentRun",
    "Run",
    "RunFacts",
]
