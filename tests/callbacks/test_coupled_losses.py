"""Losses that compare the samples of a batch: contrastive ones are others on larger batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny import FEATURES, blobs, trainer
from support.zoo import Trained
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, HessianSpectrum
from lightning_sloppy.probing.samples import probe_indices

COUNT, BATCH = 48, 12


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020): every sample against all others of the batch."""
    unit = F.normalize(outputs, dim=1)
    same = (targets[:, None] == targets[None]).to(outputs)
    same.fill_diagonal_(0)
    hidden = torch.eye(len(targets), dtype=torch.bool)
    likely = (unit @ unit.T / 0.5).masked_fill(hidden, -1e9).log_softmax(1)
    return -((likely * same).sum(1) / same.sum(1).clamp_min(1)).mean()


class Found(Trained):
    """Its loss is found by the name of the attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 3))
        self.loss_fn = contrastive

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any) -> Tensor:
        return contrastive(self(batch[0]), batch[1])


class Hidden(Found):
    """Only its step knows the loss."""

    def __init__(self) -> None:
        super().__init__()
        del self.loss_fn


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Found, Hidden])
def test_the_hessian_is_of_batches_as_large_as_those_of_the_training(tmp_path, kind):
    """Their mean, by plain autograd in float64; on all samples at once the loss is another one."""
    torch.manual_seed(0)
    module = kind()
    plain = copy.deepcopy(module.net).double()
    names, shapes = zip(*[(name, p.shape) for name, p in plain.named_parameters()], strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in plain.parameters()])
    inputs, targets = blobs(COUNT).tensors

    def mean_loss(weights: Tensor, size: int) -> Tensor:
        parts = weights.split([shape.numel() for shape in shapes])
        table = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.stack(
            [
                contrastive(torch.func.functional_call(plain, table, (inputs[own].double(),)), targets[own])
                for own in probe_indices(COUNT, COUNT, seed=0).split(size)
            ]
        ).mean()

    hessian = HessianSpectrum(k=3, num_samples=COUNT, strict=True)
    fisher = FisherSpectrum(num_samples=COUNT)
    words = "not the mean over its samples" if kind is Found else "the Hessian is that of training_step"
    with pytest.warns(UserWarning, match=words):
        trainer(tmp_path, callbacks=[hessian, fisher] if kind is Found else [hessian], max_epochs=1).fit(
            module, DataLoader(blobs(COUNT), BATCH)
        )
    first = hessian.measurements[0]
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda w: mean_loss(w, BATCH), flat))
    expected = values[values.abs().argsort(descending=True)][:3]
    found = first.spectrum.eigenvalues
    torch.testing.assert_close(found[found.abs().argsort(descending=True)], expected, rtol=1e-4, atol=1e-5)
    assert first.estimates["loss"].value == pytest.approx(float(mean_loss(flat, BATCH)), rel=1e-5)
    assert abs(float(mean_loss(flat, COUNT)) - float(mean_loss(flat, BATCH))) > 0.5
    if kind is Found:
        assert any("there are no per-sample gradients" in note for note in fisher.latest.notes)
