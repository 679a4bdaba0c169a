"""Records of fits written by hand."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.runs.run import InstrumentRun, Run, RunFacts
from support.instruments import DECLARED

FACTS = RunFacts(
    module="Net", num_parameters=5018, epochs=10, steps=200, epoch_steps=20, end="ended", measuring_seconds=8.3,
    training_seconds=1.9, grace_seconds=60.0, max_overhead=0.1,
)  # fmt: skip


def event(group: str, estimates: dict[str, float | Estimate], **fields: object) -> Measurement:
    named = {name: each if isinstance(each, Estimate) else Estimate(each) for name, each in estimates.items()}
    settings = {"step": 199, "epoch": 9, "cost": Cost(), "status": Status.EXACT, **fields}
    return Measurement(group=group, spectrum=None, estimates=named, **settings)


def instrument(kind: str, *events: Measurement) -> InstrumentRun:
    return InstrumentRun(kind, DECLARED[kind], events)


def run_of(*instruments: InstrumentRun, facts: RunFacts = FACTS) -> Run:
    return Run({each.declaration.name: each for each in instruments}, facts)


def dimensions(values: Sequence[float], **beside: float) -> InstrumentRun:
    """One measurement before the first step and one after every epoch of 20 steps, as in a fit."""
    events = [
        event("jacobian", {"effective_dimension": each, "num_parameters": 5018, "num_samples": 128, **beside},
              step=max(20 * epoch - 1, 0), epoch=max(epoch - 1, 0))
        for epoch, each in enumerate(values)
    ]  # fmt: skip
    return instrument("jacobian", *events)
