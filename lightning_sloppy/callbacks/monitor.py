"""Everything in one callback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_sloppy.bounds.plan import LearningPlan
from lightning_sloppy.callbacks.base import MeasuringCallback, SloppyCallback
from lightning_sloppy.callbacks.early_stopping import EffectiveDimensionEarlyStopping
from lightning_sloppy.callbacks.final_certificate import FinalCertificate
from lightning_sloppy.callbacks.fisher_spectrum import FisherSpectrum
from lightning_sloppy.callbacks.hessian_spectrum import HessianSpectrum
from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
from lightning_sloppy.callbacks.pac_bayes import PACBayesBound
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.inputs.spectrum import InputKind
from lightning_sloppy.probing.context import ProbeKind
from lightning_sloppy.probing.priors import Prior
from lightning_sloppy.records import Measurement

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@dataclass(frozen=True)
class InputOptions:
    """Options of the input spectrum.

    Args:
        kind: Headline matrix.
        max_samples: Samples read at most.
    """

    kind: InputKind = "correlation"
    max_samples: int = 50_000


@dataclass(frozen=True)
class HessianOptions:
    """Options of the Hessian spectrum.

    Args:
        k: Eigenpairs of largest magnitude.
        probes: Rademacher probe vectors, at least 2.
        num_samples: Probe samples N.
        steps: Greatest depth of the quadrature.
        tol: Relative residual; null for the default of the data type.
    """

    k: int = 10
    probes: int = 4
    num_samples: int = 1024
    steps: int = 100
    tol: float | None = None


@dataclass(frozen=True)
class FisherOptions:
    """Options of the Fisher spectrum.

    Args:
        kind: Which Fisher information.
        num_samples: Probe samples N.
    """

    kind: Literal["empirical", "sampled", "exact"] = "empirical"
    num_samples: int = 1024


@dataclass(frozen=True)
class BoundOptions:
    """Options of the PAC-Bayes bound.

    Args:
        delta: Failure probability of all bounds of the run.
        prior: Your statement about the weights at the start.
        risk_samples: Training examples that judge the drawn networks.
    """

    delta: float = 0.05
    prior: Literal["initialisation"] = "initialisation"
    risk_samples: int = 10_000


@dataclass(frozen=True)
class CertificateOptions:
    """Options of the final certificate; its delta is that of the bound.

    Args:
        prior: Where the prior comes from: "initialisation", "curvature" (there, on validation samples), or "split" with
            a PriorSplit.
        learning: How the posterior is optimised; null for the defaults.
        folder: Where networks and certificates go; null: ``certificate`` in the run's log folder.
    """

    prior: Prior = "initialisation"
    learning: LearningPlan | None = None
    folder: str | None = None


@dataclass(frozen=True)
class StoppingOptions:
    """Options of the early stopping.

    Args:
        monitor: Which effective dimension.
        patience: Measurements without change.
        rel_tol: Relative change that counts as none.
        warmup: First measurements that are ignored.
    """

    monitor: str = "sloppy_fisher/effective_dimension"
    patience: int = 5
    rel_tol: float = 0.02
    warmup: int = 3


def _check_options(given: dict[str, tuple[object, type]]) -> None:
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigurationError(
                f"SloppyMonitor got {name}={value!r}; pass {name}=lightning_sloppy.{kind.__name__}(...), or None to "
                "switch it off."
            )


class SloppyMonitor(SloppyCallback):
    """Input, Hessian and Fisher spectra, effective dimensions and a PAC-Bayes bound, in one line.

    It only watches: the trained weights are bitwise what they are without it. Each part has its options, and null
    switches it off.

    Args:
        input: Eigenspectrum of the training inputs at train start.
        hessian: Spectrum of the Hessian.
        fisher: Spectrum of the Fisher information.
        bound: PAC-Bayes bound at every Hessian measurement, without ``hessian`` at every Fisher measurement.
        certificate: Optimise and certify a posterior at the end of the fit; off by default, for it takes minutes.
        early_stopping: Stop on the plateau of the effective dimension; off by default.
        epsilon: Prior precision behind every effective dimension; null: p / ||w0||^2.
        objective: Mean-reduced loss of (outputs, targets); null: found from the module and checked.
        probe: "fixed": the same samples every time, so that curves show the network and not the draw; where samples
            cannot be read by index (iterable data, several loaders), the first batches of the training. "batch": the
            batch just trained on.
        every_n_epochs: Measure at the end of every so-manieth epoch; null: 1 where no other interval is given.
        every_n_steps: Measure behind every so-manieth effective batch.
        at_steps: Measure behind these effective batches, counted from 1.
        per_decade: Measure behind so many effective batches in every tenfold, evenly spaced in the logarithm.
        max_overhead: Limit of (seconds of measuring - grace_seconds) / (seconds of training without measuring), all
            callbacks of the fit together; measurements come less often where they would be over it, and where a
            whole run would have fewer than ten, each does less. Said once, and seen in ``sloppy_cost/share``. null: no
            limit.
        grace_seconds: Measuring that is free, so that short runs are measured as asked.
        seed: Of probe samples, probe vectors and draws.
        strict: Raise errors of measurements instead of warning.

    Raises:
        ConfigurationError: For options out of range.

    Example:
        >>> monitor = SloppyMonitor(bound=None)
        >>> [type(part).__name__ for part in monitor.parts]
        ['InputSpectrum', 'HessianSpectrum', 'FisherSpectrum']
    """

    def __init__(
        self,
        *,
        input: InputOptions | None = InputOptions(),
        hessian: HessianOptions | None = HessianOptions(),
        fisher: FisherOptions | None = FisherOptions(),
        bound: BoundOptions | None = BoundOptions(),
        certificate: CertificateOptions | None = None,
        early_stopping: StoppingOptions | None = None,
        epsilon: float | None = None,
        objective: Loss | None = None,
        probe: ProbeKind = "fixed",
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        at_steps: Sequence[int] = (),
        per_decade: int | None = None,
        max_overhead: float | None = 0.1,
        grace_seconds: float = 60.0,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__()
        _check_options(
            {
                "input": (input, InputOptions),
                "hessian": (hessian, HessianOptions),
                "fisher": (fisher, FisherOptions),
                "bound": (bound, BoundOptions),
                "certificate": (certificate, CertificateOptions),
                "early_stopping": (early_stopping, StoppingOptions),
            }
        )
        curvature: dict[str, Any] = {
            "epsilon": epsilon,
            "objective": objective,
            "probe": probe,
            "every_n_epochs": every_n_epochs,
            "every_n_steps": every_n_steps,
            "at_steps": at_steps,
            "per_decade": per_decade,
            "max_overhead": max_overhead,
            "grace_seconds": grace_seconds,
            "seed": seed,
            "strict": strict,
        }
        self._parts: dict[str, SloppyCallback] = {}
        if input is not None:
            self._parts["input"] = InputSpectrum(**asdict(input), seed=seed, strict=strict)
        if hessian is not None:
            self._parts["hessian"] = HessianSpectrum(**asdict(hessian), **curvature)
        if fisher is not None:
            self._parts["fisher"] = FisherSpectrum(**asdict(fisher), **curvature)
        if bound is not None and (hessian is not None or fisher is not None):
            self._parts["bound"] = PACBayesBound(**asdict(bound), seed=seed, strict=strict)
        if certificate is not None:
            shares: dict[str, Any] = {} if bound is None else {"delta": bound.delta}
            self._parts["certificate"] = FinalCertificate(
                **vars(certificate), **shares, objective=objective, seed=seed, strict=strict
            )
        if early_stopping is not None:
            self._parts["early_stopping"] = EffectiveDimensionEarlyStopping(**asdict(early_stopping))

    @property
    def parts(self) -> list[SloppyCallback]:
        """The callbacks inside, in the order in which they run."""
        return list(self._parts.values())

    @property
    def measurements(self) -> dict[str, list[Measurement]]:
        """For each part ("input", "hessian", "fisher", "bound") all measurements of this fit, in order."""
        return {name: part.measurements for name, part in self._parts.items() if isinstance(part, MeasuringCallback)}

    @property
    def latest(self) -> dict[str, Measurement | None]:
        """For each part the latest measurement that did not fail."""
        return {name: part.latest for name, part in self._parts.items() if isinstance(part, MeasuringCallback)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.on_train_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Pass on to the parts."""
        for part in self.parts:
            part.on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts that have one."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every part its state back; a part that is new in this run starts afresh."""
        for name, state in state_dict.items():
            if name in self._parts:
                self._parts[name].load_state_dict(state)
