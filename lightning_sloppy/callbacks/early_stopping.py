"""Stop the training when the effective dimension has reached a plateau."""

from __future__ import annotations

import re
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber, MeasuringCallback
from lightning_sloppy.callbacks.periodic import PeriodicCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.plateau import PlateauDetector, Verdict
from lightning_sloppy.records import Measurement

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

MONITOR = re.compile(r"sloppy_(?P<name>[a-z0-9_]+)/(?P<quantity>effective_dimension(?:_at_prior)?)")
DEFAULT = "sloppy_fisher/effective_dimension_at_prior"


class StoppingReason(str, Enum):
    """Why the training was stopped, or why not."""

    NOT_STOPPED = "not_stopped"
    PLATEAU = "plateau"
    UNDETERMINED = "undetermined"


class EffectiveDimensionEarlyStopping(MeasurementSubscriber):
    """Stop when the effective dimension is flat at three curvature scales.

    Flat means: over the last ``patience + 1`` *measurements* (not epochs) ``(max - min) / mean`` plus twice the
    relative standard error is within ``rel_tol`` at z/10, z and 10 z, with z the scale of the prior or a thousandth of
    the trace. At z alone the rule would fire at the curve's
    maximum, while the training error still halves. When twice the standard error alone exceeds ``rel_tol`` the
    verdict is "undetermined", said once, and training goes on.

    Args:
        monitor: "sloppy_fisher/effective_dimension_at_prior" (exact on the probe, cheap), or an effective dimension of
            another instrument with values at three scales, such as "sloppy_jacobian/effective_dimension"; the
            instrument must be in the same Trainer.
        patience: Measurements without change that make a plateau.
        rel_tol: Relative change that counts as none.
        warmup: First measurements that are ignored.
        verbose: Say why the training was stopped.

    Raises:
        ConfigurationError: For an unknown monitor, numbers out of range, or a monitor that nobody measures.

    Example:
        >>> EffectiveDimensionEarlyStopping(patience=3).stopping_reason.value
        'not_stopped'
    """

    def __init__(
        self,
        monitor: str = DEFAULT,
        patience: int = 5,
        rel_tol: float = 0.02,
        warmup: int = 3,
        *,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        match = MONITOR.fullmatch(monitor)
        if match is None:
            raise ConfigurationError(
                f"monitor={monitor!r} has no plateau rule; choose {DEFAULT}, or an effective dimension of another "
                "instrument. For other tags use Lightning's EarlyStopping."
            )
        self._instrument, quantity = match["name"], match["quantity"]
        self._scales = (f"{quantity}_fine", quantity, f"{quantity}_coarse")
        self.monitor = monitor
        self.patience = patience
        self.rel_tol = rel_tol
        self.warmup = warmup
        self.verbose = verbose
        self.detector = PlateauDetector(patience=patience, rel_tol=rel_tol, warmup=warmup)
        self.stopping_reason = StoppingReason.NOT_STOPPED
        self.stopped_step: int | None = None
        self.verdict: Verdict | None = None
        self._dim: int | None = None
        self._judged_at: int | None = None
        self._said_blind = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that somebody measures what is monitored."""
        if stage != "fit":
            return
        family = [peer for peer in peers(trainer) if isinstance(peer, MeasuringCallback)]
        often = [peer for peer in family if not isinstance(peer, InputSpectrum)]  # a value measured once has no plateau
        able = [peer.name for peer in often if set(self._scales) <= {quantity.name for quantity in peer.quantities}]
        if self._instrument not in able:
            usual = {"hessian": "HessianSpectrum", "jacobian": "JacobianSpectrum"}.get(
                self._instrument, "FisherSpectrum"
            )
            others = [f"monitor='sloppy_{name}/{self._scales[1]}'" for name in able]
            remedy = f"add {usual}() to the Trainer's callbacks"
            if others:
                remedy = f"use EffectiveDimensionEarlyStopping({' or '.join(others)})"
            raise ConfigurationError(
                f"EffectiveDimensionEarlyStopping monitors {self.monitor}, but nothing measures it again and again; "
                f"{remedy}."
            )
        self.detector = PlateauDetector(patience=self.patience, rel_tol=self.rel_tol, warmup=self.warmup)
        self.stopping_reason = StoppingReason.NOT_STOPPED
        self.stopped_step = None
        self.verdict = None
        self._dim = None
        self._judged_at = None
        self._said_blind = False

    def listens_to(self, callback: MeasuringCallback, trainer: Trainer) -> bool:
        """The callback that publishes the monitor."""
        return callback.name == self._instrument

    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, measurement: Measurement) -> None:
        """Judge one more measurement; every rank stops when one of them would.

        A resumed run first measures the weights that the run before it has judged already: that is no new measurement.
        """
        done = next(
            (p.measured_at for p in peers(trainer) if isinstance(p, PeriodicCallback) and self.listens_to(p, trainer)),
            None,
        )
        if done is not None and done == self._judged_at:
            return
        self._judged_at = done
        estimates = [measurement.estimates.get(name) for name in self._scales]
        known = [estimate for estimate in estimates if estimate is not None and estimate.status.ok]
        stop = False
        if len(known) == len(self._scales) and measurement.spectrum is not None:
            if self._dim not in (None, measurement.spectrum.dim):
                self.detector.restart()
            self._dim = measurement.spectrum.dim
            self.verdict = self.detector.update(known)
            stop = self.verdict is Verdict.PLATEAU
        elif measurement.status.ok and not self._said_blind:
            self._said_blind = True
            missing = [
                name for name in self._scales if (e := measurement.estimates.get(name)) is None or not e.status.ok
            ]
            rank_zero_warn(
                f"Early stopping on {self.monitor} cannot judge step {measurement.step:,}: {', '.join(missing)} could "
                f"not be measured. {' '.join(measurement.notes)} While that lasts the training is not stopped."
            )
        self._say_undetermined()
        if trainer.fast_dev_run or self.stopping_reason is StoppingReason.PLATEAU:
            return
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True
            self.stopping_reason = StoppingReason.PLATEAU
            self.stopped_step = measurement.step
            if self.verbose:
                rank_zero_info(self._sentence())

    def _say_undetermined(self) -> None:
        if self.verdict is Verdict.UNDETERMINED and self.stopping_reason is StoppingReason.NOT_STOPPED:
            self.stopping_reason = StoppingReason.UNDETERMINED
            rank_zero_info(f"Early stopping on {self.monitor}: {Verdict.UNDETERMINED.value}; raise probes or rel_tol.")

    def _sentence(self) -> str:
        if self.stopping_reason is StoppingReason.PLATEAU:
            return (
                f"The plateau rule asked to stop at step {self.stopped_step:,}: {self.monitor} changed by at most "
                f"{self.rel_tol:.1%} over {self.patience + 1} measurements at three scales."
            )
        state = "nothing was measured" if self.verdict is None else self.verdict.value
        return f"The plateau rule did not stop the training: {state}."

    def summary_sentences(self) -> list[str]:
        """Why the training was stopped, or not."""
        return [self._sentence()]

    def settings(self) -> dict[str, Any]:
        """The rule."""
        rule = {"patience": self.patience, "rel_tol": self.rel_tol, "warmup": self.warmup}
        return {"monitor": self.monitor, **rule}

    def state_dict(self) -> dict[str, Any]:
        """Also the window and the verdict, as plain values."""
        return {
            **super().state_dict(),
            "seen": self.detector.seen,
            "window": asdict(self.detector)["window"],
            "stopping_reason": self.stopping_reason.value,
            "stopped_step": self.stopped_step,
            "judged_at": self._judged_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the window of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self.detector.seen = int(state_dict["seen"])
        self.detector.window = state_dict["window"]
        self._judged_at = state_dict.get("judged_at")
        # A checkpoint of a stopped run may be trained further: then the rule judges anew, with the window it has.
