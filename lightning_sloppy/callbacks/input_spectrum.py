"""Eigenspectrum of the training inputs, once, at train start."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from lightning_sloppy.callbacks.dimension_quantities import quantities_of_dimension
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import as_pair
from lightning_sloppy.evaluation.ranks import keep_step
from lightning_sloppy.inputs.moments import InputMoments, Moments
from lightning_sloppy.inputs.spectrum import InputKind, moments_spectrum
from lightning_sloppy.measures.relative_dimension import directions_holding, relative_estimates
from lightning_sloppy.measures.sloppiness import input_estimates
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import READ_CHUNK, probe_indices
from lightning_sloppy.quantities import Quantity, SpectrumHistogram
from lightning_sloppy.records import Measurement, Spectrum
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

QUANTITIES = (
    *quantities_of_dimension(
        "Effective number of directions of the inputs: one that holds a thousandth of the trace of the correlation "
        "matrix counts one half. Read it beside the number of features.",
        chart="Dimension of the inputs",
        half="If it differs much from the whole value, raise `max_samples`.",
        headline=False,
    ),
    Quantity(
        "n95",
        "Fewest directions that hold 95 % of the trace of the correlation matrix together.",
        whole_spectrum=True,
    ),
    Quantity("n99", "Fewest directions that hold 99 % of the trace together.", whole_spectrum=True),
    Quantity(
        "covariance_effective_dimension",
        "Effective dimension of the covariance matrix (features centred, their scales kept). Far below that of the "
        "correlation matrix, a few features of large scale dominate.",
        whole_spectrum=True,
    ),
    Quantity(
        "covariance_n95",
        "Fewest directions that hold 95 % of the trace of the covariance matrix together. Inputs reduced to them had "
        "44 to 82 % fewer numbers and an error within -1.5 to +0.8 points on four data sets.",
        whole_spectrum=True,
    ),
    Quantity(
        "second_moment_effective_dimension",
        "Effective dimension of the uncentred second-moment matrix (the mean counts as a direction). Of the three it "
        "goes best with the dimensions of the network.",
        whole_spectrum=True,
    ),
    Quantity(
        "decades",
        "Powers of ten between the largest and the smallest resolved eigenvalue of the correlation matrix. "
        "Near zero the features are nearly independent. Independent ones reach several decades too where there are "
        "hardly more samples than features.",
        chart="Decades",
        headline=True,
    ),
    Quantity(
        "slope",
        "Fitted change of log10 of the eigenvalue per index behind the knee. Steeper means that fewer "
        "directions of the data matter; close to zero means that all matter alike.",
        chart="Slope",
    ),
    Quantity(
        "slope_r_squared",
        "How well a straight line fits log10 of the eigenvalues behind the knee. Near 1 the spectrum is "
        "spread evenly in the logarithm; below about 0.9 do not quote the slope.",
    ),
    Quantity(
        "knee",
        "Index at which the sharp first drop ends and the even tail begins. The directions before it are the "
        "ones that a linear model would use first.",
    ),
    Quantity(
        "floor",
        "Eigenvalues below this are rounding noise. They are counted nowhere.",
    ),
    Quantity(
        "resolved",
        "Number of eigenvalues above the floor. If it is below the number of features, some features are "
        "exact combinations of others and can be removed.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "participation_ratio",
        "(sum lambda)^2 / sum lambda^2 of the correlation matrix: directions of about equal strength that would give "
        "the same value. Compare it with the number of features.",
        chart="Dimension of the inputs",
        headline=True,
    ),
    Quantity(
        "effective_rank",
        "Trace over largest eigenvalue of the correlation matrix. Close to 1 means that one direction "
        "dominates: look for a common cause, a drift or a missing normalisation.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "entropy_rank",
        "exp of the entropy of the eigenvalues divided by their sum. Counts weak directions more than the "
        "participation ratio does, so a wide gap between both means a long tail.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "trace",
        "Sum of the eigenvalues of the correlation matrix, which is the number of columns that are not "
        "constant. A check rather than a curve.",
    ),
    Quantity(
        "largest",
        "Largest eigenvalue of the correlation matrix. Divided by the trace it is the fraction of the "
        "variance in a single direction.",
    ),
    Quantity(
        "num_features",
        "Columns d in the headline matrix (the correlation leaves constant ones out). The denominator for "
        "every dimension of this group.",
        chart="Dimension of the inputs",
    ),
    Quantity(
        "constant_columns",
        "Features that never change; they have no correlation and are left out. Remove them from the data or "
        "find out why they are constant.",
    ),
    Quantity(
        "num_samples",
        "Training samples read for this group. With ten for each feature, sampling alone spreads a flat "
        "spectrum by half a decade; with fewer, by more: raise `max_samples`.",
    ),
    Quantity(
        "covariance_decades",
        "Decades of the covariance matrix (features centred, their scales kept). Much more than for the "
        "correlation matrix means that the scales of the features differ: standardise them.",
        chart="Decades",
    ),
    Quantity(
        "covariance_slope",
        "Slope of the covariance matrix (features centred, their scales kept), in decades per index. Read it "
        "beside the correlation matrix.",
        chart="Slope",
    ),
    Quantity(
        "covariance_participation_ratio",
        "Participation ratio of the covariance matrix (features centred, their scales kept). Far below that "
        "of the correlation matrix means that a few features of large scale dominate.",
    ),
    Quantity(
        "covariance_largest",
        "Largest eigenvalue of the covariance matrix (features centred, their scales kept). It limits the "
        "learning rate of a linear model.",
    ),
    Quantity(
        "second_moment_decades",
        "Decades of the uncentred second-moment matrix (the mean counts as a direction). This is the matrix "
        "that the first layer meets.",
        chart="Decades",
    ),
    Quantity(
        "second_moment_slope",
        "Slope of the uncentred second-moment matrix (the mean counts as a direction), in decades per index.",
        chart="Slope",
    ),
    Quantity(
        "second_moment_participation_ratio",
        "Participation ratio of the uncentred second-moment matrix (the mean counts as a direction). Close to "
        "1 means that the mean drowns everything else: centre the inputs.",
    ),
    Quantity(
        "second_moment_largest",
        "Largest eigenvalue of the uncentred second-moment matrix (the mean counts as a direction). Far above "
        "that of the covariance, the mean is the reason: centre the inputs.",
    ),
)

HISTOGRAMS = (
    SpectrumHistogram(
        "log10_eigenvalues",
        "Eigenvalues of the correlation matrix above the rounding floor, as log10. A few on the right and an "
        "even carpet to the left is a sloppy spectrum.",
    ),
)

SIDE_KINDS: tuple[InputKind, ...] = ("covariance", "second_moment")
SIDE_QUANTITIES = ("decades", "slope", "participation_ratio", "largest", "effective_dimension")

MOST_HALVED = 2_048  # features up to which the spectrum of half of the samples is formed: it costs as much again

SAME = 0.05
"""Part of the largest eigenvalue by which two readings of one data set may differ: transforms can be random."""


class InputSpectrum(MeasuringCallback):
    """Eigenvalues of the correlation matrix of the training inputs, before the first step.

    One pass of streaming second moments in float64 gives correlation, covariance and uncentred second moment
    together. A sharp drop and then small eigenvalues spread evenly over many decades is a "sloppy" spectrum (Yang, Mao
    and Chaudhari, ICML 2022, arXiv 2110.14163). Its participation ratio is
    ``(sum lambda)^2 / sum lambda^2``.

    Args:
        kind: The headline: "correlation" (constant columns left out and counted), "covariance" or "second_moment".
        max_samples: Samples read at most, drawn at random from the training data. Of n Gaussian samples a separated
            eigenvalue has the relative standard error sqrt(2/n) (Anderson 1963): 0.6 % for 50,000. Close ones are
            spread by sampling, by up to ``2 sqrt(d/n)`` either way (Marchenko and Pastur 1967).
        name: Name in the tags ``sloppy_<name>/...``; null: "input", with the kind behind it unless that is the
            correlation.
        seed: Of that draw; null: 0, or that of the SloppyMonitor around it.
        strict: Raise errors of the measurement instead of warning; null: false, or as in the SloppyMonitor.

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
    cost_advice = "Lower `max_samples` if it is too long."

    def __init__(
        self,
        kind: InputKind = "correlation",
        *,
        max_samples: int = 50_000,
        name: str | None = None,
        seed: int | None = None,
        strict: bool | None = None,
    ) -> None:
        super().__init__(name=name, seed=seed, strict=strict)
        if kind not in get_args(InputKind):
            raise ConfigurationError(
                f"kind={kind!r} is no matrix of the inputs; choose one of {', '.join(get_args(InputKind))}."
            )
        self.kind: InputKind = kind
        if max_samples < 2:
            raise ConfigurationError(f"max_samples={max_samples} gives no spectrum; pass at least 2.")
        self.max_samples = max_samples
        self._earlier: Tensor | None = None

    def differences(self) -> dict[str, Any]:
        """The kind, unless it is the default."""
        return {} if self.kind == "correlation" else {"kind": self.kind}

    def settings(self) -> dict[str, Any]:
        """Matrix and samples."""
        return {"kind": self.kind, "max_samples": self.max_samples, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Also the eigenvalues, d numbers: a resumed run measures again, and says when the inputs have changed."""
        known = None if self.latest is None or self.latest.spectrum is None else self.latest.spectrum.eigenvalues
        return {**super().state_dict(), **({} if known is None else {"eigenvalues": known})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the inputs of the run that wrote the checkpoint."""
        super().load_state_dict(state_dict)
        same = state_dict.get("settings") == self.settings()
        self._earlier = state_dict.get("eigenvalues") if same else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once; the inputs do not change."""
        self.run(trainer, pl_module, step=trainer_internals.effective_batches(trainer))

    def take(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """One pass over the data set by its own indices; every rank reads a part."""
        start = time.perf_counter()
        moments, half = self._moments(trainer, context)
        seconds = time.perf_counter() - start
        kinds: list[InputKind] = [self.kind, *(kind for kind in SIDE_KINDS if kind != self.kind)]
        spectra: dict[str, Spectrum] = {kind: moments_spectrum(moments, kind, seconds=seconds) for kind in kinds}
        headline = spectra.pop(self.kind)
        self._compare(trainer, headline.eigenvalues)
        if half is not None and half.num_samples > 1 and headline.dim <= MOST_HALVED:
            with suppress(ConfigurationError):  # all columns may be constant in one half
                headline = replace(headline, half_eigenvalues=moments_spectrum(half, self.kind).eigenvalues)
        estimates = {**input_estimates(headline), **relative_estimates(headline)}
        estimates |= {f"n{percent}": directions_holding(headline, percent / 100) for percent in (95, 99)}
        for kind in SIDE_KINDS:
            side = spectra.get(kind, headline)
            known = {**input_estimates(side), **relative_estimates(side)}
            estimates |= {f"{kind}_{name}": known[name] for name in SIDE_QUANTITIES if name in known}
        covariance = spectra.get("covariance", headline)
        estimates["covariance_n95"] = directions_holding(covariance, 0.95)
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
            companions=spectra,
        )

    def paragraphs(self) -> list[str]:
        """Decades, slope and dimension of the headline matrix."""
        event = phrases.last_reported(self.measurements)
        if event is None:
            return [phrases.why_nothing(self.measurements)]
        decades, slope, fit = (phrases.value(event, name) for name in ("decades", "slope", "slope_r_squared"))
        sentences = [phrases.on_samples(event, "training samples")]
        if decades is not None:
            at_least = "at least " if event.estimates["decades"].lower_bound else ""
            matrix = self.kind.replace("_", "-")
            sentences.append(f"The {matrix} matrix spans {at_least}{phrases.number(decades)} decades.")
        if slope is not None:
            quality = "" if fit is None else f" (R^2 = {fit:.2f})"
            change = f"{phrases.number(slope)} decades per index{quality}"
            sentences.append(f"Behind the first drop its eigenvalues change by {change}.")
        features, ratio = phrases.value(event, "num_features"), phrases.value(event, "participation_ratio")
        sentences.append(phrases.relative_dimension(event, " of the inputs"))
        if ratio is not None:
            sentences.append(f"Participation ratio: {phrases.number(ratio)}.")
        resolved, samples = phrases.value(event, "resolved"), phrases.value(event, "num_samples")
        if resolved is not None and features is not None and samples is not None:
            dependent = features - resolved
            if resolved < min(features, samples - 1):
                sentences.append(f"{phrases.number(dependent)} directions are exact combinations of the others.")
        constant = phrases.value(event, "constant_columns")
        if constant:
            sentences.append(f"{phrases.number(constant)} constant columns were left out.")
        return [" ".join(sentences), *event.notes]

    def _compare(self, trainer: Trainer, eigenvalues: Tensor) -> None:
        """Say when a resumed run trains on other inputs than the run before."""
        earlier, self._earlier = self._earlier, None
        if earlier is not None and not (
            earlier.shape == eigenvalues.shape
            and torch.allclose(earlier, eigenvalues, rtol=0, atol=SAME * float(earlier.max()))
        ):
            self.warn_once(
                "The training inputs have another spectrum than those of the run that wrote the checkpoint, so its "
                "curves go on over other data; look at the data set, its split and its transforms.",
                trainer=trainer,
            )

    def _moments(self, trainer: Trainer, context: FitContext) -> tuple[Moments, Moments | None]:
        """Moments of all ranks together, and those of the first half of the samples."""
        first, second = InputMoments(), InputMoments()
        if trainer.strategy.root_device.type == "cuda":
            for part in (first, second):
                part.to(trainer.strategy.root_device)  # NCCL gathers nothing else
        self._read(trainer, context, first, second)
        if context.ranks.count > 1:
            keep_step()
        half: Moments | None = None
        with suppress(ConfigurationError):  # a single sample has no half
            half = first.compute()
        first.merge_state(second)
        return first.compute(), half

    def _read(self, trainer: Trainer, context: FitContext, first: InputMoments, second: InputMoments) -> None:
        source = context.source(trainer)
        indices = probe_indices(len(source), self.max_samples, self.seed)
        own = indices[trainer.global_rank :: trainer.world_size]
        title = f"Inputs: reading {len(indices):,} samples"
        with source.untouched(), progress(trainer, title, total=len(own)) as bar:
            for moments, part in ((first, own[: len(own) // 2]), (second, own[len(own) // 2 :])):
                for batch in source.chunks(part, READ_CHUNK):
                    inputs = as_pair(batch)[0]
                    if not isinstance(inputs, Tensor):
                        raise ConfigurationError(
                            f"The input spectrum needs one tensor for each sample, but the inputs are a "
                            f"{type(inputs).__name__}; give a data set whose inputs are a single tensor."
                        )
                    with torch.no_grad():
                        moments.update(inputs.to(moments.device))
                    bar.advance(len(inputs))
