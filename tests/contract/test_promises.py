"""EXACT, CONVERGED and num_samples are promises: every kind of project, beside dense matrices by plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from support import promises, promises_of_tokens
from support.promised import Promise, eigenvalues
from support.tiny import trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sloppy import (
    ConfigurationError,
    FisherSpectrum,
    HessianSpectrum,
    JacobianSpectrum,
    fisher_spectrum,
    hessian_spectrum,
    jacobian_spectrum,
)
from lightning_sloppy.evaluation.nests import map_tensors, tensors_of
from lightning_sloppy.records import Spectrum, Status

ALL = 10**6
TABLE = {**promises.PROMISES, **promises_of_tokens.PROMISES}

UNKNOWN_MODELS = (
    "class_weights_in_a_function",
    "summed_by_hand",
    "weights_in_the_targets",
    "weighted_mean_in_the_targets",
    "penalised",
    "learnt_criterion",
    "several_outputs",
    "missing_targets",
    "padded_batches",
)
"""Of which nobody knows what targets to draw."""

UNKNOWN_WEIGHTS = ("class_weights_in_a_function",)
"""Means over weights that are nowhere to be seen."""

RESERVATIONS = ("weights", "unsteady", "beside_outputs", "constants", "unused", "fallback", "reduction")


def hessian(method: str) -> Callable[[Promise], Spectrum]:
    return lambda p: hessian_spectrum(p.module, p.batches, p.loss_fn, k=ALL, method=method, **p.options)  # type: ignore


def fisher(kind: str, **options: Any) -> Callable[[Promise], Spectrum]:
    return lambda p: fisher_spectrum(p.module, p.batches, p.loss_fn, kind, **options, **p.options)  # type: ignore


MEASUREMENTS: dict[str, tuple[Callable[[Promise], Spectrum], str]] = {
    # name: how it is made, and which matrix it must be
    "hessian": (hessian("auto"), "hessian"),
    "hessian recomputed": (hessian("recomputed"), "hessian"),
    "hessian by differences": (hessian("central_differences"), "hessian"),
    "empirical": (fisher("empirical"), "empirical"),
    "empirical by products": (fisher("empirical", method="products", k=ALL), "empirical"),
    "exact": (fisher("exact"), "exact"),
    "sampled": (fisher("sampled", labels=100), "exact"),
    "jacobian": (lambda p: jacobian_spectrum(p.module, p.batches), "jacobian"),
}


@cache
def promise(name: str) -> Promise:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = TABLE[name]()
    return replace(made, refused={"sampled": "is unknown; pass likelihood="}) if name in UNKNOWN_MODELS else made


@cache
def right(name: str, matrix: str) -> Tensor:
    return eigenvalues(getattr(promise(name), matrix)())


@pytest.mark.slow
@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", TABLE)
def test_a_number_without_reservation_is_right(name: str, measurement: str) -> None:
    this, (make, matrix) = promise(name), MEASUREMENTS[measurement]
    if measurement in this.refused:
        with pytest.raises(ConfigurationError, match=this.refused[measurement]):
            make(this)
        return
    found, expected = make(this), right(name, matrix)
    assert found.num_samples == len(this.samples)
    assert found.dim == len(expected)
    assert found.status in (Status.EXACT, Status.CONVERGED)
    said = [key for key in RESERVATIONS if key in found.detail]
    wanted = this.reserved.get(measurement.split()[0])
    if wanted:
        assert wanted in said
    if name in UNKNOWN_WEIGHTS and measurement != "jacobian":
        assert "weights" in said  # it says itself that it may be wrong
        return
    assert "weights" not in said
    if measurement == "sampled":
        assert float(found.trace.value) == pytest.approx(float(expected.sum()), rel=0.2)
        return
    tolerance = 1e-4 if measurement == "hessian by differences" else this.tolerance
    assert_same(found, expected, tolerance)


def assert_same(found: Spectrum, expected: Tensor, tolerance: float) -> None:
    seen = torch.zeros_like(expected)
    seen[: len(found.eigenvalues)] = found.eigenvalues[: len(expected)]
    allowed = tolerance * float(expected.abs().max())
    torch.testing.assert_close(seen.sort(descending=True).values, expected, rtol=0, atol=allowed)


# -- the same through a Trainer ---------------------------------------------------------------------------------------


class Samples(Dataset):
    """The samples of the batches, one by one."""

    def __init__(self, batches: list[Any]) -> None:
        self.places = [(batch, i) for batch in batches for i in range(len(tensors_of(batch)[0]))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        batch, place = self.places[index]
        return map_tensors(lambda tensor: tensor[place], batch)


class Host(LightningModule):
    """Trains any module by a step that does not move it."""

    def __init__(self, this: Promise, split: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any], Any]]) -> None:
        super().__init__()
        self.inner, self.split = this.module, split
        self.forward = this.module.forward
        self.train()  # none of them has layers that tell
        self.loss_fn = this.loss_fn

    def training_step(self, batch: Any) -> Tensor:
        inputs, names, targets = self.split(batch)
        return self.loss_fn(self(*inputs, **names), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def in_pairs(batch: Any) -> Any:
    return (batch[0],), {}, batch[1]


def in_names(batch: Any) -> Any:
    return (), batch, batch


def in_words(batch: Any) -> Any:
    return (), {name: batch[name] for name in ("input_ids", "attention_mask")}, batch


def in_two(batch: Any) -> Any:
    return tuple(batch[:2]), {}, batch[2] if len(batch) == 3 else batch[2:]


TRAINED = {
    "very_uneven": in_pairs,
    "one_sample": in_pairs,
    "class_weights": in_pairs,
    "own_token_mean": in_pairs,
    "ignored_tokens": in_pairs,
    "summed": in_pairs,
    "weighted_mean_in_the_targets": in_pairs,
    "penalised": in_pairs,
    "learnt_criterion": in_pairs,
    "several_outputs": in_pairs,
    "tied": in_pairs,
    "frozen": in_pairs,
    "pruned": in_pairs,
    "loss inside": in_names,
    "causal": in_names,
    "padded causal": in_names,
    "scores by name": in_words,
    "(x, mask, y)": in_two,
    "(x, mask, y, extra)": in_two,
    "class inside": in_names,
}


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True], ids=["guessed", "given"])
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore:The loss adds up its samples", "ignore:.*past the outputs", "ignore:Sample ")
def test_the_same_through_callbacks(tmp_path: Any, name: str, given: bool) -> None:
    this = promise(name)
    options: dict[str, Any] = {"num_samples": 64, "loss_fn": this.loss_fn if given else None, "strict": True}
    callbacks = {
        "hessian": HessianSpectrum(k=ALL, **options),
        "empirical": FisherSpectrum(**options),
        "exact": FisherSpectrum(kind="exact", name="fisher_exact", **options),
        "jacobian": JacobianSpectrum(num_samples=64, strict=True),
    }
    host = Host(this, TRAINED[name])
    trainer(tmp_path, callbacks=list(callbacks.values()), max_epochs=1).fit(
        host, DataLoader(Samples(this.batches), batch_size=3)
    )
    for matrix, callback in callbacks.items():
        assert callback.measurements
        for event in callback.measurements:
            assert event.status in (Status.EXACT, Status.CONVERGED), event.notes
            assert event.num_samples == len(this.samples)
            assert_same(event.spectrum, right(name, matrix), this.tolerance)
