"""Eigenvalue spectrum of the training inputs, once, at train start."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.callbacks.input_columns import checked_names, column_names, column_notes
from lightning_sloppy.callbacks.input_drift import InputDrift, OnDrift, checked_on_drift
from lightning_sloppy.callbacks.input_quantities import HISTOGRAMS, QUANTITIES, SIDE_KINDS, SIDE_QUANTITIES
from lightning_sloppy.callbacks.input_reading import read_inputs
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.drift.comparing import ALPHA, checked_alpha
from lightning_sloppy.drift.report import DriftReport
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.inputs.column_groups import ColumnGroup
from lightning_sloppy.inputs.incomplete import Missing
from lightning_sloppy.inputs.moment_blocks import AnyMoments, Gathered
from lightning_sloppy.inputs.nulls import NULLS, isotropic_spectrum
from lightning_sloppy.inputs.shared_columns import MOST_GROUPED, groups_of, without_columns
from lightning_sloppy.inputs.spectrum import InputKind, checked_missing, moments_spectrum, with_halves
from lightning_sloppy.inspection.spectrum_intervals import interval_estimates
from lightning_sloppy.measures.relative_dimension import directions_holding, relative_estimates
from lightning_sloppy.measures.sloppiness import input_estimates, participation_ratio, sloppiness
from lightning_sloppy.measures.verdict import sloppiness_verdict, verdict_in_words
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext, fit_context
from lightning_sloppy.records import Estimate, Measurement, SloppinessVerdict, Spectrum
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.actions import DIMENSIONS

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

MOST_HALVED = 2_048  # features up to which the spectrum of half of the samples is formed: it costs as much again

SAME = 0.05
"""Allowed difference between two readings of one data set (random transforms), relative to the largest eigenvalue."""


class InputSpectrum(MeasuringCallback):
    """Track the eigenvalues of the correlation matrix of the training inputs, before the first step.

    One pass over the data computes the second moments in float64, and from them the correlation, covariance and
    uncentred second-moment matrices. A spectrum with a steep drop followed by small eigenvalues spread evenly over many
    decades is called sloppy (Yang, Mao and Chaudhari, ICML 2022, arXiv 2110.14163). Its participation ratio is
    ``(sum lambda)^2 / sum lambda^2``.

    Args:
        kind: The matrix to report first: "correlation" (constant columns are excluded and counted), "covariance" or
            "second_moment".
        max_samples: Maximum number of samples, drawn at random from the training data. With n Gaussian samples, a
            separated eigenvalue has the relative standard error sqrt(2/n) (Anderson 1963): 0.6 % for 50,000. Sampling
            spreads close ones by up to ``2 sqrt(d/n)`` in both directions (Marchenko and Pastur 1967).
        null: Compare with data without structure, and report whether the inputs are sloppy. The null is shuffled
            columns for the correlation, and isotropic Gaussian samples for the other kinds. Up to 2,048 features,
            shuffling costs a second pass of moments; above, the null is its limit for large d (Marchenko and Pastur
            1967).
        missing: What is done about NaN in the inputs. "pairwise" (the default, so that a data set with missing values
            gives a measurement): each correlation over the samples that both columns have. "em": the Gaussian model
            that makes the observed values most likely; one process only, and all samples stay in memory. Pairs take
            values as missing completely at random, the model as missing at random, which a note says. "error": no
            measurement.
        intervals: Whether to report intervals beside the numbers of the main matrix, from random halves of the samples
            (:func:`~lightning_sloppy.spectrum_intervals`). They cost at most a few spectra of halves. There are none
            above 1,024 features, with fewer than two samples for each feature, and with "em".
        feature_names: Names of the columns, one for each number of a sample, for the summary. null: what the data set
            or the data module tells (attributes such as ``feature_names``, ``feature_cols``, ``columns``, or a frame
            with as many columns), else positions counted from 0.
        against: The JSON of a report that ``lightning-sloppy inspect TABLE --json`` wrote: the inputs are compared
            with that table, by the names of the columns. Samples are drawn at random, so their order is not known; they
            are taken for one stretch of as many rows, which rather misses drift than finds some that is not there.
        on_drift: "warn", "error" (the fit ends before its first step; also where nothing can be compared), or a
            callable that is given the :class:`~lightning_sloppy.DriftReport` if there is drift, on rank 0; what it
            raises ends the fit.
        alpha: Part of the unchanged inputs that are called drift.
        name: Name in the tags ``sloppy_<name>/...``. null: "input", followed by the kind unless it is the correlation.
        seed: Seed of the draw of samples. null: that of the SloppyMonitor, if any, else 0.
        strict: Raise errors of the measurement instead of warning. null: as in the SloppyMonitor, if any, else false.

    Raises:
        ConfigurationError: For an unknown kind or fewer than 2 samples.

    Example:
        >>> InputSpectrum(kind="covariance").kind
        'covariance'
    """

    default_name = "input"
    title = "Inputs"
    quantities = QUANTITIES
    histograms = HISTOGRAMS
    reads_parameters = False
    cost_advice = "To reduce them, lower `max_samples`."
    measures_once = True

    def __init__(
        self,
        kind: InputKind = "correlation",
        *,
        max_samples: int = 50_000,
        null: bool = True,
        missing: Missing = "pairwise",
        intervals: bool = True,
        feature_names: Sequence[str] | None = None,
        against: str | Path | None = None,
        on_drift: OnDrift = "warn",
        alpha: float = ALPHA,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        super().__init__(name=name, seed=seed, strict=strict)
        if kind not in get_args(InputKind):
            raise ConfigurationError(f"kind={kind!r} is unknown; choose one of {', '.join(get_args(InputKind))}.")
        self.kind: InputKind = kind
        if max_samples < 2:
            raise ConfigurationError(f"max_samples={max_samples} is too small for a spectrum; pass at least 2.")
        self.max_samples = max_samples
        self.null = null
        self.missing: Missing = checked_missing(missing)
        self.intervals = intervals
        self.feature_names = checked_names(feature_names)
        self.against = against
        self.on_drift = checked_on_drift(on_drift, against)
        self.alpha = checked_alpha(alpha)
        self._earlier: Tensor | None = None
        self._drift: InputDrift | None = None

    @property
    def drift(self) -> DriftReport | None:
        """What the comparison of this fit found; None without ``against``, or where nothing could be compared."""
        return None if self._drift is None else self._drift.report

    def differences(self) -> dict[str, Any]:
        """The kind, unless it is the default."""
        return {} if self.kind == "correlation" else {"kind": self.kind}

    def settings(self) -> dict[str, Any]:
        """Kind of matrix and number of samples, and what is done about missing values."""
        found = {"kind": self.kind, "max_samples": self.max_samples, "seed": self.seed}
        return found if self.missing == "pairwise" else {**found, "missing": self.missing}

    def state_dict(self) -> dict[str, Any]:
        """Also the d eigenvalues: a resumed run measures again and warns if the inputs have changed."""
        known = None if self.latest is None or self.latest.spectrum is None else self.latest.spectrum.eigenvalues
        return {**super().state_dict(), **({} if known is None else {"eigenvalues": known})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the eigenvalues of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        same = state_dict.get("settings") == self.settings()
        self._earlier = state_dict.get("eigenvalues") if same else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse the Gaussian model on several processes."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._drift = None if self.against is None else InputDrift(self.against, self.alpha, self.seed)
        if stage == "fit" and self.missing == "em" and trainer.world_size > 1:
            raise ConfigurationError(
                f"InputSpectrum(missing='em') needs all samples in one process, but the fit has {trainer.world_size}; "
                "pass missing='pairwise'."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once, because the inputs do not change; then act on drift.

        Raises:
            ConfigurationError: Drift, or nothing to compare, with ``on_drift="error"``.
            Exception: What a callable raises.
        """
        self.run(trainer, pl_module, step=trainer_internals.effective_batches(trainer))
        if self._drift is not None:
            self._act(trainer, pl_module, self._drift)

    def _act(self, trainer: Trainer, pl_module: LightningModule, drift: InputDrift) -> None:
        """Do what was asked for; all ranks have the same report."""
        if drift.report is None:
            why = drift.failure or "the inputs could not be measured"
            if self.on_drift == "error":
                raise ConfigurationError(f"The fit was ended before its first step by on_drift='error': {why}")
            self.warn_once(f"The inputs were not compared with {self.against}: {why}", trainer=trainer, key="drift")
        elif drift.report.is_drift:
            said = drift.report.sentence()
            if self.on_drift == "error":
                raise ConfigurationError(drift.refusal(said))
            if self.on_drift == "warn":
                self.warn_once(said, trainer=trainer, key="drift")
            else:
                told, report = self.on_drift, drift.report
                ranks = fit_context(trainer, pl_module).ranks
                ranks.together(lambda: told(report) if trainer.is_global_zero else None)

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """Read the data set once by index; every rank reads a part."""
        start = time.perf_counter()
        names: tuple[str, ...] = ()

        def named(shape: tuple[int, ...]) -> None:
            nonlocal names
            holders = [context.samples.source(trainer).loader.dataset, getattr(trainer, "datamodule", None)]
            names = column_names(self.feature_names, holders, shape)
            if drift is not None:
                drift.begin(names)

        drift = self._drift
        read = read_inputs(
            trainer,
            context,
            max_samples=self.max_samples,
            seed=self.seed,
            missing=self.missing,
            resampled=self.intervals,
            shuffles=self.null and self.kind == "correlation",
            seen=named,
            also=None if drift is None else drift.add,
        )
        if drift is not None:
            drift.finish(trainer.global_rank, None if context.ranks.count == 1 else gathered_over_ranks)
        names = names or column_names(None, [], (read.gathered.features,))  # a rank without samples
        moments = read.gathered.whole()
        seconds = time.perf_counter() - start
        kinds: list[InputKind] = [self.kind, *(kind for kind in SIDE_KINDS if kind != self.kind)]
        spectra: dict[str, Spectrum] = {kind: moments_spectrum(moments, kind, seconds=seconds) for kind in kinds}
        headline = spectra.pop(self.kind)
        headline = replace(headline, detail={**headline.detail, DIMENSIONS: len(read.shape)})
        self._compare(trainer, headline.eigenvalues)
        headline = self._with_parts(headline, read.gathered, moments)
        estimates = _estimates(headline, spectra)
        verdicts, null = self._verdicts({self.kind: headline, **spectra}, read.without)
        if null is not None:
            estimates["null_participation_ratio"] = participation_ratio(null)
            estimates["null_slope_times_rank"] = Estimate(sloppiness(null).slope_times_rank)
        groups = groups_of(moments, names)
        estimates |= self._without_repeats(moments, names, groups)
        decades = [
            None if (each := estimates.get(name)) is None or not phrases.usable(each) else each.value
            for name in ("decades", "deduplicated_decades")
        ]
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            group=self.name,
            spectrum=headline,
            estimates=estimates,
            cost=headline.cost,
            status=headline.status,
            num_samples=headline.num_samples,
            precision="float64",
            companions=spectra if null is None else {**spectra, "null": null},
            notes=(*_of_drift(drift), *column_notes(moments, names, groups, headline, (decades[0], decades[1]))),
            verdicts=verdicts,
        )

    def _with_parts(self, headline: Spectrum, gathered: Gathered, moments: AnyMoments) -> Spectrum:
        """The main spectrum with that of the first half of the samples, and of random halves for intervals."""
        half = gathered.first_half(moments) if headline.dim <= MOST_HALVED else None
        if half is not None:
            with suppress(ConfigurationError):  # all columns may be constant in one half
                headline = replace(headline, half_eigenvalues=moments_spectrum(half, self.kind).eigenvalues)
        return with_halves(headline, gathered, moments) if self.intervals else headline

    def _without_repeats(
        self, moments: AnyMoments, names: Sequence[str], groups: Sequence[ColumnGroup]
    ) -> dict[str, Estimate]:
        """How many columns say what another one says, and dimension and decades without them."""
        if len(names) > MOST_GROUPED:
            return {}
        drop = {name for group in groups for name, _, _ in group.drop}
        found = {"repeated_columns": Estimate(float(len(drop)))}
        if drop:
            rest = without_columns(moments, np.array([name in drop for name in names]))
            known = input_estimates(moments_spectrum(rest, self.kind))
            found |= {f"deduplicated_{name}": known[name] for name in ("participation_ratio", "decades")}
        return found

    def _verdicts(
        self, spectra: dict[str, Spectrum], without: AnyMoments | None
    ) -> tuple[dict[str, SloppinessVerdict], Spectrum | None]:
        """Verdicts for the main matrix and the second moment, and the null of the main matrix."""
        nulls: dict[InputKind, Spectrum] = {}
        judged: set[InputKind] = {self.kind, "second_moment"}
        if self.null:
            for kind in sorted(judged):
                with suppress(ConfigurationError):
                    if kind == "correlation" and without is not None:
                        nulls[kind] = moments_spectrum(without, kind)
                    else:
                        nulls[kind] = isotropic_spectrum(spectra[kind], self.seed)
        verdicts: dict[str, SloppinessVerdict] = {
            kind: sloppiness_verdict(spectra[kind], null, NULLS[kind]) for kind, null in nulls.items()
        }
        return verdicts, nulls.get(self.kind)

    def paragraphs(self) -> list[str]:
        """Whether the inputs are sloppy, then decades, slope and dimension of the main matrix."""
        event = phrases.last_reported(self.measurements)
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        decades, slope, fit = (phrases.value(event, name) for name in ("decades", "slope", "slope_r_squared"))
        judged = list(event.verdicts.values())
        reasons = {verdict.reason for verdict in judged}
        verdicts = [
            verdict_in_words(f"The {kind.replace('_', '-')} matrix", verdict)
            for kind, verdict in event.verdicts.items()
        ]
        if (
            len(judged) > 1 and len(reasons) == 1 and judged[0].answer == "undetermined"
        ):  # too few features for any of the matrices
            verdicts = [f"It is undetermined whether the inputs are sloppy: {reasons.pop()}."]
        sentences = [*verdicts, phrases.on_samples(event, "training samples")]
        if decades is not None:
            at_least = "at least " if event.estimates["decades"].lower_bound else ""
            matrix = self.kind.replace("_", "-")
            spread = phrases.between(event, "decades", "over halves of the samples")
            sentences.append(f"The {matrix} matrix spans {at_least}{phrases.number(decades)} decades{spread}.")
        if slope is not None:
            quality = "" if fit is None else f" (R^2 = {fit:.2f})"
            change = f"{phrases.number(slope)} decades per index{quality}"
            sentences.append(f"After the first drop its eigenvalues change by {change}.")
        features, ratio = phrases.value(event, "num_features"), phrases.value(event, "participation_ratio")
        sentences.append(phrases.relative_dimension(event, " of the inputs"))
        if ratio is not None:
            second = phrases.value(event, "second_moment_participation_ratio")
            beside = "" if second is None else f", of the second moment {phrases.number(second)}"
            interval = phrases.between(event, "participation_ratio", "at 95 %")
            sentences.append(f"Participation ratio: {phrases.number(ratio)}{interval}{beside}.")
        resolved, samples = phrases.value(event, "resolved"), phrases.value(event, "num_samples")
        if resolved is not None and features is not None and samples is not None:
            dependent = features - resolved
            complete = phrases.value(event, "missing_rate") is None
            if complete and resolved < min(features, samples - 1):
                sentences.append(f"{phrases.number(dependent)} directions are exact linear combinations of the others.")
        constant = phrases.value(event, "constant_columns")
        if constant and not any(note.startswith("Constant columns") for note in event.notes):
            sentences.append(f"{phrases.number(constant)} constant columns were excluded.")
        return [" ".join(sentences), *event.notes]

    def _compare(self, trainer: Trainer, eigenvalues: Tensor) -> None:
        """Warn if a resumed run trains on other inputs than the previous run."""
        earlier, self._earlier = self._earlier, None
        if earlier is not None and not (
            earlier.shape == eigenvalues.shape
            and torch.allclose(earlier, eigenvalues, rtol=0, atol=SAME * float(earlier.max()))
        ):
            self.warn_once(
                "The spectrum of the training inputs differs from that of the run that wrote the checkpoint, so the "
                "curves continue with different data; check the data set, its split and its transforms.",
                trainer=trainer,
            )


def _estimates(headline: Spectrum, spectra: Mapping[str, Spectrum]) -> dict[str, Estimate]:
    """The numbers of the main matrix and of the other ones."""
    estimates = {**input_estimates(headline), **relative_estimates(headline), **interval_estimates(headline)}
    estimates |= {f"n{percent}": directions_holding(headline, percent / 100) for percent in (95, 99)}
    for kind in SIDE_KINDS:
        side = spectra.get(kind, headline)
        known = {**input_estimates(side), **relative_estimates(side)}
        estimates |= {f"{kind}_{name}": known[name] for name in SIDE_QUANTITIES if name in known}
    estimates |= {
        name: Estimate(float(headline.detail[name]))
        for name in ("missing_rate", "negative_eigenvalues", "set_aside_columns")
        if name in headline.detail
    }
    covariance = spectra.get("covariance", headline)
    estimates["covariance_n95"] = directions_holding(covariance, 0.95)
    return estimates


def _of_drift(drift: InputDrift | None) -> list[str]:
    """What is said of the comparison among the notes."""
    if drift is None:
        return []
    if drift.report is None:
        return [f"Not compared with {drift.against}: {drift.failure}"]
    return [f"{drift.report.sentence()[:-1]} (alpha {drift.alpha:g})."]
