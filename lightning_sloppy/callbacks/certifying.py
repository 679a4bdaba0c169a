"""A Trainer that can also certify a checkpoint: behind ``lightning-sloppy certify``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.bounds.plan import LearningPlan
from lightning_sloppy.callbacks.final_certificate import FinalCertificate, Prior
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor


class CertifyingTrainer(Trainer):
    """Lightning's Trainer with one verb more."""

    def certify(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        prior: Prior = "initialisation",
        delta: float | None = None,
        learning: LearningPlan = LearningPlan(),  # noqa: B008 - frozen; the parser shows its fields
        folder: str | None = None,
        seed: int = 0,
    ) -> FinalCertificate:
        """Certify a checkpoint: optimise a posterior around it, draw two networks, say what is guaranteed of them.

        It is what a FinalCertificate in the training would have done. The prior's mean is that of the run's
        FinalCertificate or PACBayesBound, where the checkpoint has one; else the weights that this configuration and
        its seed give, which are as independent of the examples. Nothing is trained, and no other callback runs.

        Args:
            model: The module as it was configured for the training, with its fresh weights.
            datamodule: Its training samples certify; with ``prior="split"`` a PriorSplit.
            ckpt_path: The checkpoint.
            prior: "initialisation", or "split" for a checkpoint that was trained on a PriorSplit with a
                FinalCertificate(prior="split").
            delta: Failure probability; null: that of the run, else 0.05.
            learning: Time limit, rates, and what has a deviation of its own.
            folder: Where networks and certificates go; null: ``certificate`` beside the checkpoint.
            seed: Of the learning and the draws.

        Returns:
            The callback that holds the certificates.

        Raises:
            ConfigurationError: Without a checkpoint, or for one of another model.
        """
        if ckpt_path is None or not Path(ckpt_path).is_file():
            raise ConfigurationError(
                f"There is no checkpoint {ckpt_path} to certify; pass --ckpt_path with a file that a fit has written."
            )
        state = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        runs = list(_runs(state.get("callbacks", {})))
        if delta is None:
            delta = next((run["settings"]["delta"] for run in runs if "settings" in run), 0.05)
        final = FinalCertificate(
            delta,
            prior=prior,
            learning=learning,
            folder=folder or str(Path(ckpt_path).parent / "certificate"),
            seed=seed,
            strict=True,
        )
        fresh: Tensor = ParameterLayout.of(model).vector(model).cpu()
        final.go_on_from(
            prior_mean=next((run["prior_mean"] for run in runs), fresh),
            evaluation=max((int(run.get("evaluation", 0)) for run in runs), default=0),
            trained_on=next((run["trained_on"] for run in runs if run.get("trained_on")), None),
        )
        shown: list[Callback] = [peer for peer in self.callbacks if isinstance(peer, (ProgressBar, ModelSummary))]
        self.callbacks: list[Callback] = [*shown, _NoStep(), final]
        self._leave_room(state)
        self.num_sanity_val_steps = 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
            warnings.filterwarnings("ignore", message=".*mid-epoch checkpoint.*")
            try:
                self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
            except RuntimeError as error:
                if "state_dict" not in str(error):
                    raise
                raise ConfigurationError(
                    f"{ckpt_path} holds the weights of another model than the configured {type(model).__name__}; use "
                    f"the configuration of its training. {str(error).splitlines()[0]}"
                ) from error
        if final.certificates is not None:
            rank_zero_info("\n\n".join(certificate.explain() for certificate in final.certificates))
        return final

    def _leave_room(self, state: Mapping[str, Any]) -> None:
        """A training that is over would be skipped as a whole; its limits stay near, for schedules may read them."""
        self.fit_loop.min_epochs, self.fit_loop.epoch_loop.min_steps = 0, None
        if self.max_epochs is not None and 0 <= self.max_epochs < state.get("epoch", 0) + 2:
            self.fit_loop.max_epochs = state.get("epoch", 0) + 2
        if 0 <= self.max_steps <= state.get("global_step", 0):
            self.fit_loop.epoch_loop.max_steps = state.get("global_step", 0) + 1


class _NoStep(Callback):
    """Ends the fit before its first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


def _runs(states: Any) -> Iterator[Mapping[str, Any]]:
    """The states of callbacks that knew the initial weights, those inside a monitor included."""
    if isinstance(states, Mapping):
        if "prior_mean" in states:
            yield states
        for inner in states.values():
            yield from _runs(inner)
