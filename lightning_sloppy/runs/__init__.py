"""The record of one fit: what its instruments measured, and the facts that card, picture and report need beside it."""

from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts

__all__ = [
    "InstrumentRun",
    "Run",
    "RunFacts",
]
