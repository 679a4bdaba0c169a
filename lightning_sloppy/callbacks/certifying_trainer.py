"""A Trainer that can also certify a checkpoint, for ``lightning-sloppy certify``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_sloppy.callbacks.checkpoints import (
    fit_without_step,
    load_weights,
    make_structure,
    number_of_structures,
    opened_checkpoint,
)
from lightning_sloppy.callbacks.final_certificate import FinalCertificate
from lightning_sloppy.certifying.clean_samples import Clean
from lightning_sloppy.certifying.priors import Prior
from lightning_sloppy.certifying.repeats import Duplicates
from lightning_sloppy.compression.structure import structure_in
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import Predict
from lightning_sloppy.evaluation.objective import Loss
from lightning_sloppy.posteriors.learning_plan import LearningPlan
from lightning_sloppy.probing.digests import frozen_digests
from lightning_sloppy.probing.origin import notice_training, was_fitted


class CertifyingTrainer(Trainer):
    """Lightning's Trainer with the additional method ``certify``.

    Attributes:
        certified: The callback of the latest call of ``certify``, or None.
    """

    certified: FinalCertificate | None = None

    def certify(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        prior: Prior = "initialization",
        delta: float | None = None,
        learning: LearningPlan = LearningPlan(),  # noqa: B008 - frozen; the parser shows its fields
        loss_fn: Loss | None = None,
        predict: Predict | None = None,
        duplicates: Duplicates | None = None,
        clean: Clean | None = None,
        folder: str | None = None,
        seed: int = 0,
        weights_only: bool | None = None,
    ) -> FinalCertificate:
        """Certify a checkpoint: optimise a posterior around it, draw two networks, and bound their error.

        This does what a FinalCertificate in the training would have done. The prior's mean is that of the run's
        FinalCertificate or PACBayesBound, if the checkpoint has one. Otherwise it is the initial weights of this
        configuration and its seed, which are equally independent of the examples. Nothing is trained, and no other
        callback runs. The ranks of a compressed checkpoint were chosen by samples, so the bound holds for all
        combinations of ranks at once.

        Args:
            model: The module as configured for the training, with its initial weights.
            datamodule: Its training samples are the certifying ones; with ``prior="split"`` a PriorSplit.
            ckpt_path: The checkpoint.
            prior: "initialization"; "curvature", with the validation samples of the configuration; or "split", for a
                checkpoint that was trained on a PriorSplit with a FinalCertificate(prior="split").
            delta: Failure probability. null: that of the run, else 0.05.
            learning: Time limit, learning rates, and what gets a deviation of its own.
            loss_fn: Mean-reduced loss of (outputs, targets). null: found from the module and checked.
            predict: The classifier, if the loss does not define it: a function from outputs to labels, or from outputs
                and targets to booleans that are true for mistakes.
            duplicates: Your statement about equal samples: "natural" or "copies". null: a bound valid in both cases.
            clean: The training samples in the same order without random transforms: a loader, a data set, or the name
                of a method of the data module that returns one.
            folder: Folder of the networks and certificates. null: ``certificate`` in the folder of the checkpoint.
            seed: Seed of the learning and the draws.
            weights_only: Read plain values only. Pass false for a file that you trust and that contains more. null:
                true.

        Returns:
            The callback with the certificates.

        Raises:
            ConfigurationError: Without a checkpoint, or for a checkpoint of another model.
        """
        state = opened_checkpoint(ckpt_path, weights_only is not False)
        structures = number_of_structures(model) if structure_in(model, state["state_dict"]) else 1
        make_structure(model, state["state_dict"])
        runs = list(_runs(state.get("callbacks", {})))
        if delta is None:
            delta = next((run["settings"]["delta"] for run in runs if "settings" in run), 0.05)
        final = FinalCertificate(
            delta,
            prior=prior,
            learning=learning,
            loss_fn=loss_fn,
            predict=predict,
            duplicates=duplicates,
            clean=clean,
            folder=folder or str(Path(str(ckpt_path)).parent / "certificate"),
            seed=seed,
            strict=True,
        )
        if runs:
            known = dict(next((run for run in runs if run.get("split") is not None), runs[0]))
            known["evaluation"] = max(int(run.get("evaluation", 0)) for run in runs)
            known["value"] = next(
                (run["value"] for run in runs if not math.isnan(run.get("value", math.nan))), math.nan
            )
        else:
            known = self._fresh(model, ckpt_path, state)
        if structures > 1:
            # The ranks were chosen by the samples. Each of the structures has its own evaluations, of which the first
            # is number `structures` + 1: over all of them, delta is spent at most once.
            known["evaluation"] = structures + int(known.get("evaluation", 0))
        final.resume_from(known)
        load_weights(model, state, ckpt_path)
        notice_training(model)
        self.certified = final
        fit_without_step(self, model, datamodule, [final])
        return final

    def _fresh(self, model: LightningModule, ckpt_path: str | None, state: Mapping[str, Any]) -> dict[str, Any]:
        """The prior of a run that kept none: any weights that do not depend on the examples are valid."""
        table = dict(model.named_parameters())
        same = all(torch.equal(table[name].cpu(), t) for name, t in state["state_dict"].items() if name in table)
        if was_fitted(model) or same:
            raise ConfigurationError(
                f"{ckpt_path} contains no initial weights (it was written without FinalCertificate or PACBayesBound), "
                "and the given module is already trained; pass a newly constructed one."
            )
        return {"prior_mean": ParameterLayout.of(model).vector(model).cpu(), "frozen": frozen_digests(model)}


def _runs(states: Any) -> Iterator[Mapping[str, Any]]:
    """The states of callbacks with initial weights, including those inside a monitor."""
    if isinstance(states, Mapping):
        if "prior_mean" in states:
            yield states
        for inner in states.values():
            yield from _runs(inner)
