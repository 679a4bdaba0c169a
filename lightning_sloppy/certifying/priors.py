"""What each prior asks of a fit: samples that certify, samples that shape the prior, and what forbids a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sloppy.certificate import Reason
from lightning_sloppy.certifying import validity
from lightning_sloppy.certifying.certificate_task import RunState
from lightning_sloppy.certifying.clean_samples import Clean, CleanSamples, clean_samples
from lightning_sloppy.certifying.prior_split import PriorSplit
from lightning_sloppy.certifying.repeats import GROUPED, Rows, certifying_rows
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing import trainer_internals
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.probing.samples import SampleSource

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Prior = Literal["initialization", "initialisation", "pretrained", "curvature", "split", "pretrained_split"]
"""Where a prior comes from; the two spellings mean the same."""


def is_split(prior: str) -> bool:
    """Whether the prior is the trained network, and samples that it has not seen certify.

    >>> is_split("pretrained_split"), is_split("pretrained")
    (True, False)
    """
    return prior in ("split", "pretrained_split")


@dataclass(frozen=True)
class Samples:
    """What a certificate is made of.

    Attributes:
        rows: The samples that certify.
        held_out: Samples that shape the prior, where they do: those of the first validation loader.
        reasons: What forbids a bound.
    """

    rows: Rows
    held_out: SampleSource | None
    reasons: list[str]


def require_samples(trainer: Trainer, prior: str, duplicates: str | None = None) -> None:
    """Check at ``setup`` that the fit offers what the prior asks for, and says the same of equal samples.

    Raises:
        ConfigurationError: When it does not.
    """
    if is_split(prior) and not isinstance(getattr(trainer, "datamodule", None), PriorSplit):
        raise ConfigurationError(
            f"FinalCertificate(prior={prior!r}) was asked for, but the fit's data module is no PriorSplit, so no "
            "examples are kept for certifying; pass datamodule=PriorSplit(your_datamodule)."
        )
    stated = getattr(getattr(trainer, "datamodule", None), "duplicates", None)
    if is_split(prior) and (stated == "natural") != (duplicates == "natural"):
        raise ConfigurationError(
            f"PriorSplit has duplicates={stated!r} and the certificate duplicates={duplicates!r}, but equal samples "
            "are draws of their own in both or in none; give both the same."
        )
    if prior == "curvature" and not trainer_internals.has_validation(trainer):
        raise _no_validation()


def _no_validation() -> ConfigurationError:
    return ConfigurationError(
        "FinalCertificate(prior='curvature') looks at the network's start on validation samples, but the fit has none; "
        "give val_dataloaders, or take prior='initialization'."
    )


def trained_samples(trainer: Trainer, context: FitContext, prior: str, clean: Clean | None) -> CleanSamples:
    """The samples that the fit trains on, as a certificate reads them.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        prior: Where the prior comes from.
        clean: The user's samples without random transforms; None: as the training reads them.
    """
    return clean_samples(trainer, context, clean, context.samples.source(trainer), part=is_split(prior))


def samples_for(
    trainer: Trainer,
    context: FitContext,
    prior: str,
    run: RunState,
    *,
    clean: Clean | None = None,
    duplicates: str | None = None,
) -> Samples:
    """The samples of a certificate, and why there may be none.

    Args:
        trainer: The Trainer.
        context: Of the fit.
        prior: Where the prior comes from.
        run: What is known of the run.
        clean: The same samples without random transforms; None: as the training reads them.
        duplicates: The user's word on equal samples.

    Raises:
        ConfigurationError: For validation samples that cannot be read by index, where they shape the prior.
    """
    known = trained_samples(trainer, context, prior, clean)
    if is_split(prior):
        return _split(trainer, context, run, known, clean, duplicates)
    rows = certifying_rows(context, known.source, duplicates, known.conditions)
    source, natural = rows.source, duplicates == "natural"
    reasons = [*validity.module_reasons(context, run.prior_mean, run.frozen), *known.reasons]
    if prior != "curvature":
        return Samples(rows, None, reasons)
    loaders = trainer_internals.held_out_loaders(trainer)
    if not loaders:
        raise _no_validation()
    held_out = _held_out(trainer, context, loaders[0])
    shaped = validity.held_out_reasons(trainer, context, source, held_out, natural=natural)
    return Samples(rows, held_out, [*reasons, *shaped])


def _held_out(trainer: Trainer, context: FitContext, loader: DataLoader[Any]) -> SampleSource:
    try:
        source = SampleSource(loader)
        _, targets = context.samples.read(trainer, source, torch.arange(1), 1)[0]
    except Exception as error:
        raise ConfigurationError(
            f"prior='curvature' looks at the samples of the first validation loader, and they cannot be read: {error}"
        ) from error
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise ConfigurationError(
            "prior='curvature' needs validation batches of inputs and class indices (N,), as the training's are, but "
            f"found targets {tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__}."
        )
    return source


def _split(
    trainer: Trainer,
    context: FitContext,
    run: RunState,
    trained: CleanSamples,
    clean: Clean | None,
    duplicates: str | None,
) -> Samples:
    split: PriorSplit = trainer.datamodule
    certifying = SampleSource(split.certification_dataloader())
    known = clean_samples(trainer, context, clean, certifying, part=True)
    grouped = split.grouped
    conditions = (*known.conditions, *((GROUPED,) if grouped else ()))
    rows = certifying_rows(context, known.source, duplicates, conditions, grouped=grouped)
    natural = duplicates == "natural"
    reasons = [
        *(known.reasons or trained.reasons),
        *validity.split_reasons(trainer, context, rows.source, trained.source, natural=natural),
    ]
    trained_here = trainer_internals.fits_on(trainer, split)
    trained_here = trained_here and split.gave(context.samples.source(trainer).loader.dataset)
    if run.split is None or not trained_here:
        reasons.append(
            Reason(
                "The weights were trained before this fit, or on other samples than this split's, so they may have "
                "seen the certifying examples; train on this PriorSplit from fresh weights, or resume with this "
                "callback.",
                flag="prior_depends_on_sample",
            )
        )
    return Samples(rows, None, reasons)
