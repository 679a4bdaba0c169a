"""What each prior needs from a fit: certifying samples, samples that determine the prior, and reasons for no bound."""

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
    """Whether the prior's mean is the trained network, with certifying samples that it has not seen.

    >>> is_split("pretrained_split"), is_split("pretrained")
    (True, False)
    """
    return prior in ("split", "pretrained_split")


@dataclass(frozen=True)
class Samples:
    """The samples of a certificate.

    Attributes:
        rows: The certifying samples.
        held_out: The samples that determine the prior, those of the first validation loader; None if it needs none.
        reasons: Why there is no bound; empty if there is one.
    """

    rows: Rows
    held_out: SampleSource | None
    reasons: list[str]


def require_samples(trainer: Trainer, prior: str, duplicates: str | None = None) -> None:
    """Check at ``setup`` that the fit provides what the prior needs, and that statements about equal samples agree.

    Raises:
        ConfigurationError: If not.
    """
    if is_split(prior) and not isinstance(getattr(trainer, "datamodule", None), PriorSplit):
        raise ConfigurationError(
            f"FinalCertificate(prior={prior!r}) needs a PriorSplit as data module, but the fit has none, so no "
            "examples are kept for certifying; pass datamodule=PriorSplit(your_datamodule)."
        )
    stated = getattr(getattr(trainer, "datamodule", None), "duplicates", None)
    if is_split(prior) and (stated == "natural") != (duplicates == "natural"):
        raise ConfigurationError(
            f"PriorSplit has duplicates={stated!r} and the certificate duplicates={duplicates!r}, but equal samples "
            "must be independent draws in both or in neither; use the same value in both."
        )
    if prior == "curvature" and not trainer_internals.has_validation(trainer):
        raise _no_validation()


def _no_validation() -> ConfigurationError:
    return ConfigurationError(
        "FinalCertificate(prior='curvature') measures the initial network on validation samples, but the fit has none; "
        "pass val_dataloaders, or use prior='initialization'."
    )


def trained_samples(trainer: Trainer, context: FitContext, prior: str, clean: Clean | None) -> CleanSamples:
    """The training samples, as a certificate reads them.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        prior: Name of the prior.
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
    """The samples of a certificate, with the reasons if there is no bound.

    Args:
        trainer: The Trainer.
        context: Context of the fit.
        prior: Name of the prior.
        run: State of the run.
        clean: The same samples without random transforms; None: as the training reads them.
        duplicates: The user's statement about equal samples.

    Raises:
        ConfigurationError: If the prior needs validation samples and they cannot be read by index.
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
            f"prior='curvature' uses the samples of the first validation loader, but they cannot be read: {error}"
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
                "The weights were trained before this fit, or on other samples than those of this split, so they may "
                "depend on the certifying examples; train new weights on this PriorSplit, or resume with this "
                "callback.",
                flag="prior_depends_on_sample",
            )
        )
    return Samples(rows, None, reasons)
