"""The base class of callbacks that measure on probe samples: declare quantities, write ``measure``."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from torch import Tensor

from lightning_sloppy.callbacks.periodic import PeriodicCallback
from lightning_sloppy.curvature.arguments import one_of
from lightning_sloppy.curvature.micro_batches import divided
from lightning_sloppy.curvature.partition import samples_of_rank
from lightning_sloppy.errors import ConfigurationError, Note
from lightning_sloppy.evaluation.batches import Batch, BatchSize, checked_batch_size, map_batch, rows_in
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.preserve import Mode, parameters_restored
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossArgument, LossChoice, checked_argument, seconds_of_a_gradient
from lightning_sloppy.probing.not_finite import what_is_not_finite
from lightning_sloppy.probing.probe import MeasureOn, Probe
from lightning_sloppy.probing.schedule import MeasurementSize, Schedule
from lightning_sloppy.records import Cost, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def check_measure_on(measure_on: str | None) -> None:
    """Check the choice of samples.

    Raises:
        ConfigurationError: For an unknown one.
    """
    if measure_on is not None and measure_on not in get_args(MeasureOn):
        raise ConfigurationError(
            f"measure_on={measure_on!r} is unknown; choose one of {', '.join(get_args(MeasureOn))}."
        )


def check_mode(mode: str | None) -> None:
    """Check the mode.

    Raises:
        ConfigurationError: For an unknown one.
    """
    if mode is not None:
        one_of("mode", mode, Mode)


class Instrument(PeriodicCallback):
    """Base class of callbacks that measure on probe samples: declare ``quantities``, write ``measure``.

    It measures at train start, at the steps of the schedule, and at the end of the fit. It provides tags, logging,
    monitors, charts, costs, the closing summary, gaps when a measurement fails, the limit on the cost, and resuming.

    Args:
        num_samples: Number of probe samples N, drawn once from the training data.
        schedule: When to measure, and the limit on the cost of all measuring. None: after every epoch.
        loss_fn: Mean-reduced loss of ``(outputs, targets)``. None: found from the module and compared with the first
            loss of the training. "training_step": the loss that ``training_step`` returns.
        measure_on: "fixed_samples": the same samples at every measurement, so that curves change with the network only;
            if samples cannot be read by index (iterable data, several loaders), the first batches of the training.
            "current_batch": the last training batch.
        batch_size: Function that returns the number of samples in a batch of the loader. None: found from its tensors
            and from the outputs of the module.
        mode: "eval", or "train" with the flags of the fit and a fixed random stream. None: "eval".
        name: Name of the instrument in its tags. None: the class name, followed by all settings that are not defaults.
        seed: Seed of the probe samples.
        strict: Raise errors of measurements instead of warning.

    Attributes:
        writes_nothing: Whether ``measure`` never changes weights or batches in place. By default it may: it gets
            copies of the batches, and the weights are restored, at the cost of a copy of the weights. The instruments
            of the package need no copy.

    Raises:
        ConfigurationError: For arguments out of range.

    Example:
        >>> from lightning_sloppy import Quantity
        >>> class WeightNorm(Instrument):
        ...     quantities = (Quantity("length", "Euclidean norm of all trainable weights.", headline=True),)
        ...
        ...     def measure(self, trainer, pl_module, probe):
        ...         squares = [p.detach().square().sum() for p in pl_module.parameters() if p.requires_grad]
        ...         return {"length": float(sum(squares)) ** 0.5}
        >>> WeightNorm().name
        'weight_norm'
    """

    writes_nothing: ClassVar[bool] = False

    loss_fn: LossArgument | None
    measure_on: MeasureOn

    def __init__(
        self,
        *,
        num_samples: int = 1024,
        schedule: Schedule | None = None,
        loss_fn: LossArgument | None = None,
        measure_on: MeasureOn | None = None,
        batch_size: BatchSize | None = None,
        mode: Mode | None = None,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ConfigurationError(
                f"{type(self).__name__} got num_samples={num_samples!r}; pass at least 1 probe sample."
            )
        self.num_samples = num_samples
        super().__init__(size=self.full_size(), schedule=schedule, name=name, seed=seed, strict=strict)
        checked_argument(loss_fn)
        check_measure_on(measure_on)
        checked_batch_size(batch_size)
        check_mode(mode)
        self._settle(loss_fn=(loss_fn, None), measure_on=(measure_on, "fixed_samples"))
        self._settle(batch_size=(batch_size, None), mode=(mode, "eval"))

    @abstractmethod
    def measure(
        self, trainer: Trainer, pl_module: LightningModule, probe: Probe
    ) -> Mapping[str, Estimate | float] | Measurement:
        """Take one measurement.

        The module is in eval mode and may be used freely: changes to its weights, buffers, modes and attributes are
        undone afterwards. Under DDP this is called on every rank with the same samples.

        Args:
            trainer: The running Trainer.
            pl_module: The module, unwrapped.
            probe: The samples and the loss.

        Returns:
            Values by quantity name, where an estimated value is an :class:`~lightning_sloppy.Estimate` with its
            errors; or a complete :class:`~lightning_sloppy.Measurement`, for an instrument with a spectrum.
        """

    def full_size(self) -> MeasurementSize:
        """The size of a measurement that is not limited by its cost."""
        return MeasurementSize(self.num_samples)

    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """Approximate cost of a measurement, in gradients of the mean loss over the probe samples; by default 10."""
        return 10.0

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Read the probe samples, measure, and fill in the record."""
        probe = self.probe(trainer, context, step)
        with progress(trainer, f"{self._heading()}: measuring on {probe.num_samples:,} samples") as bar:
            probe = dataclasses.replace(probe, advance=bar.advance)
            if self.writes_nothing:
                found = self.measure(trainer, pl_module, probe)
            else:
                probe = dataclasses.replace(probe, batches=[map_batch(Tensor.clone, each) for each in probe.batches])
                with parameters_restored(pl_module):
                    found = self.measure(trainer, pl_module, probe)
        if isinstance(found, Measurement):
            return found
        if not isinstance(found, Mapping):
            raise ConfigurationError(
                f"{type(self).__name__}.measure returned {type(found).__name__}; return a mapping of quantity names to "
                "values, or a Measurement."
            )
        return self.measurement(trainer, probe, {name: self._estimate(name, value) for name, value in found.items()})

    def _estimate(self, name: str, value: Any) -> Estimate:
        if isinstance(value, Estimate):
            return value
        try:
            return Estimate(float(value.detach() if isinstance(value, Tensor) else value))
        except (TypeError, ValueError, RuntimeError) as error:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ConfigurationError(
                f"{type(self).__name__}.measure returned {found} for {name!r}; return a number, or an Estimate for a "
                "value with an error."
            ) from error

    def measurement(
        self,
        trainer: Trainer,
        probe: Probe,
        estimates: Mapping[str, Estimate],
        *,
        spectrum: Spectrum | None = None,
        cost: Cost | None = None,
        notes: tuple[str, ...] = (),
        companions: Mapping[str, Spectrum] | None = None,
    ) -> Measurement:
        """The record of a measurement, with step, epoch, samples and data type filled in."""
        known = Cost() if spectrum is None else spectrum.cost
        return Measurement(
            step=probe.step,
            epoch=trainer.current_epoch,
            group=self.name,
            spectrum=spectrum,
            estimates=estimates,
            cost=known if cost is None else cost,
            status=_status(estimates) if spectrum is None else spectrum.status,
            num_samples=probe.num_samples if spectrum is None else spectrum.num_samples,
            mode=self.mode,
            precision=str(probe.dtype).removeprefix("torch."),
            notes=notes,
            companions=companions or {},
        )

    def status_notes(self, probe: Probe, objective: Objective, batches: list[Batch], spectrum: Spectrum) -> list[str]:
        """Why a spectrum has no values, as a sentence with its cause; nothing if it has some."""
        if spectrum.status.ok:
            return []
        what = f"{self._heading()} at step {probe.step}"
        if spectrum.status is Status.NON_FINITE:
            return [what_is_not_finite(objective, batches, what=what)]
        memory = spectrum.status is Status.OUT_OF_MEMORY
        cause = "memory" if memory else f"error: {spectrum.status.name}"
        return [Note(f"{what}: {spectrum.status.value}", cause=cause)]

    def probe(self, trainer: Trainer, context: FitContext, step: int) -> Probe:
        """The loss of the fit, and the samples to measure on."""
        plain = Objective(context.module, None)
        batches = context.samples.probe(
            trainer,
            self.size.num_samples,
            self.seed,
            current_batch=self.measure_on == "current_batch",
            batch_size=self.batch_size,
            mode=self.mode,
        )
        return Probe(
            module=context.module,
            batches=plain.prepare(batches),
            step=step,
            seed=self.seed,
            dtype=plain.dtype,
            choose=partial(self._chosen, trainer, context),
            context=context,
        )

    def _chosen(self, trainer: Trainer, context: FitContext) -> LossChoice:
        """The loss of the fit; in train mode every forward uses the same random stream."""
        choice = context.losses.choice(trainer, self.loss_fn, self.batch_size, self.mode)
        if self.mode == "eval":
            return choice
        return dataclasses.replace(choice, objective=choice.objective.seeded(self.seed))

    def partition(self, context: FitContext, probe: Probe) -> tuple[LossChoice, list[Batch]]:
        """This rank's part of the probe samples, and the loss that is summed over the ranks; with one process, all.

        A loss that compares the samples of a batch changes with the size of the batch, so the batches keep theirs.
        """
        size = context.samples.training_batch if probe.choice.batchwise and self.measure_on == "fixed_samples" else None
        batches = probe.batches
        if size is not None and all(rows_in(batch).divisible for batch in batches):
            batches = divided(batches, size)
        mine, _ = samples_of_rank(context.ranks, probe.choice.objective, batches)
        objective = probe.choice.objective.over(context.ranks)
        return dataclasses.replace(probe.choice, objective=objective), mine

    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Seconds of one gradient of the mean loss over the probe samples."""
        return seconds_of_a_gradient(*self.partition(context, self.probe(trainer, context, 0)))

    def has_samples(self, trainer: Trainer, context: FitContext) -> bool:
        """Whether the samples to measure on are available."""
        fixed = self.measure_on == "fixed_samples"
        if fixed and context.samples.indexable(trainer):
            return True
        return context.samples.streamed.num_samples >= (context.samples.own(self.size.num_samples) if fixed else 1)

    def wants_batch(self, trainer: Trainer) -> bool:
        """Whether the next batch will be measured on."""
        return self._waiting or (self.measure_on == "current_batch" and self.due(trainer))

    @property
    def needs_loss(self) -> bool:
        """Whether samples of the next batch will be measured on with a loss that is found from the module."""
        return self._waiting and self.loss_fn is None

    def settings(self) -> dict[str, Any]:
        """Also the choice of samples."""
        return {**super().settings(), "measure_on": self.measure_on, "mode": self.mode}


def _status(estimates: Mapping[str, Estimate]) -> Status:
    """Status of values without a spectrum: exact ones have no errors."""
    return Status.CONVERGED if any(each.total_error for each in estimates.values()) else Status.EXACT
