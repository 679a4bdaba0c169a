"""Does measuring stay within max_overhead?"""

from __future__ import annotations

from typing import Any

import callback_overhead
import common

from lightning_sloppy import SloppyMonitor

LIMITS = (0.02, 0.05, 0.1)
GRACE = 1.0
STEPS = 5
"""Effective batches between rounds without a limit."""


def main() -> None:
    """One row for each network and limit."""
    options = common.arguments(__doc__, seconds=60)
    callback_overhead.quiet()
    rows = []
    for name in ("lora", "multi-label", "lstm"):
        warm, _ = callback_overhead.fit(name, options, None, 1)
        warm, _ = callback_overhead.fit(name, options, None, 1)
        epochs = max(round((2 if options.quick else options.seconds) / warm), 1)
        for limit in LIMITS:

            def make(objective: Any, limit: float = limit) -> SloppyMonitor:
                return SloppyMonitor(
                    loss_fn=objective,
                    every_n_steps=STEPS,
                    max_overhead=limit,
                    grace_seconds=GRACE,
                    bound=None,
                    input=None,
                )

            _, monitor = callback_overhead.fit(name, options, make, epochs)
            assert monitor is not None
            clock = monitor.parts[-1].state_dict()
            overhead = (clock["measuring_seconds"] - GRACE) / clock["training_seconds"]
            rows.append(
                {
                    "network": name,
                    "limit": limit,
                    "overhead": overhead,
                    "overhead / limit": overhead / limit,
                    "rounds of measurements": len(monitor.measurements["fisher"]),
                    "training, s": clock["training_seconds"],
                    "samples at the end": clock["size"]["num_samples"],
                }
            )
            print(rows[-1], flush=True)
            common.report("overhead_budget", __doc__, rows, remarks(), options)


def remarks() -> list[str]:
    """What the numbers mean."""
    return [
        f"Spectra every {STEPS} batches, within the limit. The overhead is (seconds of measuring - {GRACE:g}) / "
        "seconds of training. The first and the last round always happen, if necessary at the smallest size (128 "
        "samples, about a hundred products), so a short training cannot stay within a small limit.",
    ]


if __name__ == "__main__":
    main()
