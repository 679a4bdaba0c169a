"""Eigenspectrum of the training inputs, once, at train start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from lightning_sloppy.callbacks.base import MeasuringCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import as_pair
from lightning_sloppy.evaluation.ranks import keep_step
from lightning_sloppy.inputs.moments import InputMoments, Moments
from lightning_sloppy.inputs.spectrum import InputKind, moments_spectrum
from lightning_sloppy.measures.sloppiness import input_estimates
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import READ_CHUNK, probe_indices
from lightning_sloppy.records import Estimate, Measurement, Spectrum
from lightning_sloppy.reporting.progress import progress

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

SIDE_KINDS: tuple[InputKind, ...] = ("covariance", "second_moment")
SIDE_QUANTITIES = ("decades", "slope", "participation_ratio", "largest")

SAME = 0.05
"""Part of the largest eigenvalue by which two readings of one data set may differ: transforms can be random."""


class InputSpectrum(MeasuringCallback):
    """Eigenvalues of the correlation matrix of the training inputs, before the first step.

    One pass of streaming second moments in float64 gives correlation, covariance and uncentred second moment
    together. A sharp drop and then small eigenvalues spread evenly over many decades is a "sloppy" spectrum (Yang, Mao
    and Chaudhari, ICML 2022, arXiv 2110.14163). Its effective dimension is the participation ratio
    ``(sum lambda)^2 / sum lambda^2``.

    Args:
        kind: The headline: "correlation" (constant columns left out and counted), "covariance" or "second_moment".
        max_samples: Samples read at most, drawn at random from the training data. Of n Gaussian samples a separated
            eigenvalue has the relative standard error sqrt(2/n) (Anderson 1963): 0.6 % for 50,000. Close ones are
            spread by sampling, by up to ``2 sqrt(d/n)`` either way (Marchenko and Pastur 1967).
        seed: Of that draw.
        strict: Raise errors of the measurement instead of warning.

    Raises:
        ConfigurationError: For an unknown kind or fewer than 2 samples.

    Example:
        >>> InputSpectrum(kind="covariance").kind
        'covariance'
    """

    group = "input"

    def __init__(
        self,
        kind: InputKind = "correlation",
        *,
        max_samples: int = 50_000,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__(strict=strict)
        if kind not in get_args(InputKind):
            raise ConfigurationError(
                f"kind={kind!r} is no matrix of the inputs; choose one of {', '.join(get_args(InputKind))}."
            )
        self.kind: InputKind = kind
        if max_samples < 2:
            raise ConfigurationError(f"max_samples={max_samples} gives no spectrum; pass at least 2.")
        self.max_samples = max_samples
        self.seed = seed
        self._earlier: Tensor | None = None

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
        self.take(trainer, pl_module, step=trainer_internals.effective_batches(trainer))

    def measure(self, trainer: Trainer, pl_module: LightningModule, context: FitContext, step: int) -> Measurement:
        """One pass over the data set by its own indices; every rank reads its share."""
        start = time.perf_counter()
        moments = self._moments(trainer, context)
        seconds = time.perf_counter() - start
        kinds: list[InputKind] = [self.kind, *(kind for kind in SIDE_KINDS if kind != self.kind)]
        spectra: dict[str, Spectrum] = {kind: moments_spectrum(moments, kind, seconds=seconds) for kind in kinds}
        headline = spectra.pop(self.kind)
        self._compare(trainer, headline.eigenvalues)
        estimates = input_estimates(headline)
        for kind in SIDE_KINDS:
            side = spectra.get(kind, headline)
            estimates |= {f"{kind}_{name}": value for name, value in _side(side).items()}
        return Measurement(
            step=step,
            epoch=trainer.current_epoch,
            matrix=self.group,
            spectrum=headline,
            estimates=estimates,
            cost=headline.cost,
            status=headline.status,
            num_samples=headline.num_samples,
            precision="float64",
            companions=spectra,
        )

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

    def _moments(self, trainer: Trainer, context: FitContext) -> Moments:
        """Moments of all ranks together."""
        moments = InputMoments()
        if trainer.strategy.root_device.type == "cuda":
            moments.to(trainer.strategy.root_device)  # NCCL gathers nothing else
        self._read(trainer, context, moments)
        if context.ranks.count > 1:
            keep_step()
        return moments.compute()

    def _read(self, trainer: Trainer, context: FitContext, moments: InputMoments) -> None:
        source = context.source(trainer)
        indices = probe_indices(len(source), self.max_samples, self.seed)
        share = indices[trainer.global_rank :: trainer.world_size]
        title = f"Inputs: reading {len(indices):,} samples"
        with source.untouched(), progress(trainer, title, total=len(share)) as bar:
            for batch in source.chunks(share, READ_CHUNK):
                inputs = as_pair(batch)[0]
                if not isinstance(inputs, Tensor):
                    raise ConfigurationError(
                        f"The input spectrum needs one tensor for each sample, but the inputs are a "
                        f"{type(inputs).__name__}; give a data set whose inputs are a single tensor."
                    )
                with torch.no_grad():
                    moments.update(inputs.to(moments.device))
                bar.advance(len(inputs))


def _side(spectrum: Spectrum) -> dict[str, Estimate]:
    found = input_estimates(spectrum)
    return {name: found[name] for name in SIDE_QUANTITIES if name in found}
