"""A softmax problem small enough to know its truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEATURES, CLASSES, TRAIN, TEST = 5, 3, 2000, 40_000


@dataclass(frozen=True)
class Problem:
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    weights: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    trace: float

    def risk(self, flat: Tensor, indices: Tensor) -> int:
        scores = self.inputs[indices] @ flat.view(FEATURES, CLASSES)
        return int((scores.argmax(1) != self.labels[indices]).sum())

    def surrogate(self, flat: Tensor, indices: Tensor) -> tuple[float, int, Tensor]:
        leaf = flat.detach().requires_grad_()
        scores = self.inputs[indices] @ leaf.view(FEATURES, CLASSES)
        loss = torch.nn.functional.cross_entropy(scores, self.labels[indices])
        (slope,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), int((scores.detach().argmax(1) != self.labels[indices]).sum()), slope

    def true_error(self, flat: Tensor) -> float:
        scores = self.test_inputs @ flat.view(FEATURES, CLASSES)
        return float((scores.argmax(1) != self.test_labels).double().mean())


def softmax_problem(random_labels: bool) -> Problem:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(FEATURES, CLASSES, generator=generator)
    inputs = torch.randn(TRAIN + TEST, FEATURES, generator=generator)
    labels = (inputs @ teacher + 0.3 * torch.randn(TRAIN + TEST, CLASSES, generator=generator)).argmax(1)
    if random_labels:
        labels = torch.randint(CLASSES, labels.shape, generator=generator)
    train_inputs, train_labels = inputs[:TRAIN], labels[:TRAIN]

    def loss(flat: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(train_inputs @ flat.view(FEATURES, CLASSES), train_labels)

    weights = torch.zeros(FEATURES * CLASSES)
    for _ in range(150):
        weights = (weights - torch.autograd.functional.jacobian(loss, weights)).detach()
    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, weights))
    values, vectors = values.flip(0), vectors.flip(1)
    return Problem(
        train_inputs,
        train_labels,
        inputs[TRAIN:],
        labels[TRAIN:],
        weights,
        values[:4],
        vectors[:, :4],
        float(values.sum()),
    )
