"""An instrument of a user's own, and the event file that it writes."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sloppy import Estimate, Instrument, Quantity


class Norms(Instrument):
    """Norms of the weights, with everything that can go wrong on request."""

    quantities = (
        Quantity("length", "Norm of the weights.", unit="metres", chart="Length", headline=True),
        Quantity("gradient", "Norm of the gradient.", estimated=True),
    )
    returned: object = None

    def measure(self, trainer, pl_module, probe):
        if self.returned is not None:
            return self.returned
        length = sum(float(p.detach().square().sum()) for p in pl_module.parameters()) ** 0.5
        return {"length": length, "gradient": Estimate(float(probe.gradient().norm()), 0.25, 0.5)}


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
