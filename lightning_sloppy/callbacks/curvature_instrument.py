"""Base class of instruments that need a curvature scale, which is constant in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import UninitializedParameter

from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.instrument import Instrument
from lightning_sloppy.curvature.parameters import ParameterLayout, Patterns
from lightning_sloppy.errors import ConfigurationError, Note
from lightning_sloppy.evaluation.batches import BatchSize
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.measures.effective_dimension import curvature_scale, effective_dimension, eigenvalue_count
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossArgument
from lightning_sloppy.probing.probe import MeasureOn
from lightning_sloppy.probing.schedule import Schedule
from lightning_sloppy.records import Estimate, Spectrum

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def refuse_unmatched(module: LightningModule, parameters: Patterns) -> None:
    """Refuse patterns that match no parameter, if the layers exist already.

    Raises:
        ConfigurationError: With the existing names.
    """
    known = list(module.parameters())
    lazy = any(isinstance(parameter, UninitializedParameter) for parameter in known)
    if parameters is not None and known and not lazy:
        ParameterLayout.of(module, parameters)


@dataclass(frozen=True)
class Scale:
    """Prior precision ``epsilon`` and ``z = epsilon / (2 (n - 1))``."""

    epsilon: float
    z: float

    def estimates(self) -> dict[str, Estimate]:
        """Both as named numbers, because an effective dimension depends on its scale."""
        return {"epsilon": Estimate(self.epsilon), "z": Estimate(self.z)}

    def dimensions(self, spectrum: Spectrum) -> dict[str, Estimate]:
        """The effective dimension and the count at the scale, with the band at z/10 and 10 z."""
        name = "effective_dimension_at_prior"
        return {
            name: effective_dimension(spectrum, self.z),
            f"{name}_fine": effective_dimension(spectrum, self.z / 10),
            f"{name}_coarse": effective_dimension(spectrum, self.z * 10),
            "eigenvalue_count": eigenvalue_count(spectrum, self.z),
        }


def check_epsilon(epsilon: float | None) -> None:
    """Check a prior precision.

    Raises:
        ConfigurationError: When it is not positive.
    """
    if epsilon is not None and not epsilon > 0:
        raise ConfigurationError(f"epsilon={epsilon} is not positive; pass a positive prior precision, or None.")


class CurvatureInstrument(Instrument):
    """An instrument whose numbers need a curvature scale.

    Args:
        parameters: Shell-style patterns of parameter names: the block of these parameters. None: all.
        epsilon: Prior precision. None: ``p / ||w0||^2`` of all initial weights, a prior as wide as they are.
        num_samples: Number of probe samples.
        schedule: When to measure.
        loss_fn: The user's loss, or None.
        measure_on: Which samples are the probe samples.
        batch_size: The user's function that returns the number of samples in a batch, or None.
        mode: Mode of the module.
        name: Name in the tags.
        seed: Seed of the probe samples.
        strict: Raise errors of measurements.
    """

    writes_nothing = True

    epsilon: float | None

    def __init__(
        self,
        *,
        parameters: Patterns,
        epsilon: float | None,
        num_samples: int,
        schedule: Schedule | None,
        loss_fn: LossArgument | None,
        measure_on: MeasureOn | None,
        batch_size: BatchSize | None,
        mode: Mode | None,
        name: str | None,
        seed: int | None,
        strict: bool | None,
    ) -> None:
        super().__init__(
            num_samples=num_samples,
            schedule=schedule,
            loss_fn=loss_fn,
            measure_on=measure_on,
            batch_size=batch_size,
            mode=mode,
            name=name,
            seed=seed,
            strict=strict,
        )
        check_epsilon(epsilon)
        self._settle(epsilon=(epsilon, None))
        self.parameters = parameters if isinstance(parameters, str | None) else list(parameters)
        self._kept_epsilon: float | None = None

    def differences(self) -> dict[str, Any]:
        """The parameters, unless all are measured."""
        return {} if self.parameters is None else {"parameters": self.parameters}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse patterns that match nothing, if the layers exist already."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_unmatched(pl_module, self.parameters)

    def scale(self, trainer: Trainer, context: FitContext) -> tuple[Scale | None, str]:
        """The scale of this run, or None and a sentence that says what to pass."""
        if context.origin.fresh and not self.measurements:
            self._kept_epsilon = None  # a new run; a run that continues with trained weights keeps its scale
        epsilon = self.epsilon or self._kept_epsilon or context.origin.prior_precision()
        n = context.samples.train_size(trainer)
        if epsilon is None:
            return None, "All initial weights are zero, so they determine no scale; pass epsilon=."
        if n is None:
            return None, Note(
                "The number of training samples is unknown (several loaders, or an iterable data set without "
                "__len__), so there is no scale z = epsilon / (2 (n - 1)) and no effective dimension at that scale; "
                "give the data set a __len__.",
                cause="samples" if any("samples" in peer.warned for peer in peers(trainer)) else "",
                short="there is no effective dimension at the scale of the prior",
            )
        if n < 2:
            return None, "There is no effective dimension for a single training sample; train on more samples."
        self._kept_epsilon = epsilon
        return Scale(epsilon, curvature_scale(epsilon, n)), ""

    def settings(self) -> dict[str, Any]:
        """Also the scale that was passed, and the parameters that are measured."""
        return {**super().settings(), "epsilon": self.epsilon, "parameters": self.parameters}

    def state_dict(self) -> dict[str, Any]:
        """Also the prior precision of the run, so that a resumed curve keeps its scale."""
        kept = {} if self._kept_epsilon is None else {"epsilon": self._kept_epsilon}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scale of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        self._kept_epsilon = state_dict.get("epsilon")
