"""Errors of validation samples by where the energy of their inputs lies, while a network trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sloppy.callbacks.base import peers
from lightning_sloppy.callbacks.input_columns import checked_names, column_names
from lightning_sloppy.callbacks.periodic import PeriodicCallback
from lightning_sloppy.callbacks.validation_quantities import QUANTITIES
from lightning_sloppy.callbacks.validation_reading import (
    Task,
    ValidationReader,
    find_task,
    read_training,
    validation_source,
)
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, BatchSize, checked_batch_size, private
from lightning_sloppy.evaluation.classifiers import Predict
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.metrics.energy_bins import EnergyBins
from lightning_sloppy.metrics.error_report import ErrorReport, added, error_report
from lightning_sloppy.metrics.predictions import checked_labels, differences
from lightning_sloppy.metrics.spectral_errors import SpectralErrors
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.loss_choice import LossArgument, checked_argument
from lightning_sloppy.probing.schedule import MeasurementSize, Schedule
from lightning_sloppy.records import Cost, Estimate, Measurement, Status
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.errors_in_words import report_in_words
from lightning_sloppy.reporting.errors_picture import errors_picture
from lightning_sloppy.reporting.picture_log import PictureLog
from lightning_sloppy.reporting.progress import progress
from lightning_sloppy.runs.run import Run

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.figure import Figure

FILE = "sloppy_errors.png"
"""Name of the picture in the folder of the run."""

FEWEST_TIMED = 256
"""Validation samples on which a forward is timed."""

SAME = 0.05
"""Allowed difference between the edges of two readings of one data set (random transforms), relative."""


class ValidationErrors(PeriodicCallback):
    """Track errors of validation samples by where the energy of their inputs lies in the training inputs' spectrum.

    It runs the network in eval mode on validation samples, which it reads by index; the metrics and the loader of the
    module are not used. A classifier is found from the loss, else pass ``predict``. Outputs with the shape of
    floating-point targets are a regression: its loss is the squared error in units of the variance of the training
    targets. See :class:`~lightning_sloppy.SpectralErrors` for the measures, the bins, the intervals, and where samples
    with missing inputs go.

    Args:
        num_samples: Validation samples at most, drawn once.
        bins: Quantile bins of each measure.
        max_samples: Training samples at most, drawn once, that give the spectrum and the edges of the bins.
        predict: Rule from outputs to labels: ``predict(outputs)`` returns labels (N,), or ``predict(outputs, targets)``
            booleans (N,), true for a mistake. null: found from the loss.
        feature_names: Names of the columns, one for each number of a sample. null: what the data set or the data module
            tells, else positions counted from 0.
        loss_fn: Mean-reduced loss of ``(outputs, targets)``, from which the classifier is found. null: found from the
            module and compared with the first loss of the training.
        batch_size: Function that returns the number of samples in a batch. null: found from its tensors and outputs.
        schedule: When to measure, and the limit on the cost of all measuring. null: after every epoch.
        name: Name in the tags ``sloppy_<name>/...``. null: "validation", followed by the number of bins unless it is 5.
        seed: Seed of the draws. null: that of the SloppyMonitor, if any, else 0.
        strict: Raise errors of measurements instead of warning. null: as in the SloppyMonitor, if any, else false.

    Attributes:
        latest_report: All bins and classes (:class:`~lightning_sloppy.metrics.error_report.ErrorReport`); None before
            the first measurement.
        feature_names: Names of the columns; None until they are known.

    Raises:
        ConfigurationError: For numbers out of range.

    Example:
        >>> ValidationErrors(bins=4).name
        'validation_4'
    """

    default_name = "validation"
    title = "Errors of validation samples"
    quantities = QUANTITIES
    cost_advice = "To reduce them, lower `num_samples`."

    loss_fn: LossArgument | None

    def __init__(
        self,
        *,
        num_samples: int = 10_000,
        bins: int = 5,
        max_samples: int = 20_000,
        predict: Predict | None = None,
        feature_names: Sequence[str] | None = None,
        loss_fn: LossArgument | None = None,
        batch_size: BatchSize | None = None,
        schedule: Schedule | None = None,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        for what, number, least in (
            ("num_samples", num_samples, 1),
            ("max_samples", max_samples, 2),
            ("bins", bins, 2),
        ):
            if not isinstance(number, int) or number < least:
                raise ConfigurationError(f"ValidationErrors got {what}={number!r}; pass at least {least}.")
        super().__init__(size=MeasurementSize(num_samples), schedule=schedule, name=name, seed=seed, strict=strict)
        checked_argument(loss_fn)
        checked_batch_size(batch_size)
        self._settle(loss_fn=(loss_fn, None), batch_size=(batch_size, None))
        self.num_samples, self.bins, self.max_samples = num_samples, bins, max_samples
        self.predict = predict
        self._given_names = checked_names(feature_names)
        self._earlier: Tensor | None = None
        self._forget_data()

    def _forget_data(self) -> None:
        """Forget what belongs to one fit."""
        self.latest_report: ErrorReport | None = None
        self.feature_names: tuple[str, ...] | None = None
        self._reader: ValidationReader | None = None
        self._task: tuple[Any, Task] | None = None
        self._metric: SpectralErrors | None = None
        self._log: PictureLog | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the samples of the last fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._forget_data()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the samples."""
        super().teardown(trainer, pl_module, stage)
        self._reader = self._log = None

    def differences(self) -> dict[str, Any]:
        """The number of bins, unless it is the default."""
        return {} if self.bins == 5 else {"bins": self.bins}

    def settings(self) -> dict[str, Any]:
        """Also the bins and what gives them."""
        return {**super().settings(), "bins": self.bins, "max_samples": self.max_samples}

    def state_dict(self) -> dict[str, Any]:
        """Also the edges of the bins: a resumed run reads the inputs again and warns if they have changed."""
        edges = {} if self._metric is None else {"edges": self._metric.bins.edges.cpu()}
        return {**super().state_dict(), **edges}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the edges of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        same = all(state_dict.get("settings", {}).get(name) == value for name, value in self._of_the_bins().items())
        self._earlier = state_dict.get("edges") if same else None

    def _of_the_bins(self) -> dict[str, Any]:
        return {name: self.settings()[name] for name in ("bins", "max_samples", "seed")}

    def cost_in_gradients(self, size: MeasurementSize) -> float:
        """One forward."""
        return 1.0

    def seconds_of_a_gradient(self, trainer: Trainer, context: FitContext) -> float:
        """Seconds of reading and of a forward over the validation samples, from some of them."""
        reader = ValidationReader(validation_source(trainer), self.batch_size)
        objective, timed = Objective(context.module, None), min(FEWEST_TIMED, len(reader.source))
        start = time.perf_counter()
        for _, batch in reader.batches(trainer, context, objective, timed, self.seed):
            objective.output_values(objective.copied_parameters(), private(batch)[0])
        trainer_internals.wait_for_device(trainer)
        return (time.perf_counter() - start) * min(self.size.num_samples, len(reader.source)) / timed

    def has_samples(self, trainer: Trainer, context: FitContext) -> bool:
        """Always: a measurement without samples says why."""
        return True

    def wants_batch(self, trainer: Trainer) -> bool:
        """Never: the samples are read by index."""
        return False

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Run the network on the validation samples; every rank has a part of them."""
        context.samples.source(trainer)  # without training samples by index there are no bins, whatever else is missing
        reader = self._opened(trainer)
        objective = self._objective(trainer, context)
        task = self._task_of(trainer, context, reader, objective)
        metric = self._emptied(trainer, context, task)
        count = min(self.size.num_samples, len(reader.source))
        with progress(trainer, f"{self._heading()}: measuring on {count:,} samples", total=count) as bar:
            for rows, batch in reader.batches(trainer, context, objective, count, self.seed):
                add_batch(metric, task, objective, rows, batch)
                bar.advance(len(rows))
        over_ranks = [metric.tallies] if context.ranks.count == 1 else gathered_over_ranks(metric.tallies)
        kind = "loss" if task.classifier is None else "error"
        self.latest_report = error_report(added(over_ranks), kind=kind, labelled=task.labelled)
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            group=self.name,
            spectrum=None,
            estimates={name: Estimate(value) for name, value in self.latest_report.numbers().items()},
            cost=Cost(),
            status=Status.EXACT,
            num_samples=self.latest_report.overall.count,
            precision=str(objective.dtype).removeprefix("torch."),
        )

    def _opened(self, trainer: Trainer) -> ValidationReader:
        if self._reader is None:
            self._reader = ValidationReader(validation_source(trainer), self.batch_size)
        return self._reader

    def _objective(self, trainer: Trainer, context: FitContext) -> Objective:
        """Gives outputs; its loss is needed only to find the classifier."""
        if self.predict is not None:
            return Objective(context.module, None)
        return context.losses.choice(trainer, self.loss_fn, self.batch_size).objective

    def _task_of(self, trainer: Trainer, context: FitContext, reader: ValidationReader, objective: Objective) -> Task:
        """What counts as an error; it is looked for again if the first step has shown that the loss is another one."""
        loss = objective.loss_fn
        if self._task is None or self._task[0] is not loss:
            self.latest_report = None
            task = find_task(trainer, context, reader.source, objective, self.predict)
            if self._task is not None and self._task[1] != task:
                self._metric = None
            self._task = loss, task
        return self._task[1]

    def _emptied(self, trainer: Trainer, context: FitContext, task: Task) -> SpectralErrors:
        """The metric without samples; made from the training inputs at the first call."""
        if self._metric is None:
            holders = [context.samples.source(trainer).loader.dataset, getattr(trainer, "datamodule", None)]
            named = partial(column_names, self._given_names, holders)
            # Wrong names are refused after the first chunk, not after all inputs were read.
            bins, targets, shape = read_training(
                trainer, context, bins=self.bins, max_samples=self.max_samples, seed=self.seed, task=task, seen=named
            )
            self.feature_names = named(shape)
            self._compare(trainer, bins)
            metric = SpectralErrors(bins, num_classes=task.num_classes, targets=targets, sync_on_compute=False)
            device = trainer_internals.root_device(trainer)
            self._metric = metric.to(device if device.type == "cuda" else "cpu")
        self._metric.reset()
        return self._metric

    def _compare(self, trainer: Trainer, bins: EnergyBins) -> None:
        """Warn if a resumed run has other training inputs than the previous run."""
        earlier, self._earlier = self._earlier, None
        if earlier is not None and not torch.allclose(earlier, bins.edges, rtol=SAME, atol=1e-6, equal_nan=True):
            self.warn_once(
                f"The bins of {self.name} differ from those of the run that wrote the checkpoint, so the curves "
                "continue with different training inputs; check the data set, its split and its transforms.",
                trainer=trainer,
            )

    def _report(
        self, trainer: Trainer, pl_module: LightningModule, context: FitContext | None, measurement: Measurement
    ) -> None:
        """Publish a measurement, and draw the picture after some of them."""
        super()._report(trainer, pl_module, context, measurement)
        if trainer.is_global_zero and self._draws(trainer) and measurement.status.ok:
            if self._log is None:
                self._log = PictureLog(
                    resumed=context is not None and context.began_at > 0,
                    prefix_of=trainer_internals.logger_prefix,
                    drawing=lambda _: self.errors_picture(),
                    tag=f"sloppy_{self.name}/picture",
                    file=FILE if self.name == self.default_name else f"sloppy_{self.name}.png",
                )
            seconds = self._log.measured(trainer, measurement.step, partial(Run, {}, self.facts), complete=True)
            if context is not None:
                context.clock.measuring_seconds += seconds

    def _draws(self, trainer: Trainer) -> bool:
        """Whether there is something to draw, and no callback of the fit prevents pictures."""
        return self.latest_report is not None and all(peer.picture for peer in peers(trainer))

    def after_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last picture."""
        super().after_training(trainer, pl_module)
        if self._log is not None and self._draws(trainer):
            step = self.measurements[-1].step
            self._log.draw(trainer, partial(Run, {}, self.facts), step=step, last=True)

    def errors_picture(self) -> Figure:
        """The picture of the latest measurement; a notebook shows it.

        Raises:
            ConfigurationError: Before the first measurement.
            MissingExtraError: Without matplotlib.
        """
        if self.latest_report is None or self.feature_names is None or self.latest is None:
            raise ConfigurationError("There is no picture before the first measurement; fit first.")
        return errors_picture(self.latest_report, self.feature_names, step=self.latest.step)

    def paragraphs(self) -> list[str]:
        """Errors of the latest measurement, of lowest and highest bins, and of the worst one."""
        event = phrases.last_reported(self.measurements)
        if event is None or self.latest_report is None or self.feature_names is None or self._metric is None:
            return [phrases.why_nothing(self.measurements)]
        found = self._metric.bins.directions
        first, *rest = report_in_words(self.latest_report, self.feature_names, leading=found.leading, tail=found.tail)
        return [f"{phrases.when(event)} {first}", *rest, *event.notes]


def add_batch(metric: SpectralErrors, task: Task, objective: Objective, rows: Tensor, batch: Batch) -> None:
    """Run the network on a batch and add what it makes of its samples.

    Raises:
        ConfigurationError: If there is not one mistake or loss for each row.
    """
    inputs, targets = private(batch)
    device = metric.counts.device
    table = objective.copied_parameters()

    def run() -> Tensor:
        outputs = objective.output_values(table, inputs)
        if task.classifier is None:
            return differences(outputs.to(device), targets.to(device))  # in float64, which not every device has
        return task.classifier.mistakes(outputs, targets)

    # A rule of the user's may look at the module as well: it must not see other weights than the forward.
    found = objective.swapped(table, run).to(device)
    if len(found) != len(rows):
        raise ConfigurationError(
            f"The network gave {len(found)} outputs for {len(rows)} inputs, so its errors cannot be placed; measure "
            "without this instrument."
        )
    if task.classifier is None:
        metric.add_differences(rows.to(device), found)
        return
    labels = None
    if task.labelled and task.num_classes is not None:
        labels = checked_labels(targets, task.num_classes).to(device)
    metric.add(rows.to(device), labels=labels, mistakes=found)
