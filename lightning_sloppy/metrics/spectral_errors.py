"""Errors of validation samples by where the energy of their inputs lies, as a metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.moments import InputMoments
from lightning_sloppy.inputs.rows import Array, as_rows
from lightning_sloppy.inputs.spectrum import row_chunks
from lightning_sloppy.metrics.energy_bins import EnergyBins, EnergyBinsReader
from lightning_sloppy.metrics.error_report import MEASURES, ErrorReport, Tallies, error_report
from lightning_sloppy.metrics.predictions import checked_labels, checked_losses, differences, mistakes_of
from lightning_sloppy.metrics.principal_directions import FLOOR, PrincipalDirections, principal_directions

MOST_TARGETS = 1_024
"""Columns of the targets up to which there is an error for each of their principal directions."""

MOST_SQUARED = 25.0
"""Largest squared standardised value that counts for a column: a single sample far outside must not name it."""


class SpectralErrors(Metric):
    """Error, or loss, of validation samples by where the energy of their inputs lies in the training inputs' spectrum.

    With z the inputs of a sample, standardised by mean and deviation of the training inputs, and u_i, v_i the
    eigenvectors and eigenvalues of their correlation matrix, samples are put into K quantile bins of two measures:

    * "tail": the share of their energy in the tail, ``sum_{i > l} (u_i z)^2 / |z|^2``. The tail is what comes after the
      l directions that hold 95 % of the trace. A fixed fraction exists for every spectrum, while a knee need not, and
      inputs reduced to these directions lose no accuracy on most data sets: so this is where a network may not look.
    * "distance": the Mahalanobis distance, ``sum_i (u_i z)^2 / max(v_i, 1e-6)``: how unusual the sample is. Eigenvalues
      below 1e-6 (their mean is 1) are raised to it, because such directions may hold nothing but rounding errors.

    The edges of the bins come from training inputs that were left out of the moments. So they are fixed before any
    validation sample is seen, and a validation sample of the same distribution falls into each bin equally often.

    Intervals have 95 %: exact binomial ones for errors, Student's t for losses, and for sums and differences those that
    follow from them (Zou and Donner 2008). The interval of the worst bin, and of the worst class, is wide enough to
    hold although it was picked (Bonferroni). All of them take the validation samples as independent.

    Rows with NaN or infinite inputs cannot be placed. They count in the overall error, and have a rate of their own.

    Make one with :meth:`from_inputs`. For a classification :meth:`compute` gives ``error``, ``accuracy`` and
    ``balanced_error`` (the mean over the classes that occur); otherwise ``loss``. See
    :meth:`~lightning_sloppy.metrics.error_report.ErrorReport.numbers` for all names, and :meth:`report` for all bins.

    Args:
        bins: Bins of the training inputs.
        num_classes: Number of classes C; None for a regression or for losses.
        targets: Principal directions of the training targets of a regression, or None.
        threshold: From where one number for each sample means class 1: 0.5 for probabilities, 0 for logits.
        options: Of :class:`torchmetrics.Metric`.

    Raises:
        ConfigurationError: For fewer than two classes.

    >>> inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> metric = SpectralErrors.from_inputs(inputs, num_classes=2)
    >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), inputs[:3])
    >>> round(float(metric.compute()["error"]), 4)
    0.3333
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor
    mistakes: Tensor
    losses: Tensor
    columns: Tensor
    whitened: Tensor
    settings: Tensor

    def __init__(
        self,
        bins: EnergyBins,
        *,
        num_classes: int | None = None,
        targets: PrincipalDirections | None = None,
        threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 2):
            raise ConfigurationError(f"num_classes={num_classes!r} is out of range; pass at least 2, or None.")
        self.num_classes = num_classes
        self.threshold = threshold
        self._bins, self._targets = bins, targets
        measures, places = len(MEASURES), bins.count + 1
        shape = (measures, places, num_classes or 1)
        directions = _whitening(targets)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("mistakes", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        for name, last in (("losses", (2,)), ("columns", (2, bins.directions.num_columns))):
            empty = torch.zeros(measures, places, *last, dtype=torch.float64)
            self.add_state(name, empty, dist_reduce_fx="sum")
        self.add_state("whitened", torch.zeros(directions, 2, dtype=torch.float64), dist_reduce_fx="sum")
        # A collection shares the states of metrics whose states are equal after the first batch: others must differ.
        self.add_state("settings", self._settings(), dist_reduce_fx="max")

    @classmethod
    def from_inputs(
        cls,
        inputs: Any,
        targets: Array | None = None,
        *,
        num_classes: int | None = None,
        threshold: float | None = None,
        bins: int = 5,
        **options: Any,
    ) -> SpectralErrors:
        """Make the metric from the training inputs, in one pass; a fifth of the rows is kept in memory for the edges.

        Args:
            inputs: One tensor or array of shape (n, ...), a pandas or polars frame of numbers, or an iterable of
                batches; of pairs ``(inputs, targets)`` the first is taken.
            targets: Training targets of a regression, (n, ...). Losses are then in units of their variance, so that 1
                is the loss of predicting their mean, and there is a loss for each of their principal directions.
            num_classes: Number of classes of a classification; None for a regression or for losses.
            threshold: From where one number for each sample means class 1: 0.5 for probabilities, 0 for logits.
            bins: Quantile bins K of each measure.
            options: Of :class:`torchmetrics.Metric`.

        Raises:
            ConfigurationError: For fewer than 10 rows for each bin, missing values, token ids, inputs that are all
                constant, more than 8,192 features, or targets of a classification.
        """
        reader, count = EnergyBinsReader(bins), 0
        for rows, _ in row_chunks(inputs, wait=False):
            reader.add(rows, torch.arange(count, count + len(rows)))
            count += len(rows)
        if not count:
            raise ConfigurationError("SpectralErrors was to be made from no training inputs; pass at least 50 rows.")
        found = None
        if targets is not None:
            if num_classes is not None:
                raise ConfigurationError(
                    "targets= are those of a regression, but num_classes was passed too; leave out one of them."
                )
            found = target_directions(as_rows(_floating(targets)), count)
        return cls(reader.finish(), num_classes=num_classes, targets=found, threshold=threshold, **options)

    def update(self, preds: Tensor | None, target: Tensor | None, inputs: Array, losses: Tensor | None = None) -> None:
        """Add a batch of N samples.

        Args:
            preds: Of a classification: labels (N,), scores (N, C), or one probability or logit for each sample (see
                ``threshold``). Of a regression: of the shape of the targets. None with ``losses``.
            target: Labels (N,), or the targets of a regression. None with ``losses``.
            inputs: Inputs of the network, (N, ...).
            losses: One loss for each sample, (N,), in place of the squared error of a regression. A classification
                takes none.

        Raises:
            ConfigurationError: For shapes that do not fit, labels out of range, or one number for each sample without
                a threshold. Nothing is then added.
        """
        rows = self._checked_rows(inputs)
        device = self.counts.device
        if losses is not None and self.num_classes is not None:
            raise ConfigurationError(
                "losses= were passed to a metric of errors; make one without num_classes for them."
            )
        if losses is not None:
            self.add(rows, losses=checked_losses(losses, len(rows)).to(device))
            return
        if preds is None or target is None:
            raise ConfigurationError("Neither predictions with targets nor losses were passed; pass one of them.")
        preds, target = preds.detach().to(device), target.detach().to(device)
        if len(target) != len(rows) or target.ndim == 0:
            raise ConfigurationError(
                f"{len(rows)} inputs were passed with targets of shape {tuple(target.shape)}; pass one for each."
            )
        if self.num_classes is not None:
            labels = checked_labels(target, self.num_classes)
            self.add(rows, labels=labels, mistakes=mistakes_of(preds, labels, self.num_classes, self.threshold))
            return
        self.add_differences(rows, differences(preds, target))

    def add_differences(self, rows: Tensor, found: Tensor) -> None:
        """Add N samples of a regression, on the device of the states.

        Args:
            rows: Inputs, (N, d).
            found: Predictions minus targets, (N, t), float64.
        """
        self.add(rows, losses=self._squared_errors(found), differences=found)

    def add(
        self,
        rows: Tensor,
        *,
        labels: Tensor | None = None,
        mistakes: Tensor | None = None,
        losses: Tensor | None = None,
        differences: Tensor | None = None,
    ) -> None:
        """Add N samples whose mistakes or losses are known, all on the device of the states.

        Args:
            rows: Inputs, (N, d).
            labels: Classes, (N,), or None: all of one class.
            mistakes: Which are wrong, (N,), booleans.
            losses: Their losses, (N,), float64.
            differences: Predictions minus targets of a regression, (N, t), float64.
        """
        self._update_count, self._computed = max(1, self._update_count), None
        self._bins = self._bins.to(self.counts.device)
        places, standardised = self._bins.placed(rows)
        count, classes = len(rows), self.counts.shape[2]
        ones = torch.ones(count, dtype=torch.int64, device=rows.device)
        own = torch.zeros_like(ones) if labels is None else labels
        squares = standardised.square().clamp_max(MOST_SQUARED)
        powers = torch.stack([squares, squares.square()], dim=1)
        usable = torch.isfinite(standardised).all(1)
        for measure, place in enumerate(places):
            cells = place * classes + own
            self.counts[measure].view(-1).index_add_(0, cells, ones)
            if mistakes is not None:
                self.mistakes[measure].view(-1).index_add_(0, cells, mistakes.long())
            if losses is not None:
                self.losses[measure].index_add_(0, place, torch.stack([losses, losses.square()], dim=1))
            self.columns[measure].index_add_(0, place[usable], powers[usable])
        if differences is not None and len(self.whitened):
            errors = self._whitened_errors(differences)
            self.whitened += torch.stack([errors.sum(0), errors.square().sum(0)], dim=1)

    def compute(self) -> dict[str, Tensor]:
        """The main numbers by name, as float64 scalars; NaN where there are too few samples to tell.

        Each has its interval as ``_low`` and ``_high``. They are ``error``, ``accuracy`` and ``balanced_error``, or
        ``loss``; error or loss of the lowest and highest bin of each measure (``tail_lowest``, ``tail_highest``,
        ``distance_lowest``, ``distance_highest``) and ``tail_difference``, ``distance_difference``, highest minus
        lowest; ``worst_bin`` and ``worst_class``; for regressions ``whitened_error_first`` and
        ``whitened_error_last``, of the first and the last principal direction of the targets.
        """
        numbers = self._report().numbers()
        if "error" in numbers:
            numbers["accuracy"] = 1 - numbers["error"]
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.counts.device) for name, value in numbers.items()
        }

    def report(self) -> ErrorReport:
        """All bins and classes with counts and intervals, the worst bin and the columns responsible for it.

        In a distributed run call it on all ranks, as :meth:`compute`.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and self.sync_on_compute):
            return self._report()

    @property
    def bins(self) -> EnergyBins:
        """The bins of the training inputs."""
        return self._bins

    @property
    def kind(self) -> str:
        """What is measured: "error" for a classification, else "loss"."""
        return "loss" if self.num_classes is None else "error"

    @property
    def tallies(self) -> Tallies:
        """Counts and sums of this process, on the CPU."""
        return Tallies(*(each.cpu() for each in (self.counts, self.mistakes, self.losses, self.columns, self.whitened)))

    def get_extra_state(self) -> dict[str, Any]:
        """The bins, so that a checkpoint of a module with this metric has them."""
        targets = None if self._targets is None else self._targets.state()
        return {"bins": self._bins.state(), "targets": targets}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the bins of a checkpoint.

        Raises:
            ConfigurationError: For bins of another number of columns or bins.
        """
        bins = EnergyBins.of_state(state["bins"])
        ours, theirs = ((each.directions.num_columns, each.count) for each in (self._bins, bins))
        if ours != theirs:
            raise ConfigurationError(
                f"The checkpoint holds {theirs[1]} bins of {theirs[0]} columns, but the metric has {ours[1]} bins of "
                f"{ours[0]} columns; make the metric from the inputs of that run."
            )
        targets = None if state["targets"] is None else PrincipalDirections.of_state(state["targets"])
        if _whitening(targets) != len(self.whitened):
            raise ConfigurationError(
                f"The checkpoint holds {_whitening(targets)} directions of the targets, but the metric has "
                f"{len(self.whitened)}; make the metric from the targets of that run."
            )
        self._bins, self._targets = bins, targets
        self._defaults["settings"] = self._settings()
        self.settings = self._settings().to(self.counts.device)

    def _settings(self) -> Tensor:
        """What distinguishes this metric from others, as one tensor."""
        found, threshold = self._bins.directions, -1.0 if self.threshold is None else self.threshold
        numbers = [self._bins.edges.flatten(), found.mean, found.deviation]
        return torch.cat([torch.tensor([threshold], dtype=torch.float64), *(each.cpu() for each in numbers)])

    def _report(self) -> ErrorReport:
        return error_report(self.tallies, kind=self.kind)

    def _checked_rows(self, inputs: Array) -> Tensor:
        rows, d = as_rows(inputs), self._bins.directions.num_columns
        if rows.shape[1] != d:
            raise ConfigurationError(
                f"The metric was made from training inputs of {d} columns, but these have {rows.shape[1]} when "
                "flattened; pass the inputs of the network, with the same preprocessing."
            )
        return rows.to(self.counts.device)

    def _squared_errors(self, found: Tensor) -> Tensor:
        """Mean squared error of each sample, in units of the variance of the training targets if these are known."""
        if self._targets is None:
            return found.square().mean(1)
        self._check_targets(found)
        targets = self._targets.to(found.device)
        return targets.scaled(found)[:, targets.deviation > 0].square().mean(1)

    def _whitened_errors(self, found: Tensor) -> Tensor:
        """Squared differences in the principal directions of the targets, divided by their variances, (N, t)."""
        assert self._targets is not None
        targets = self._targets.to(found.device)
        energies = targets.energies(targets.scaled(found))
        return (energies / targets.variances)[:, : len(self.whitened)]

    def _check_targets(self, found: Tensor) -> None:
        assert self._targets is not None
        if found.shape[1] != self._targets.num_columns:
            raise ConfigurationError(
                f"The metric was made from training targets of {self._targets.num_columns} columns, but these have "
                f"{found.shape[1]}; pass targets of the same form."
            )


def target_directions(rows: Tensor, count: int | None = None) -> PrincipalDirections:
    """Principal directions of training targets (n, t).

    Args:
        rows: The targets.
        count: Number of inputs, or None.

    Raises:
        ConfigurationError: For another number of rows than inputs, NaN, or targets that are all constant.
    """
    if count is not None and len(rows) != count:
        raise ConfigurationError(f"{count} inputs were passed with {len(rows)} targets; pass one for each.")
    moments = InputMoments(sync_on_compute=False)
    moments.update(rows)
    return principal_directions(moments.compute(), what="targets")


def _floating(targets: Array) -> Array:
    """Targets as floating-point numbers: counts are targets of a regression, too."""
    return targets.double() if isinstance(targets, Tensor) else np.asarray(targets, dtype=np.float64)


def _whitening(targets: PrincipalDirections | None) -> int:
    """Number of directions of the targets in which errors are whitened: those that vary beyond rounding."""
    if targets is None or targets.num_columns > MOST_TARGETS:
        return 0
    return int((targets.variances > FLOOR).sum())
